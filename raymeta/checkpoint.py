"""Checkpoints: step_000100/{params.safetensors, outer.safetensors, run.yaml, state.json}, whole or not there at all.

A checkpoint is written under a temporary name and renamed when it is complete. `state.json` holds the checksum of each
file: one that does not match is said, and the checkpoint before it is used.
"""

import fcntl
import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor

from raymeta.errors import UserError

_FORMAT = 1


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


def save(
    root: Path,
    step: int,
    params: dict[str, Tensor],
    outer: dict[str, Tensor],
    state: dict[str, Any],
    run_yaml: str,
    keep: int,
) -> Checkpoint:
    """Writes the checkpoint of `step` under `root`, then removes all but the newest `keep` and the best.

    state: plain data to keep beside the step; `state["best"]`, if there, is the best checkpoint's {"step": ...}.
    """
    folder = root / f"step_{step:06d}"
    for left in root.glob(".*-step_*"):  # by a process that was ended
        shutil.rmtree(left, ignore_errors=True)
    building = root / f".building-{folder.name}"
    building.mkdir(parents=True)
    for name, tensors in (("params", params), ("outer", outer)):
        save_file(
            {n: t.detach().cpu().contiguous().clone() for n, t in tensors.items()}, building / f"{name}.safetensors"
        )
    (building / "run.yaml").write_text(run_yaml, encoding="utf-8")
    sums = {path.name: _checksum(path) for path in sorted(building.iterdir())}
    whole = {"format": _FORMAT, "step": step, **state, "sha256": sums}
    _write_synced(building / "state.json", json.dumps(whole, indent=1))
    if folder.exists():
        _remove(folder)
    building.rename(folder)
    best = (state.get("best") or {}).get("step")
    complete = [p for p in _by_step(root) if (p / "state.json").is_file()]
    for old in complete[:-keep]:
        if old != folder and old.name != f"step_{best or 0:06d}":
            _remove(old)
    return Checkpoint(folder, whole)


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


def _checksum(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _write_synced(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
