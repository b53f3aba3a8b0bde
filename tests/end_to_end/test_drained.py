"""A node that Ray drains, as it does on a spot machine's notice: the run has saved its steps before the node goes."""

import re
import time
from pathlib import Path
from typing import Any

import pytest

from raymeta.config import Run
from raymeta.stages.metatrain import finished
from raymeta.track import rows
from tests.end_to_end.commands import ended, start, written
from tests.end_to_end.elastic import PACED
from tests.end_to_end.outcome import metrics
from tests.end_to_end.simulated import Nodes

pytestmark = pytest.mark.slow
STEPS = 120


def test_a_run_on_a_node_that_is_taken_away_goes_on_from_the_steps_of_the_last_seconds(
    settings: dict[str, Any], ray_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(ray_folder))
    run = {
        **settings, "name": "drained", "storage": str(tmp_path / "results"),
        "algorithm": {**settings["algorithm"], "kind": PACED, "pace_s": 0.2},
        "outer": {"steps": STEPS, "tasks_per_step": 4, "lr": 1e-3}, "validation": {"every": 0},
        "save": {"every": STEPS}, "cluster": {"workers": 2, "placement": "STRICT_SPREAD", "max_failures": 0},
    }  # fmt: skip
    file = Run.of(run).folder / "metrics.jsonl"
    with Nodes(3) as cluster:
        process = start("metatrain", written(run, tmp_path / "run.yaml"), environment=cluster.environment)
        while process.poll() is None and len(rows(file)) < 10:
            time.sleep(0.1)
        cluster.drain(15)
        status, said = ended(process)
    assert status == 0, said
    assert "a machine of this run is about to be taken away" in said
    (step,) = re.findall(r"the workers changed; 2 go on from step (\d+)", said)
    assert int(step) > 10
    done = finished(Run.of(run))
    assert done is not None
    assert [row["step"] for row in metrics(done.folder)] == [*range(1, STEPS + 1)]
