"""The notice that a run is to end, or to lose a machine: its first worker then writes a checkpoint of the step that it has just done.

Two files in the run's folder carry it, since the one who gives notice and the worker may be on different machines: `heeds-notice`
is there while a worker steps, and is renamed `ends-now` to give notice; the worker removes that when its checkpoint is there.
"""

import math
import time
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, Self

_HEEDS, _NOW = "heeds-notice", "ends-now"
_LEAVING_EVERY_S = 10.0
"""How often steps are saved while a machine is about to be taken away, so that its end costs no more than that."""


def forget(folder: Path) -> None:
    """Removes what processes that were killed have left."""
    for name in (_HEEDS, _NOW):
        (folder / name).unlink(missing_ok=True)


def heed(folder: Path) -> None:
    """The worker says that it will heed a notice from now on."""
    (folder / _HEEDS).touch()


def given(folder: Path) -> bool:
    """Whether notice was given; the worker asks after each step."""
    return (folder / _NOW).exists()


def give(folder: Path, within_s: float) -> bool:
    """Gives notice; whether a worker heeded it. Comes back at once where none would."""
    try:
        (folder / _HEEDS).rename(folder / _NOW)
    except FileNotFoundError:
        return False
    stop = time.monotonic() + within_s
    while given(folder):
        if time.monotonic() > stop:
            return False
        time.sleep(0.05)
    return True


class Saves:
    """Saves steps when they are due, and, where the run is told to end, the last one of which all is done; every few seconds while
    a machine is about to be taken away.

    A step is copied at once and written by a thread while the next ones are taken; one is written at a time, in their order, and
    all are on disk when the block has ended. In this process an interrupt may come at any moment: what a step has then changed
    by half is not saved.
    """

    def __init__(
        self,
        folder: Path,
        first: bool,
        step: Callable[[], int],
        snapshot: Callable[[], Callable[[], Any]],
        leaving: Callable[[], bool] = lambda: False,
    ) -> None:
        """folder: of the run; first: whether this worker writes files; step: the one that parameters are at; snapshot: copies
        what is to be saved, and gives the function that writes it; leaving: whether a machine is about to be taken away."""
        self.folder, self.first, self.step, self.snapshot, self.leaving = folder, first, step, snapshot, leaving
        self._saved = self._done = step()
        self._told, self._saved_at = False, -math.inf
        self._thread = ThreadPoolExecutor(1, "checkpoint")
        self._writing: Future[Any] | None = None

    def done(self, due: bool) -> None:
        """All of a step is done, its rows in metrics.jsonl too; it is saved if it is `due`, or the run is to end.

        Raises what went wrong as an earlier step was written.
        """
        self._done = self.step()
        if not self.first:
            return
        ending = given(self.folder)
        if self._writing is not None and self._writing.done():
            self._written()
        if due or ending or self._going():
            self._save()
        if ending:
            self._written()
            forget(self.folder)

    def _going(self) -> bool:
        """Whether a machine is about to be taken away, and the newest checkpoint is not from a moment ago."""
        if not self.leaving():
            return False
        if not self._told:
            self._told, self._saved_at = True, -math.inf
            print(
                f"a machine of this run is about to be taken away; steps are saved from step {self._done} on",
                flush=True,
            )
        return time.monotonic() - self._saved_at >= _LEAVING_EVERY_S

    def _save(self) -> None:
        self._written()
        self._saved_at = time.monotonic()
        self._writing = self._thread.submit(self.snapshot())
        self._saved = self._done

    def _written(self) -> None:
        """Waits until what is being written is on disk; raises what went wrong."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def __enter__(self) -> Self:
        if self.first:
            heed(self.folder)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self.first:
            return
        try:
            if kind is KeyboardInterrupt and self._saved < self._done == self.step():
                self._save()
            if kind is None or kind is KeyboardInterrupt:
                self._written()
        finally:
            self._thread.shutdown()  # and what is being written is
            forget(self.folder)
