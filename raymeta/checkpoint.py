"""Checkpoints: step_000100/{params.safetensors, outer.safetensors, run.yaml, state.json}, whole or not there at all.

A checkpoint is written under a temporary name and renamed when it is complete. `state.json` holds the checksum of each
file: one that does not match is said, and the checkpoint before it is used.
"""

import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from errno import EAGAIN, EIO, ENOENT, ESTALE, ETIMEDOUT
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from raymeta.errors import UserError, first_line

_FORMAT = 1
_PASSING = (EAGAIN, EIO, ESTALE, ETIMEDOUT)
"""Errors of remote storage that may pass: a checkpoint is then tried again, after these waits."""
_WAITS_S = (1.0, 5.0)


class Locked(UserError):
    """Another process works on the run's folder."""


@dataclass(frozen=True)
class Checkpoint:
    """A complete checkpoint on disk."""

    folder: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Outer steps taken."""
        return int(self.state["step"])

    def params(self) -> dict[str, Tensor]:
        """Meta-parameters by name."""
        found: dict[str, Tensor] = load_file(self.folder / "params.safetensors")
        return found

    def outer(self) -> dict[str, Tensor]:
        """Outer optimizer state by name."""
        found: dict[str, Tensor] = load_file(self.folder / "outer.safetensors")
        return found


def snapshot(
    root: Path,
    step: int,
    params: dict[str, Tensor],
    outer: dict[str, Tensor],
    state: dict[str, Any],
    run_yaml: str,
    keep: int,
) -> Callable[[], Checkpoint]:
    """Copies what is to be saved of `step`, and gives the function that writes it, while training may go on.

    That writes the checkpoint under `root`, then removes all but the newest `keep` and the best. state: plain data to keep beside
    the step; `state["best"]`, if there, is the best checkpoint's {"step": ...}.
    """
    kept_params, kept_outer = (
        {n: t.detach().to("cpu", copy=True).contiguous() for n, t in of.items()} for of in (params, outer)
    )
    kept_state = json.loads(json.dumps(state))

    def write() -> Checkpoint:
        folder = root / f"step_{step:06d}"
        building = root / f".building-{folder.name}"
        for wait_s in (*_WAITS_S, None):
            try:
                whole = _written(building, step, kept_params, kept_outer, kept_state, run_yaml)
                if folder.exists():
                    _remove(folder)
                building.rename(folder)
                break
            except (OSError, SafetensorError) as error:
                shutil.rmtree(building, ignore_errors=True)
                if wait_s is None or not _passes(error):
                    raise unwritable(f"the checkpoint of step {step}", root, error) from error
                time.sleep(wait_s)
        best = (kept_state.get("best") or {}).get("step")
        complete = [p for p in _by_step(root) if (p / "state.json").is_file()]
        for old in complete[:-keep]:
            if old != folder and old.name != f"step_{best or 0:06d}":
                _remove(old)
        return Checkpoint(folder, whole)

    return write


def _passes(error: Exception) -> bool:
    """Whether an error of storage may be gone a little later."""
    number = getattr(error, "errno", None)
    return number in _PASSING or any(f"(os error {n})" in str(error) for n in _PASSING)  # as safetensors says it


def unwritable(what: str, where: Path, error: Exception) -> UserError:
    """What is said where storage fails: nothing that was complete is lost."""
    return UserError(
        f"storage: {what} could not be written to {where} ({first_line(error)}); what was written before is kept. Make room, or bring "
        "the storage back, and start again: the run goes on from its newest checkpoint"
    )


def _written(
    building: Path, step: int, params: dict[str, Tensor], outer: dict[str, Tensor], state: dict[str, Any], run_yaml: str
) -> dict[str, Any]:
    """Writes all files of a checkpoint to the folder `building`, and through to the disk; gives its state."""
    if not building.parents[1].is_dir():
        raise FileNotFoundError(ENOENT, "the run's folder is no longer there")
    for left in building.parent.glob(".*-step_*"):  # by a process that was ended
        shutil.rmtree(left, ignore_errors=True)
    building.mkdir(parents=True)
    for name, tensors in (("params", params), ("outer", outer)):
        save_file(tensors, building / f"{name}.safetensors")
    (building / "run.yaml").write_text(run_yaml, encoding="utf-8")
    sums = {path.name: _synced_checksum(path) for path in sorted(building.iterdir())}
    whole = {"format": _FORMAT, "step": step, **state, "sha256": sums}
    _write_synced(building / "state.json", json.dumps(whole, indent=1))
    return whole


def _by_step(root: Path) -> list[Path]:
    """The folders of checkpoints, oldest first; by number, since a million has a digit more."""
    found = {int(p.name.removeprefix("step_")): p for p in root.glob("step_*") if p.name[5:].isdigit()}
    return [found[step] for step in sorted(found)]


def _remove(folder: Path) -> None:
    """Removes a checkpoint: first its name, at once, then its files."""
    doomed = folder.with_name(f".removed-{folder.name}")
    folder.rename(doomed)
    shutil.rmtree(doomed, ignore_errors=True)


def newest(root: Path, say: Any = print) -> Checkpoint | None:
    """The newest complete checkpoint under `root` whose files match their checksums, or None."""
    for folder in reversed(_by_step(root)):
        try:
            return load(folder)
        except UserError as error:
            say(f"{error}; the checkpoint before it is used")
    return None


def agreed(root: Path, rank: int, gathered: Callable[[Any], list[Any]], patience_s: float = 30) -> Checkpoint | None:
    """The newest checkpoint as the first worker finds it, the same for all: what others see of a shared folder may be older.

    gathered: every worker's object, by rank.
    """
    mine = newest(root, say=lambda _: None) if rank == 0 else None
    step = gathered(mine.step if mine else None)[0]
    if rank == 0 or step is None:
        return mine
    stop = time.monotonic() + patience_s
    while True:
        try:
            return load(root / f"step_{step:06d}")
        except UserError:
            if time.monotonic() > stop:
                raise
            time.sleep(0.5)


def best(root: Path) -> Checkpoint | None:
    """The best checkpoint under `root` by validation (the newest, where nothing was validated), or None."""
    last = newest(root)
    if last is None or not last.state.get("best"):
        return last
    return load(root / f"step_{last.state['best']['step']:06d}")


def load(folder: Path) -> Checkpoint:
    """The checkpoint in `folder`; raises UserError where it is incomplete or damaged."""
    try:
        state = json.loads((folder / "state.json").read_text(encoding="utf-8"))
        sums = dict(state["sha256"])
        int(state["step"])
    except (FileNotFoundError, NotADirectoryError) as error:
        raise UserError(
            f"{folder} is not a checkpoint: it has no state.json; give a folder like .../checkpoints/step_000100"
        ) from error
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"checkpoint {folder} is damaged: its state.json cannot be read ({error})") from error
    for name, expected in sums.items():
        path = folder / name
        if not path.is_file():
            raise UserError(f"checkpoint {folder} is damaged: {name} is missing")
        if _checksum(path) != expected:
            raise UserError(f"checkpoint {folder} is damaged: {name} does not match its checksum")
    return Checkpoint(folder, state)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keeps a run's folder, made if need be, to one process; raises UserError while another one works on it.

    The lock goes with the process, however it ends.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            raise Locked(
                f"{folder}: another raymeta ({file.read().strip()}) is working on this run; wait until it is done, or end it"
            ) from error
        except OSError as error:
            print(
                f"{folder}: this file system cannot lock a file ({error}); take care not to start the run twice at once"
            )
        file.truncate(0)
        file.write(f"process {os.getpid()} on {os.uname().nodename}\n")
        file.flush()
        yield


@contextmanager
def writer(folder: Path, patience_s: float = 120) -> Iterator[None]:
    """Keeps what workers write to a run's folder to one of them: waits until one that the run has given up has ended.

    Where a worker is replaced because nothing is heard of it, the one before may still be about to write.
    """
    with (folder / "writer").open("a", encoding="utf-8") as file:
        stop = time.monotonic() + patience_s
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError as error:
                if time.monotonic() > stop:
                    raise RuntimeError(f"{folder}: a worker that was given up still writes to this folder") from error
                time.sleep(0.2)
            except OSError:
                break  # this file system has no locks; `locked` has said so
        yield


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _synced_checksum(path: Path) -> str:
    """The checksum of a file that is on the disk: checkpoints before it are removed once this one is complete."""
    with path.open("rb+") as file:
        os.fsync(file.fileno())
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
