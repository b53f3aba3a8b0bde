"""What a run says of itself: metrics.jsonl, always, and the lines that a person reads."""

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from errno import ENOENT, ENOSPC
from pathlib import Path
from statistics import median
from types import TracebackType
from typing import Any, Self

from raymeta.checkpoint import unwritable


class Track:
    """Appends rows to metrics.jsonl; numbers carry their unit in their name."""

    def __init__(self, path: Path, step: int = 0, of: dict[str, Any] | None = None) -> None:
        """Goes on after `step`: rows of later steps, and a half-written one, are dropped. of: what the rows that are meant
        hold, where the file has others, too."""
        self.path = path
        try:
            if path.exists():
                others = (of or {}).items()
                kept = [row for row in rows(path) if row["step"] <= step or any(row.get(k) != v for k, v in others)]
                temporary = path.with_suffix(".tmp")
                temporary.write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
                temporary.replace(path)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise unwritable("metrics", path, error) from error

    def row(self, **values: Any) -> None:
        """Writes one row."""
        line = (json.dumps(values) + "\n").encode()
        try:
            if self._file.write(line) < len(line):
                raise OSError(ENOSPC, "no space is left")
            if not os.fstat(self._file.fileno()).st_nlink:
                raise FileNotFoundError(ENOENT, "the file was removed while the run wrote to it")
        except OSError as error:
            raise unwritable("metrics", self.path, error) from error


def rows(path: Path) -> list[dict[str, Any]]:
    """The complete rows of a metrics file."""
    found = []
    if path.exists():
        for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue
            if isinstance(row, dict) and "step" in row:
                found.append(row)
    return found


def step_line(row: dict[str, Any], steps: int, eta_s: float | None) -> str:
    """One outer step as a line for the console."""
    numbers = [
        f"{name.removeprefix('query_').replace('_', ' ')} {row[name]:.3f}" for name in row if name.startswith("query_")
    ]
    left = "" if eta_s is None else f"  eta {duration(eta_s)}"
    return (
        f"step {row['step']}/{steps}  query "
        + "  ".join(numbers)
        + f"  grad {row['grad_norm']:.2f}  {row['tasks_per_s']:.1f} tasks/s{left}"
    )


def validation_line(row: dict[str, Any], metric: str) -> str:
    """One validation as a line for the console."""
    best = "  (best so far)" if row.get("best") else ""
    said = f"validation at step {row['step']}: {metric} {100 * row[metric]:.1f} ± {100 * row[metric + '_ci95']:.1f} %"
    of_parts = {name.partition("/")[0]: name for name in reversed(row) if "/" in name and not name.endswith("_ci95")}
    parts = [f"{name} {100 * row[name]:.1f}, " for name in reversed(of_parts.values())]
    return f"{said} ({''.join(parts)}{row['episodes']} episodes{' each' if parts else ''}){best}"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, as a person says them."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


class Follow:
    """Prints a run's progress from its metrics file while its workers write it, wherever they are."""

    def __init__(
        self,
        path: Path,
        steps: int,
        metric: str,
        say: Callable[[str], None] = print,
        every_s: float = 5.0,
        of_step: Callable[[dict[str, Any], int, float | None], str] | None = None,
        of_validation: Callable[[dict[str, Any], str], str] | None = None,
    ) -> None:
        """of_step, of_validation: what is said of a row, where it is not an outer step or a validation over episodes."""
        self.path, self.steps, self.metric, self.say, self.every_s = path, steps, metric, say, every_s
        self.of_step, self.of_validation = of_step or step_line, of_validation or validation_line
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._place, self._rest = 0, ""
        self._before: set[int] = set()
        self._last_said = self._last_step = 0.0
        self._recent: deque[float] = deque(maxlen=20)

    def __enter__(self) -> Self:
        if self.path.exists():
            text = self.path.read_text(encoding="utf-8", errors="replace")
            self._place, self._before = len(text.encode()), {hash(line) for line in text.split("\n")}
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()
        self._look()

    def _follow(self) -> None:
        while not self._done.wait(0.5):
            self._look()

    def _look(self) -> None:
        try:
            size = self.path.stat().st_size
            if size < self._place:  # a resumed run dropped rows; those that stay were said before
                self._place, self._rest = 0, ""
            with self.path.open(encoding="utf-8", errors="replace") as file:
                file.seek(self._place)
                text = file.read()
                self._place = file.tell()
        except OSError:  # there is nothing yet, or storage is away: the one who writes says so
            return
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if hash(line) in self._before:
                continue
            try:
                row = json.loads(line)
            except ValueError:
                continue
            self._tell(row)

    def _tell(self, row: dict[str, Any]) -> None:
        if row["step"] < self._last_step:
            return
        self._last_step = row["step"]
        if row.get("split") == "validation":
            self.say(self.of_validation(row, self.metric))
            return
        for line in row.get("said", []):
            self.say(line)
        if "step_s" not in row:
            return
        self._recent.append(row["step_s"])
        if time.monotonic() - self._last_said >= self.every_s or row["step"] == self.steps:
            self._last_said = time.monotonic()
            # the median, since a first step waits for what starts up; a single one says nothing
            eta_s = median(self._recent) * (self.steps - row["step"]) if len(self._recent) > 1 else None
            self.say(self.of_step(row, self.steps, eta_s))
        for name in row.get("left_out", []):
            self.say(f"step {row['step']}: task {name} had a loss or gradient that is not finite, and was left out")
