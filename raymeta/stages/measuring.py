"""What an evaluation has measured so far: told while it goes on, and kept for one that was stopped."""

import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from raymeta.track import Track, duration, rows
from raymeta.workers import Workers

Tick = Callable[[], None]
"""Called by a worker after each of its episodes."""

Scores = list[dict[str, float]]
"""The metrics of each episode, by their names."""

_EVERY_S = 2.0
_ALL = 2**62


class Measuring:
    """The rows of an evaluation as they are measured. Every worker makes one; the first writes `path`.

    asked: what is evaluated, and how; rows that were kept of anything else are dropped.
    """

    def __init__(self, path: Path, asked: dict[str, Any], workers: Workers) -> None:
        self.workers = workers
        self._asked = hashlib.sha256(json.dumps(asked, sort_keys=True).encode()).hexdigest()
        self._done, self._what, self._told, self._before = 0, "", time.monotonic(), 0
        kept = (
            [row for row in rows(path) if row.get("asked") == self._asked and isinstance(row.get("found"), list)]
            if workers.first
            else []
        )
        self._known = workers.gathered({tuple(row["key"]): row for row in kept})[0]
        if workers.first:
            if not kept:
                path.unlink(missing_ok=True)
            self._track = Track(path, _ALL)

    def row(self, key: tuple[str, ...], episodes: int, measure: Callable[[Tick], Scores]) -> Scores:
        """The scores of one row of `episodes` episodes: those that were kept, or what `measure` finds."""
        begun, self._what = self._done, ", ".join(k for k in key if k)
        known = self._known.get(key)
        found: Scores = known["found"] if known else measure(self._after_episode)
        self._done = begun + episodes
        if known is None:
            self._write(asked=self._asked, key=list(key), found=found)
        else:
            self._before = self._done
        return found

    def _after_episode(self) -> None:
        self._done += self.workers.count
        if time.monotonic() - self._told >= _EVERY_S:
            self._write()

    def _write(self, **values: Any) -> None:
        if self.workers.first:
            now = time.monotonic()
            each_s = (now - self._told) / max(1, self._done - self._before)
            self._track.row(step=self._done, what=self._what, step_s=each_s, **values)
            self._told, self._before = now, self._done


def progress_line(row: dict[str, Any], episodes: int, eta_s: float | None) -> str:
    """How far an evaluation is, as a line for the console."""
    left = "" if eta_s is None else f"  eta {duration(eta_s)}"
    return f"episode {row['step']}/{episodes}  {row['what']}{left}"
