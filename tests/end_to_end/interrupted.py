"""MAML that something happens to at a given task, once: how tests stop a run at a known place."""

import os
import shutil
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Literal

import torch

from raymeta.algorithms.maml import Maml
from raymeta.errors import UserError
from raymeta.hypergradient import MetaStep
from raymeta.inner import Inner
from raymeta.layers import Params


class Interrupted(Maml):
    """MAML, interrupted where episode `at` is due, if the file `sign` is there to be taken away."""

    at: int
    """The episode."""
    sign: str
    """A file whose removal makes it happen once; absent: nothing happens."""
    how: Literal["killed", "held", "paused", "mistaken", "full", "filled", "removed"]
    """The worker kills itself; it waits, after making the file `sign`.held, to be killed; it does so for some seconds only, and
    goes on; it finds a user's mistake; its memory does not suffice; it fills the disk that `sign` was on; it removes the folder
    that `sign` names."""

    def meta_step(self, inner: Inner, params: Params, step: int) -> MetaStep:
        if any(e.number == self.at for e in inner.episodes) and Path(self.sign).exists():
            named = Path(self.sign).read_text(encoding="utf-8")
            Path(self.sign).unlink()
            if self.how == "full":
                torch.empty(1 << 60)
            if self.how == "filled":
                _fill(Path(f"{self.sign}.filler"))
                return super().meta_step(inner, params, step)
            if self.how == "removed":
                shutil.rmtree(named)
                return super().meta_step(inner, params, step)
            if self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "mistaken":
                raise UserError("algorithm.inner_lr: it is Friday; try again on Monday")
            Path(f"{self.sign}.held").touch()
            time.sleep(4 if self.how == "paused" else 300)
        return super().meta_step(inner, params, step)


def _fill(path: Path) -> None:
    """Writes a file until no space is left."""
    with suppress(OSError), path.open("wb", buffering=0) as file:
        while file.write(b"\0" * 4096):
            pass


class Paced(Maml):
    """MAML that takes its time over each task."""

    pace_s: float
    """Seconds that a task takes, at least."""

    def meta_step(self, inner: Inner, params: Params, step: int) -> MetaStep:
        time.sleep(self.pace_s * len(inner.episodes))
        return super().meta_step(inner, params, step)
