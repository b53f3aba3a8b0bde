"""Storage that fails stops a run with its last good step kept, and a message; the same command then goes on."""

import os
import random
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raymeta import checkpoint
from raymeta.config import Run
from raymeta.errors import UserError
from raymeta.stages.metatrain import Result, finished, metatrain
from tests.end_to_end.commands import ended, start, written
from tests.end_to_end.conftest import INTERRUPTED, workers
from tests.end_to_end.outcome import metrics, same_bytes


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 4 MiB."""
    place = tmp_path / "disk"
    place.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(place)], capture_output=True, text=True
    )
    if done.returncode:
        pytest.skip(f"a disk of its own cannot be mounted here: {done.stderr.strip()}")
    yield place
    subprocess.run(["umount", "--lazy", str(place)], check=True)


def interrupted(settings: dict[str, Any], how: str, sign: Path, **sections: Any) -> dict[str, Any]:
    """The small run, to which something happens in step 14."""
    algorithm = {**settings["algorithm"], "kind": INTERRUPTED, "at": 13 * 4 + 1, "sign": str(sign), "how": how}
    return {**settings, "name": f"{how}-{sign.parent.parent.name}", "algorithm": algorithm, **sections}


def newest(run: Run) -> int:
    found = checkpoint.newest(run.folder / "checkpoints")
    assert found is not None
    return found.step


@pytest.mark.parametrize(
    "cluster", ["local-debug", pytest.param(workers(2), marks=pytest.mark.slow)], ids=["in-process", "on-ray"]
)
def test_a_full_disk_stops_a_run_which_goes_on_when_there_is_room(
    cluster: Any, settings: dict[str, Any], small_disk: Path, request: pytest.FixtureRequest
) -> None:
    sign = small_disk / "sign"
    sign.touch()
    unbroken = request.getfixturevalue("alone" if cluster == "local-debug" else "on_two")
    run = Run.of(interrupted(settings, "filled", sign, storage=str(small_disk / "results"), cluster=cluster))
    with pytest.raises(UserError, match=r"storage: .* No space left .* was written before is kept. Make room"):
        metatrain(run)
    assert newest(run) == 10
    Path(f"{sign}.filler").unlink()
    assert same_bytes(metatrain(run), unbroken)
    assert metrics(run.folder) == metrics(unbroken.folder)


def test_storage_that_may_only_be_read_is_a_message(settings: dict[str, Any], small_disk: Path, alone: Result) -> None:
    sign = small_disk / "sign"
    sign.touch()
    values = interrupted(settings, "mistaken", sign, storage=str(small_disk / "results"))
    run = Run.of(values)
    with pytest.raises(UserError, match="it is Friday"):
        metatrain(run)
    command = ("metatrain", written(values, small_disk / "run.yaml"))
    subprocess.run(["mount", "-o", "remount,ro", str(small_disk)], check=True)
    status, said = ended(start(*command))
    subprocess.run(["mount", "-o", "remount,rw", str(small_disk)], check=True)
    assert status == 2
    assert "storage: " in said
    assert "may not be written to; name another place" in said
    assert newest(run) == 10
    assert same_bytes(metatrain(run), alone)
    assert metrics(run.folder) == metrics(alone.folder)


def test_a_folder_that_is_removed_stops_a_run_with_a_message(
    settings: dict[str, Any], tmp_path: Path, alone: Result
) -> None:
    sign = tmp_path / "sign"
    run = Run.of(interrupted(settings, "removed", sign, storage=str(tmp_path / "results")))
    sign.write_text(str(run.folder))
    with pytest.raises(UserError, match=r"storage: metrics could not be written to .* the file was removed"):
        metatrain(run)
    assert not run.folder.exists()
    assert same_bytes(metatrain(run), alone)
    assert metrics(run.folder) == metrics(alone.folder)


def test_a_clock_that_jumps_changes_nothing(
    settings: dict[str, Any], tmp_path: Path, alone: Result, monkeypatch: pytest.MonkeyPatch
) -> None:
    sign = tmp_path / "sign"
    sign.touch()
    run = Run.of(interrupted(settings, "mistaken", sign, storage=str(tmp_path / "results")))
    jumps = random.Random(0)
    monkeypatch.setattr(time, "time", lambda: jumps.uniform(0, 2**32))
    monkeypatch.setattr(time, "time_ns", lambda: jumps.randrange(2**62))
    with pytest.raises(UserError, match="it is Friday"):
        metatrain(run)
    for path in [run.folder, *run.folder.rglob("*")]:
        when = jumps.uniform(0, 2**32)
        os.utime(path, (when, when))
    assert finished(run) is None
    assert same_bytes(metatrain(run), alone)
    assert metrics(run.folder) == metrics(alone.folder)


@pytest.mark.parametrize(
    "cluster", ["local-debug", pytest.param(workers(1), marks=pytest.mark.slow)], ids=["in-process", "on-ray"]
)
def test_memory_that_does_not_suffice_is_advice(
    cluster: Any, settings: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    if cluster != "local-debug":
        request.getfixturevalue("ray_cluster")
    sign = tmp_path / "sign"
    sign.touch()
    run = Run.of(interrupted(settings, "full", sign, storage=str(tmp_path / "results"), cluster=cluster))
    with pytest.raises(
        UserError, match=r"memory did not suffice .* lower what is computed at once \(algorithm.tasks_at_once"
    ):
        metatrain(run)
    assert newest(run) == 10
