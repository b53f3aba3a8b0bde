"""Reptile: move the initialisation towards where plain SGD on each task ends.

Nichol, Achiam and Schulman 2018, https://arxiv.org/abs/1803.02999, algorithm 2: with phi the initialisation and W the
parameters after k steps, (phi - W) / alpha serves as the meta-gradient; no second derivative, and no query set, is needed.
"""

from pydantic import Field

from raymeta.algorithms import Algorithm
from raymeta.hypergradient import MetaStep, carried_back
from raymeta.inner import Fast, Inner, Step
from raymeta.layers import Params


class Reptile(Algorithm):
    """First-order, and without a query loss: cheap, for long inner loops. The query loss is measured, not learned from."""

    inner_lr: float = Field(0.02, gt=0)
    """Step size of the inner SGD (the paper's alpha)."""
    inner_steps: int = Field(5, ge=1)
    """Gradient steps on each task's support set; with 1, Reptile is joint SGD over tasks."""
    l2: float = Field(0.0, ge=0)
    """Lambda: the inner objective is L + l2 * |theta|^2 over what adapts."""

    def _how(self) -> Step:
        return Step(lambda name: self.inner_lr, self.l2)

    def adapt(self, inner: Inner, local: Params, steps: int | None = None) -> Fast:
        fast = inner.start(local)
        for _ in range(self.inner_steps if steps is None else steps):
            fast = inner.step(fast, self._how())
        return fast

    def meta_step(self, inner: Inner, params: Params, step: int) -> MetaStep:
        return carried_back(inner, params, self._way)

    def _way(self, inner: Inner, start: Fast, local: Params, grads: Params) -> tuple[Params, Fast]:
        fast = start
        for _ in range(self.inner_steps):
            fast = inner.step(fast, self._how())
        before, after = start.moving(), fast.moving()
        return {n: (before[n] - after[n]) / self.inner_lr for n in after}, fast
