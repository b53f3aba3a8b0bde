"""Meta-SGD: a step size of its own for every parameter, learned with the initialisation.

Li, Zhou, Chen and Li 2017, https://arxiv.org/abs/1707.09835, equation 2: theta' = theta - alpha o grad L_support(theta),
with alpha as large as theta and learned by the outer loop.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field

from raymeta.algorithms import Algorithm
from raymeta.episodes import Episode
from raymeta.hypergradient import WAYS, MetaStep
from raymeta.inner import Fast, Inner, Step, TaskLoss
from raymeta.layers import Params
from raymeta.model import Network


class MetaSgd(Algorithm):
    """Learns the initialisation and an elementwise step size: twice the memory of MAML, and faster adaptation.

    The token embedding has one step size for each of its dimensions (its rows differ from episode to episode), and the head
    one for all of it.
    """

    inner_lr: float = Field(0.05, gt=0)
    """Every step size at first."""
    inner_steps: int = Field(1, ge=1)
    """Gradient steps on each task's support set (the paper takes one)."""
    l2: float = Field(0.0, ge=0)
    """Lambda: the inner objective is L + l2 * |theta|^2 over what adapts."""
    second_order: Literal["unrolled", "recomputed"] = "unrolled"
    """How the gradient goes back through the inner steps; both are exact."""

    def init(self, network: Network) -> Params:
        params = network.params()
        rates = {
            f"rates.{n}": torch.full_like(params[n], self.inner_lr) for n in network.adapted if n != network.embedding
        }
        if network.embedding in network.adapted:
            rates[f"rates.{network.embedding}"] = torch.full_like(params[network.embedding][0], self.inner_lr)
        return {**rates, "rates.head": torch.full((1,), self.inner_lr)}

    def bound(
        self,
        network: Network,
        tasks: TaskLoss,
        episodes: Sequence[Episode],
        seed: int | None = None,
        learn: bool = True,
    ) -> Inner:
        return Inner(network, tasks, episodes, seed, twice=learn)

    def _how(self, local: Params, t: int) -> Step:
        return Step(lambda name: local["rates.head" if name.startswith("head.") else f"rates.{name}"], self.l2)

    def adapt(self, inner: Inner, local: Params, steps: int | None = None) -> Fast:
        fast = inner.start(local)
        for t in range(self.inner_steps if steps is None else steps):
            fast = inner.step(fast, self._how(local, t))
        return fast

    def meta_step(self, inner: Inner, params: Params, step: int) -> MetaStep:
        return WAYS[self.second_order](inner, params, self.inner_steps, self._how, None)
