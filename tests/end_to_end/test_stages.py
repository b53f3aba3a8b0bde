"""A run of all four stages, killed in each: the same command goes on, and stages that are finished are left alone."""

import json
import os
import signal
import time
from pathlib import Path
from subprocess import Popen
from typing import Any

import pytest

from raymeta import yaml12
from raymeta.config import Run
from tests.end_to_end.commands import ended, start, written
from tests.pretrained import values

FINETUNE = {
    "corpus": {"kind": "quickstart", "part": "intents"},
    "held_out": {"validation": 0.2, "test": 0.2},
    "epochs": 6,
    "batch_size": 16,
    "lr": 3e-3,
}


def all_stages(folder: Path, **pretrain: Any) -> dict[str, Any]:
    """Settings of a run that pre-trains a tiny BERT, meta-trains, fine-tunes and evaluates, in its own process."""
    return {
        **values("bert", folder, steps=40, **pretrain),
        "outer": {"steps": 40, "tasks_per_step": 2},
        "validation": {"every": 20, "episodes": 10},
        "save": {"every": 1, "keep": 100},
        "finetune": FINETUNE,
        "evaluate": {"episodes": 200},
    }  # fmt: skip


def stages(run: Run) -> dict[str, Path]:
    """A file that is there once each stage has begun to keep something, in their order; of the last, once it has begun."""
    (tuned,) = [*run.folder.glob("finetune-*"), run.folder / "finetune"][:1]
    return {
        "pretrain": run.pretrained / "checkpoints" / "step_000005",
        "metatrain": run.folder / "checkpoints" / "step_000005",
        "finetune": tuned / "checkpoints" / "step_000002",
        "evaluate": tuned / "finetune.json",
    }


def results(run: Run) -> dict[str, bytes]:
    """What each stage measured."""
    found = {"pretrain": run.pretrained / "pretrain.json", "metatrain": run.folder / "metrics.jsonl"}
    found["evaluate"] = run.folder / "evaluation.json"
    for path in run.folder.glob("finetune-*/finetune.json"):
        found["finetune"] = path
    return {name: path.read_bytes() for name, path in found.items() if path.exists()}


def wait_for_stage(run: Run, name: str, process: Popen[str]) -> None:
    stop = time.monotonic() + 300
    while not stages(run)[name].exists():
        assert process.poll() is None, ended(process)[1]
        assert time.monotonic() < stop, f"{name} did not begin"
        time.sleep(0.02)


def told(run: Run) -> dict[str, Any]:
    """The numbers of every stage, without what depends on the clock."""
    evaluation = json.loads((run.folder / "evaluation.json").read_text())
    (tuned,) = run.folder.glob("finetune-*/finetune.json")
    pretrained = json.loads((run.pretrained / "pretrain.json").read_text())
    metrics = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    clock = ("_s", "per_s", "time")
    return {
        "pretrain": [pretrained["before"], pretrained["after"]],
        "metatrain": [{k: v for k, v in row.items() if not k.endswith(clock)} for row in metrics],
        "finetune": json.loads(tuned.read_text())["test"],
        "evaluate": evaluation["metrics"],
    }


@pytest.mark.slow
def test_a_run_killed_in_every_stage_ends_where_an_unbroken_one_does(tmp_path: Path) -> None:
    unbroken, killed = all_stages(tmp_path / "unbroken"), all_stages(tmp_path / "killed")
    status, said = ended(start("run", written(unbroken, tmp_path / "unbroken.yaml")))
    assert status == 0, said
    run, command = Run.of(killed), ("run", written(killed, tmp_path / "killed.yaml"))
    finished: dict[str, bytes] = {}
    for stage in ("pretrain", "metatrain", "finetune", "evaluate"):
        process = start(*command)
        wait_for_stage(run, stage, process)
        os.kill(process.pid, signal.SIGKILL)
        assert ended(process)[0] == -signal.SIGKILL, f"{stage} was over before it could be killed"
        left = results(run)
        assert stage == "metatrain" or stage not in left, f"{stage} was finished before it was killed"
        assert {name: left[name] for name in finished} == finished, f"a finished stage was done again: {stage}"
        finished = {name: found for name, found in left.items() if name != stage}
    status, said = ended(start(*command))
    assert status == 0, said
    assert "pre-training is done" in said
    assert told(Run.of(killed)) == told(Run.of(unbroken))
    # a setting of the first stage makes all of them run again, and that is said
    changed = all_stages(tmp_path / "killed", lr=3e-3)
    status, said = ended(start("run", written(changed, tmp_path / "killed.yaml")))
    assert status == 0, said
    assert "pretrain.lr: 0.01 -> 0.003" in said
    assert "pre-training anew in" in said
    assert "starting anew in" in said
    assert Run.of(changed).pretrained != run.pretrained
    # one of the last stage leaves those before it alone
    status, said = ended(start("run", written({**changed, "evaluate": {"episodes": 20}}, tmp_path / "killed.yaml")))
    assert status == 0, said
    assert "anew" not in said
    assert "20 episodes" in said
    assert yaml12.read(Run.of(changed).folder / "run.yaml")["pretrain"]["lr"] == 3e-3
