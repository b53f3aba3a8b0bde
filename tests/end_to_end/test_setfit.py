"""SetFit's row on Ray's workers: each trains on episodes of its own, though its packages would take them for one training."""

from typing import Any

import pytest

from raymeta.config import Run
from raymeta.pipeline import run_all
from tests.end_to_end.conftest import workers


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_two_workers_measure_setfit_as_this_process_does(settings: dict[str, Any]) -> None:
    pytest.importorskip("setfit", reason="needs the extra `baselines`")
    changes = {
        "corpus": {"kind": "quickstart", "part": "intents"},
        "tasks": {"kind": "classification", "ways": 2, "shots": 2, "queries": 4, "split": {"train": 18, "test": 18}},
        "outer": {"steps": 1, "tasks_per_step": 2}, "validation": {"every": 0},
        "evaluate": {"episodes": 6, "setfit": {"episodes": 5, "iterations": 2, "lr": 1e-3}},
    }  # fmt: skip
    here = run_all(Run.of({**settings, **changes, "name": "setfit-here"}))
    there = run_all(Run.of({**settings, **changes, "name": "setfit-there", "cluster": workers(2)}))
    assert here["setfit_episodes"] == 5
    assert here["setfit"] == there["setfit"]
