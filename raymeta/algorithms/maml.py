"""Model-agnostic meta-learning.

Finn, Abbeel and Levine 2017, https://arxiv.org/abs/1703.03400. The inner loop is equation 1, k times:
theta' <- theta' - inner_lr * grad L_support(theta'); the outer gradient is that of equation 2, L_query(theta').
"""

from typing import Literal

from pydantic import Field

from raymeta.algorithms import Algorithm
from raymeta.hypergradient import MetaStep, unrolled
from raymeta.model import Fast, Inner, Params


class Maml(Algorithm):
    """Learns an initialisation from which a few gradient steps fit a new task.

    With `order: 2` memory grows with `inner_steps`, since the inner steps are kept for the outer gradient.
    """

    inner_lr: float = Field(0.01, gt=0)
    """Step size of the inner SGD."""
    inner_steps: int = Field(3, ge=0)
    """Gradient steps on each task's support set; 0 leaves the head's start (with `prototype`: a prototypical network)."""
    order: Literal[1, 2] = 2
    """2 differentiates through the inner steps; 1 takes their gradients as constants (FOMAML, section 5.2)."""
    l2: float = Field(0.0, ge=0)
    """Lambda: the inner objective is L + l2 * |theta|^2 over what adapts."""

    @property
    def needs_second_order(self) -> bool:
        return self.order == 2 and self.inner_steps > 0

    def adapt(self, inner: Inner, local: Params, steps: int | None = None) -> Fast:
        fast = inner.start(local)
        for _ in range(self.inner_steps if steps is None else steps):
            fast = inner.step(fast, self.inner_lr, self.l2, detach=self.order == 1)
        return fast

    def meta_step(self, inner: Inner, params: Params) -> MetaStep:
        return unrolled(inner, params, self.adapt)
