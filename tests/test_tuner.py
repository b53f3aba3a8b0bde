"""What Ray Tune is told of a sweep's trials, and what is recorded of those that it gives up."""

import threading
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from raymeta import trial as trials
from raymeta.config import Run
from raymeta.sweep import Sweep
from raymeta.sweep_record import Record
from raymeta.tuner import Watch, _reusable
from tests.end_to_end.commands import written

SPACE: dict[str, Any] = {"settings": {"algorithm.inner_lr": {"loguniform": [1e-3, 0.3]}}}
ALONE = {"workers": 1, "cpus_per_worker": 1}


def sweep(folder: Path, cluster: dict[str, Any], **values: Any) -> Sweep:
    run = Run.of(
        {
            "name": "small", "model": {"name": "some/model"}, "corpus": {"kind": "quickstart", "part": "intents"},
            "tasks": {"kind": "classification", "ways": 2, "split": {"of": "class", "train": 18, "validation": 8, "test": 10}},
            "outer": {"steps": 6}, "validation": {"every": 2}, "storage": str(folder), "cluster": cluster,
        }
    )  # fmt: skip
    return Sweep.of({"run": run, "space": SPACE, "space_name": "mine", **values})


def test_only_trials_of_one_environment_that_compute_by_themselves_share_a_process(tmp_path: Path) -> None:
    assert _reusable(sweep(tmp_path, ALONE))
    assert not _reusable(sweep(tmp_path, {**ALONE, "workers": 2}))
    names = [written({**ALONE, "environment": {"HERE": name}}, tmp_path / f"{name}.yaml") for name in ("one", "other")]
    assert _reusable(sweep(tmp_path, ALONE, clusters=(names[0],)))
    assert not _reusable(sweep(tmp_path, ALONE, clusters=tuple(names)))


def test_a_trial_that_ray_tune_gives_up_without_a_word_has_failed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = Record(tmp_path / "trials.jsonl")
    for number in range(2):
        record.add("starts", trial=number, point=number, settings={}, cluster="", folder="")
    record.add("finished", trial=0)
    watch = Watch(sweep(tmp_path, ALONE), record, None)
    ended = [
        SimpleNamespace(status="TERMINATED", config={"trial": 0}),
        SimpleNamespace(status="ERROR", config={"trial": 1}, get_error=lambda: RuntimeError("no room")),
    ]
    watch.on_experiment_end(ended)
    watch.on_experiment_end(ended)
    assert [t.state for t in record.trials().values()] == ["finished", "failed"]
    assert capsys.readouterr().out.count("trial 1 failed: no room") == 1


def test_a_process_waits_for_the_stage_before_and_says_so_if_that_does_not_end(monkeypatch: pytest.MonkeyPatch) -> None:
    walk = object.__new__(trials.Walk)
    begun: list[Any] = []
    monkeypatch.setattr(walk, "_begin", begun.append, raising=False)
    walk._run = SimpleNamespace(cluster=SimpleNamespace(in_process=True))
    leave = threading.Event()

    def stage() -> None:
        while not leave.is_set():
            try:
                leave.wait(0.05)
            except KeyboardInterrupt:  # a stage that is slow to end
                leave.wait(0.3)
                return

    walk._thread = threading.Thread(target=stage)
    walk._thread.start()
    assert walk.reset_config({"trial": 1})
    assert begun == [{"trial": 1}]
    monkeypatch.setattr(trials, "_RESET_S", 0.05)

    def deaf() -> None:
        with suppress(KeyboardInterrupt):
            leave.wait()

    walk._thread = threading.Thread(target=deaf)  # an interrupt comes through when it has waited
    walk._thread.start()
    with pytest.raises(RuntimeError, match=r"the trial before is still at work 0\.05 s after it was stopped"):
        walk.reset_config({"trial": 2})
    leave.set()
