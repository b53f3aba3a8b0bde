"""A run that was stopped, however it was stopped, goes on as if nothing had been."""

import os
import signal
from pathlib import Path
from typing import Any

import pytest

from raymeta import checkpoint
from raymeta.config import Run
from raymeta.errors import UserError
from raymeta.stages.metatrain import Result, finished, metatrain
from tests.end_to_end.commands import ended, left_behind, start, wait_for, written
from tests.end_to_end.conftest import INTERRUPTED, workers
from tests.end_to_end.outcome import metrics, same_bytes

PLACES = ["in-process", "on-ray"]


def held_run(settings: dict[str, Any], name: str, sign: Path, cluster: Any, how: str = "held") -> dict[str, Any]:
    """A run that waits in step 13 to be stopped, once, if the file `sign` is there."""
    algorithm = {**settings["algorithm"], "kind": INTERRUPTED, "at": 12 * 4 + 1, "sign": str(sign), "how": how}
    return {**settings, "name": name, "algorithm": algorithm, "cluster": cluster}


@pytest.mark.parametrize(
    ("cluster", "unbroken"),
    [("local-debug", "alone"), pytest.param(workers(2), "on_two", marks=pytest.mark.slow)],
    ids=PLACES,
)
def test_a_killed_run_started_again_ends_where_an_unbroken_one_does(
    cluster: Any,
    unbroken: str,
    settings: dict[str, Any],
    tmp_path: Path,
    ray_folder: Path,
    request: pytest.FixtureRequest,
) -> None:
    sign = tmp_path / "sign"
    sign.touch()
    run = held_run(settings, f"killed-{tmp_path.name}", sign, cluster)
    folder = Run.of(run).folder
    command = ("metatrain", written(run, tmp_path / "run.yaml"))
    environment = {"RAY_TMPDIR": str(ray_folder)}
    process = start(*command, environment=environment)
    wait_for(Path(f"{sign}.held"), process)
    os.kill(process.pid, signal.SIGKILL)
    ended(process)
    assert [row["step"] for row in metrics(folder) if "split" not in row] == [*range(1, 13)]

    status, said = ended(start(*command, environment=environment))
    assert status == 0, said
    assert "going on from step 10" in said
    broken, whole = finished(Run.of(run)), request.getfixturevalue(unbroken)
    assert broken is not None
    assert same_bytes(broken, whole)
    assert metrics(folder) == metrics(whole.folder)
    assert [row["step"] for row in metrics(folder) if "split" not in row] == [*range(1, 21)]


def test_two_processes_do_not_work_on_one_run_at_once(settings: dict[str, Any], tmp_path: Path) -> None:
    sign = tmp_path / "sign"
    sign.touch()
    values = held_run(settings, "twice", sign, "local-debug")
    first = start("metatrain", written(values, tmp_path / "twice.yaml"))
    wait_for(Path(f"{sign}.held"), first)
    with pytest.raises(UserError, match=f"process {first.pid} .* is working on this run"):
        metatrain(Run.of(values))
    first.kill()
    ended(first)
    assert metatrain(Run.of(values)).last.step == 20


@pytest.mark.parametrize(
    ("cluster", "sent"),
    [
        ("local-debug", signal.SIGINT),
        ("local-debug", signal.SIGTERM),
        pytest.param(workers(2), signal.SIGINT, marks=pytest.mark.slow),
        pytest.param(workers(2), signal.SIGTERM, marks=pytest.mark.slow),
    ],
    ids=["in-process-int", "in-process-term", "on-ray-int", "on-ray-term"],
)
def test_a_stopped_command_saves_its_last_whole_step_and_leaves_no_process_and_no_traceback(
    cluster: Any, sent: signal.Signals, settings: dict[str, Any], alone: Result, tmp_path: Path, ray_folder: Path
) -> None:
    sign = tmp_path / "sign"
    sign.touch()
    here = cluster == "local-debug"
    values = held_run(settings, f"stopped-{tmp_path.name}", sign, cluster, "held" if here else "paused")
    command = ("run", written(values, tmp_path / "run.yaml"))
    environment = {"RAY_TMPDIR": str(ray_folder), "RAYMETA_TEST": tmp_path.name}
    process = start(*command, environment=environment)
    wait_for(Path(f"{sign}.held"), process)
    os.kill(process.pid, sent)
    status, said = ended(process)
    assert status == 128 + sent
    assert "Traceback" not in said
    assert said.splitlines()[-1] == "stopped; the same command goes on from the newest checkpoint"
    assert left_behind(tmp_path.name) == []
    # in this process the step under way is given up; workers end theirs, or a few, until they have heard of it
    saved = checkpoint.newest(Run.of(values).folder / "checkpoints")
    assert saved is not None
    assert saved.step == 12 if here else saved.step >= 13
    if here:
        assert same_bytes(metatrain(Run.of(values)), alone)
        assert metrics(Run.of(values).folder) == metrics(alone.folder)
