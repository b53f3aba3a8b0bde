"""Sweeps on Ray Tune: every trial a run of its own, gone on with after any end, the best one as a run."""

import json
from pathlib import Path
from typing import Any

import pytest

from raymeta.config import Run
from raymeta.errors import UserError
from raymeta.objective import Objective
from raymeta.stages.metatrain import metatrain
from raymeta.sweep import Sweep
from raymeta.sweep_record import Trial, by_cluster
from raymeta.tune import tune
from tests.end_to_end.commands import written
from tests.end_to_end.conftest import INTERRUPTED, workers

SPACE = {
    "settings": {
        "algorithm.inner_lr": {"loguniform": [1e-3, 0.3]},
        "algorithm.inner_steps": {"randint": [1, 4]},
        "algorithm.l2": {"choice": [0.0, 1e-6, 1e-3]},
    }
}


@pytest.fixture
def intents(settings: dict[str, Any], tmp_path: Path) -> dict[str, Any]:
    """20 steps on the shipped intents, of which even a tiny model learns something."""
    tasks = {"kind": "classification", "ways": 3, "shots": 2, "queries": 5, "split": {"of": "class", "train": 18, "validation": 8, "test": 10}}  # fmt: skip
    return {
        **settings, "name": "swept", "corpus": {"kind": "quickstart", "part": "intents"}, "tasks": tasks,
        "validation": {"every": 5, "episodes": 20}, "storage": str(tmp_path / "results"),
    }  # fmt: skip


def sweep(run: dict[str, Any], **values: Any) -> Sweep:
    return Sweep.of({"run": Run.of(run), "space": SPACE, "space_name": "mine", "max_concurrent": 2, **values})


def assert_distinct(trials: list[Trial], count: int) -> None:
    assert [t.number for t in trials] == list(range(count))
    assert {t.state for t in trials} <= {"finished", "stopped"}
    assert len({json.dumps(t.settings, sort_keys=True) for t in trials}) == count
    assert len({t.folder for t in trials}) == count


def assert_reproduces(best: Path, trials: list[Trial], storage: Path) -> None:
    """The run in `best`, walked anew in another folder, comes to exactly what the best trial did."""
    value = max(t.value for t in trials if t.state == "finished" and t.value is not None)
    run = Run.load(str(best), f"storage={storage}", "cluster=local-debug")
    metatrain(run)
    assert Objective.of("", run).readings(run)[-1].value == value


@pytest.mark.usefixtures("ray_cluster")
def test_a_sweep_with_asha_stops_some_runs_and_its_best_run_reproduces_the_metric(
    intents: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked = sweep(intents, trials=4, scheduler="asha")
    trials = tune(asked)
    said = capsys.readouterr().out
    assert_distinct(trials, 4)
    stopped = [t for t in trials if t.state == "stopped"]
    assert stopped
    assert all(t.step < 20 for t in stopped)
    assert all(t.step == 20 and t.worker_s > 0 for t in trials if t.state == "finished")
    assert all([s for s, _ in t.path] == list(range(5, t.step + 1, 5)) for t in trials)
    assert_reproduces(asked.folder / "best.yaml", trials, tmp_path / "anew")
    first = max((t for t in trials if t.state == "finished"), key=lambda t: t.value or 0)
    assert f"trial {first.number}: algorithm.inner_lr={first.settings['algorithm.inner_lr']}" in said
    assert "Traceback" not in said

    # what is finished is not done again, in this sweep or in another
    stamps = {t.folder: (Path(t.folder) / "metrics.jsonl").stat().st_mtime_ns for t in trials if t.state == "finished"}
    with pytest.raises(UserError, match="4 of 4 runs ended; add --resume"):
        tune(asked)
    assert [t.state for t in tune(asked, resume=True)] == [t.state for t in trials]
    other = tune(sweep(intents, trials=len(trials), max_concurrent=4))
    assert {t.folder for t in other} == {t.folder for t in trials}
    assert {t.state for t in other} == {"finished"}
    assert all((Path(f) / "metrics.jsonl").stat().st_mtime_ns == stamp for f, stamp in stamps.items())
    assert [t.value for t in other if t.number == first.number] == [first.value]


@pytest.mark.usefixtures("ray_cluster")
def test_two_profiles_stand_side_by_side_with_throughput_and_cost(
    intents: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [written(workers(count), tmp_path / f"workers-{count}.yaml") for count in (1, 2)]
    asked = sweep(intents, trials=1, clusters=names, max_concurrent=1)
    one, two = tune(asked)
    assert (one.cluster, two.cluster) == tuple(names)
    assert one.settings == two.settings
    assert one.folder != two.folder
    assert one.state == two.state == "finished"
    assert two.value == pytest.approx(one.value, abs=1e-6)
    assert (one.tasks_per_s or 0) > 0
    assert two.worker_s > 0
    said = capsys.readouterr().out
    assert "worker-s a finished run" in said
    assert by_cluster([one, two], asked.judge, False) in said


@pytest.mark.usefixtures("ray_cluster")
def test_a_sweep_of_which_nothing_comes_ends_with_what_its_runs_said(intents: dict[str, Any], tmp_path: Path) -> None:
    signs = [tmp_path / f"sign-{n}" for n in range(4)]
    for sign in signs:
        sign.touch()
    algorithm = {**intents["algorithm"], "kind": INTERRUPTED, "at": 1, "how": "mistaken", "sign": str(signs[0])}
    space = {"settings": {"algorithm.sign": {"grid": [str(sign) for sign in signs]}}}
    asked = sweep({**intents, "algorithm": algorithm}, space=space, trials=4)
    with pytest.raises(
        UserError, match=r"the first 3 runs failed, and none came to anything; the last said: .*it is Friday"
    ):
        tune(asked)
    # the mistake is mended: the runs that failed are tried again
    for sign in signs:
        sign.unlink(missing_ok=True)
    assert {t.state for t in tune(asked, resume=True)} == {"finished"}


@pytest.mark.usefixtures("ray_cluster")
def test_a_sweep_ends_when_its_time_is_over_and_its_runs_wait_to_be_gone_on_with(intents: dict[str, Any]) -> None:
    long = {**intents, "outer": {**intents["outer"], "steps": 5000}}
    asked = sweep(long, trials=2, budget_s=1)
    trials = tune(asked)
    assert {t.state for t in trials} == {"running"}
    assert not (asked.folder / "best.yaml").exists()


@pytest.mark.usefixtures("ray_cluster")
def test_more_runs_at_once_than_have_room_are_told_with_the_arithmetic(intents: dict[str, Any]) -> None:
    asked = sweep({**intents, "cluster": workers(2)}, trials=3, max_concurrent=3)
    with pytest.raises(
        UserError,
        match=r"3 runs at once x 2 workers x 1 CPU do not fit: the cluster has room for 2 such runs; lower --max-concurrent to 2",
    ):
        tune(asked)
