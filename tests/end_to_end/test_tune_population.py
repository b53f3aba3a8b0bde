"""Population-based training on Ray Tune: members take over from better ones, and a killed sweep comes to the same."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from raymeta import checkpoint
from raymeta.config import Run
from raymeta.objective import Objective
from raymeta.stages.metatrain import metatrain
from raymeta.sweep import Sweep
from raymeta.sweep_record import Record, Trial
from raymeta.track import rows
from raymeta.tune import tune
from tests.end_to_end.commands import ended, start, written

SPACE = {"settings": {"algorithm.inner_lr": {"loguniform": [1e-3, 0.3]}, "outer.lr": {"loguniform": [1e-5, 1e-2]}}}


@pytest.fixture
def intents(settings: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """20 steps on the shipped intents, validated every 5."""
    tasks = {"kind": "classification", "ways": 3, "shots": 2, "queries": 5, "split": {"of": "class", "train": 18, "validation": 8, "test": 10}}  # fmt: skip
    return {
        **settings, "name": "bred", "corpus": {"kind": "quickstart", "part": "intents"}, "tasks": tasks,
        "validation": {"every": 5, "episodes": 20}, "storage": str(tmp_path / "results"),
    }  # fmt: skip


def sweep(run: dict[str, Any]) -> Sweep:
    return Sweep.of({"run": Run.of(run), "space": SPACE, "space_name": "mine", "trials": 4, "max_concurrent": 2, "scheduler": "pbt"})  # fmt: skip


def came_to(folder: Path) -> list[Trial]:
    return [t for _, t in sorted(Record(folder / "trials.jsonl").trials().items())]


def essence(trials: list[Trial]) -> list[Any]:
    """What does not depend on when and where."""
    return [(t.number, t.settings, t.schedule, t.path, t.value, t.state) for t in trials]


@pytest.mark.usefixtures("ray_cluster")
def test_a_population_ends_with_runs_that_took_over_and_the_best_is_there_to_be_used(
    intents: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    asked = sweep(intents)
    trials = tune(asked)
    said = capsys.readouterr().out
    assert [(t.number, t.state, t.step) for t in trials] == [(n, "finished", 20) for n in range(4)]
    assert all([step for step, _ in t.path] == [5, 10, 15, 20] for t in trials)
    rounds = [json.loads(line) for line in (asked.folder / "trials.jsonl").read_text().splitlines()]
    rounds = [row for row in rounds if row["event"] == "round"]
    assert [row["step"] for row in rounds] == [5, 10, 15]
    assert all(len(row["moves"]) == 1 for row in rounds)
    assert said.count("takes over from trial") == 3

    # the last that took over goes on from just what the other had, and its rows have no gap
    move = rounds[-1]["moves"][0]
    mine, donor = (next(t for t in trials if t.number == move[name]) for name in ("trial", "donor"))
    assert mine.schedule[:-1] == donor.schedule
    assert [s for s, _ in mine.schedule][-1] == 15
    steps = [row["step"] for row in rows(Path(mine.folder) / "metrics.jsonl") if "split" not in row]
    assert steps == list(range(1, 21))
    before = [row for row in rows(Path(donor.folder) / "metrics.jsonl") if row["step"] <= 15]
    assert [row for row in rows(Path(mine.folder) / "metrics.jsonl") if row["step"] <= 15] == before

    # the best is a run that is done, with the metric that it was chosen for
    first = max(trials, key=lambda t: t.value or 0)
    best = Run.load(str(asked.folder / "best.yaml"))
    assert str(best.folder) == first.folder
    stamp = (best.folder / "metrics.jsonl").stat().st_mtime_ns
    assert metatrain(best).last.step == 20
    assert (best.folder / "metrics.jsonl").stat().st_mtime_ns == stamp
    assert Objective.of("", best).readings(best)[-1].value == first.value
    assert checkpoint.best(best.folder / "checkpoints") is not None
    assert essence(tune(asked, resume=True)) == essence(trials)


@pytest.mark.slow
def test_a_population_that_is_killed_comes_to_what_it_would_have(
    intents: dict[str, Any], tmp_path: Path, ray_folder: Path
) -> None:
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE), encoding="utf-8")

    def command(storage: str, *more: str) -> tuple[str, ...]:
        asked = {**intents, "storage": str(tmp_path / storage)}
        return (
            "tune", written(asked, tmp_path / f"{storage}.yaml"), "--space", str(tmp_path / "space.yaml"),
            "--trials", "3", "--scheduler", "pbt", "--max-concurrent", "2", *more,
        )  # fmt: skip

    environment = {"RAY_TMPDIR": str(ray_folder)}
    killed_when_a_trial_is_under_way(start(*command("killed"), environment=environment), tmp_path / "killed")
    for storage, more in (("killed", ("--resume",)), ("unbroken", ())):
        status, said = ended(start(*command(storage, *more), environment=environment))
        assert status == 0, said
    killed, unbroken = (came_to(next((tmp_path / s / "sweeps").iterdir())) for s in ("killed", "unbroken"))
    assert {t.state for t in unbroken} == {"finished"}
    assert essence(killed) == essence(unbroken)


def killed_when_a_trial_is_under_way(process: Any, storage: Path) -> None:
    """Ends the sweep's process, and its cluster with it, between two validations of a trial."""
    stop = time.monotonic() + 300
    while True:
        assert process.poll() is None, ended(process)[1]
        assert time.monotonic() < stop
        for file in storage.glob("sweeps/*/trials.jsonl"):
            if any(t.state == "running" and 5 <= t.step < 40 for t in Record(file).trials().values()):
                os.kill(process.pid, signal.SIGKILL)
                ended(process)
                return
        time.sleep(0.05)
