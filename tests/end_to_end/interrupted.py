"""MAML that something happens to at a given task, once: how tests stop a run at a known place."""

import os
import signal
import time
from pathlib import Path
from typing import Literal

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
    how: Literal["killed", "held", "mistaken"]
    """The worker kills itself; it waits, after making the file `sign`.held, to be killed; it finds a user's mistake."""

    def meta_step(self, inner: Inner, params: Params, step: int) -> MetaStep:
        if any(e.number == self.at for e in inner.episodes) and Path(self.sign).exists():
            Path(self.sign).unlink()
            if self.how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            if self.how == "mistaken":
                raise UserError("algorithm.inner_lr: it is Friday; try again on Monday")
            Path(f"{self.sign}.held").touch()
            time.sleep(300)
        return super().meta_step(inner, params, step)
