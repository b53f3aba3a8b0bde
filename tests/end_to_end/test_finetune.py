"""Fine-tuning on several workers, and after its process was killed, ends where one undisturbed process does."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest
import yaml

from raymeta.config import Run
from raymeta.stages.finetune import Result, finetune
from raymeta.track import rows
from tests.end_to_end.commands import ended, start, wait_for, written
from tests.end_to_end.conftest import workers

SETTINGS = {
    "start": "backbone", "corpus": {"kind": "quickstart"}, "task": "law", "rows": 12, "epochs": 4, "batch_size": 6, "texts_at_once": 2,
    "lr": 1e-3, "l2": 1e-3, "dropout": 0.1, "patience": None,
}  # fmt: skip


def tuned(settings: dict[str, Any], name: str, **sections: Any) -> Result:
    (found,) = finetune(Run.of({**settings, "finetune": SETTINGS, "name": name, **sections}))
    return found


def metrics(result: Result) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not k.endswith("_s")} for row in rows(result.folder / "metrics.jsonl")]


@pytest.mark.usefixtures("ray_cluster")
def test_one_worker_and_two_fine_tune_along_the_same_path(settings: dict[str, Any]) -> None:
    here, on_two = tuned(settings, "tuned-here"), tuned(settings, "tuned-on-two", cluster=workers(2))
    ours, theirs = here.checkpoint.params(), on_two.checkpoint.params()
    assert ours.keys() == theirs.keys()
    # float32: parts of a batch summed in another order; AdamW carries the difference along for eight steps
    assert max(float((ours[n] - theirs[n]).abs().max()) for n in ours) < 1e-5
    assert len(metrics(here)) == len(metrics(on_two)) > 8
    for one, two in zip(metrics(here), metrics(on_two), strict=True):
        numbers = [{k: v for k, v in row.items() if isinstance(v, float)} for row in (one, two)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-3, abs=1e-5)
    assert on_two.found["test"].keys() == here.found["test"].keys()


def test_a_killed_fine_tuning_started_again_ends_where_an_unbroken_one_does(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    changes = {"finetune": {**SETTINGS, "epochs": 60}, "save": {"every": 1, "keep": 3}}
    unbroken = tuned(settings, "tuned-unbroken", **changes)
    values = {**settings, **changes, "name": "tuned-killed"}
    command = ("finetune", written(values, tmp_path / "run.yaml"))
    process = start(*command)
    folder = Run.of(values).folder / unbroken.folder.name
    wait_for(folder / "checkpoints" / "step_000010", process)
    os.kill(process.pid, signal.SIGKILL)
    assert ended(process)[0] == -signal.SIGKILL
    assert not (folder / "finetune.json").exists()
    status, said = ended(start(*command))
    assert status == 0, said
    (killed,) = finetune(Run.of(values))
    assert metrics(killed) == metrics(unbroken)
    assert killed.found == unbroken.found
    for name in ("params.safetensors", "outer.safetensors"):
        assert (killed.checkpoint.folder / name).read_bytes() == (unbroken.checkpoint.folder / name).read_bytes()
    assert yaml.safe_load((folder / "run.yaml").read_text())["finetune"]["epochs"] == 60
