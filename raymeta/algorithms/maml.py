"""Model-agnostic meta-learning, and what MAML++ adds to it.

Finn, Abbeel and Levine 2017, https://arxiv.org/abs/1703.03400: the inner loop is equation 1, k times,
theta' <- theta' - inner_lr * grad L_support(theta'); the outer gradient is that of equation 2, L_query(theta').
Antoniou, Edwards and Storkey 2019, https://arxiv.org/abs/1810.09502: multi-step loss (section 4, MSL), learned per-layer
per-step rates (LSLR), derivative-order annealing (DA).
"""

import re
from collections.abc import Sequence
from typing import Literal

import torch
from pydantic import Field, model_validator

from raymeta.algorithms import Algorithm
from raymeta.episodes import Episode
from raymeta.errors import UserError
from raymeta.hypergradient import WAYS, MetaStep, unrolled
from raymeta.inner import Fast, Inner, Step, TaskLoss
from raymeta.layers import Params
from raymeta.model import Network
from raymeta.products import onednn_leads

_LAYER = re.compile(r"^(.*?\.\d+)\.")
_TASKS_AT_ONCE = 8
_FEW, _TOKENS, _TOKENS_FAST, _COPIES = 4, 160, 256, 6
"""On a CPU: tasks at once at most, their support tokens (and where products are quick, in bfloat16 or by a oneDNN that leads),
and how many weights of their own they keep for a layer. Products of so few tokens are the faster the more there are, and the
first step's are shared; larger ones lose (85 tokens a task: 4 %) or gain (with quick products: 2 to 7 %)."""


class Maml(Algorithm):
    """Learns an initialisation from which a few gradient steps fit a new task.

    With `order: 2` and `unrolled`, memory grows with `inner_steps`, since they are kept for the outer gradient.
    """

    inner_lr: float = Field(0.05, gt=0)
    """Step size of the inner SGD (where rates are learned: at first)."""
    inner_steps: int = Field(1, ge=0)
    """Gradient steps on each task's support set; 0 leaves the head's start (with `prototype`: a prototypical network)."""
    order: Literal[1, 2] = 2
    """2 differentiates through the inner steps; 1 takes their gradients as constants (FOMAML, section 5.2)."""
    anneal_order_at: int = Field(0, ge=0)
    """Outer steps that are taken first order before `order: 2` begins (MAML++'s derivative-order annealing)."""
    l2: float = Field(0.0, ge=0)
    """Lambda: the inner objective is L + l2 * |theta|^2 over what adapts."""
    clip: float | None = Field(None, gt=0)
    """Longest inner gradient of a task (Euclidean norm over what adapts); absent: not clipped."""
    learn: Literal["none", "global", "layer", "layer_and_step"] = "none"
    """Which step sizes are meta-learned beside the weights: one, one a layer, or one a layer and step (LSLR)."""
    multi_step_loss: int = Field(0, ge=0)
    """Outer steps over which the query loss after every inner step counts, fading to the last step alone (MSL)."""
    second_order: Literal["auto", "unrolled", "recomputed", "finite_difference"] = "auto"
    """How the gradient goes back through the inner steps: exactly, `unrolled` (fastest) or `recomputed` (least memory), or
    by `finite_difference` (approximate; `raymeta check` says by how much). `auto`: unrolled up to 5 steps, recomputed beyond."""
    linear: Literal["auto", "materialised", "dual"] = "auto"
    """Whether adapted linear layers have weights of their own for each task, or the dual form; `auto`: for each layer, the
    one with fewer operations for these texts."""
    tasks_at_once: int | Literal["auto"] = "auto"
    """Tasks that a worker computes together; `auto`: several where kernels are small (a GPU, a tiny model, short texts and few
    inner steps), else one."""

    @model_validator(mode="after")
    def _fits_together(self) -> "Maml":
        if isinstance(self.tasks_at_once, int) and self.tasks_at_once < 1:
            raise ValueError(f"tasks_at_once: at least 1 task, or auto, not {self.tasks_at_once}")
        if self.linear == "dual":
            for setting in ("l2", "clip"):
                if getattr(self, setting):
                    raise ValueError(
                        f"linear: dual makes no adapted weights, which {setting} needs; use auto or materialised"
                    )
            if self.second_order == "finite_difference":
                raise ValueError(
                    "linear: dual has no adapted weights to move by finite differences; use auto or materialised"
                )
        if self.second_order == "finite_difference" and (self.clip or self.multi_step_loss):
            raise ValueError(
                "second_order: finite_difference works without clip and multi_step_loss; use unrolled or recomputed"
            )
        return self

    # rates

    def init(self, network: Network) -> Params:
        if self.learn == "none" or not self.inner_steps:
            return {}
        groups = 1 if self.learn == "global" else len(self._groups(network))
        steps = self.inner_steps if self.learn == "layer_and_step" else 1
        return {"rates": torch.full((groups, steps), self.inner_lr)}

    def _groups(self, network: Network) -> dict[str, int]:
        """The rate group of each layer's name; what is in no layer is a group, and the head another."""
        names = dict.fromkeys(_group(n) for n in sorted(network.adapted))
        return {name: i for i, name in enumerate([*names, "head"])}

    def _how(self, network: Network, detach: bool) -> "_How":
        return _How(self, {} if self.learn in ("none", "global") else self._groups(network), detach)

    # how it is computed

    def at_once(self, network: Network, episodes: Sequence[Episode]) -> int:
        if not network.batches:
            return 1
        if self.tasks_at_once != "auto":
            return self.tasks_at_once
        some = network.base[network.embedding]
        if some.is_cuda or some.shape[-1] <= 128:
            return _TASKS_AT_ONCE
        if not episodes:
            return 1
        tokens = sum(network.tokens(e.support) for e in episodes) // len(episodes)
        kept = self.inner_steps if self.order == 2 else 1
        quick = network.backbone.precision == "bf16" or onednn_leads()
        room = (_TOKENS_FAST if quick else _TOKENS) // max(1, tokens)
        return max(1, min(_FEW, _COPIES // max(1, kept), room))

    def check(self, network: Network) -> None:
        if isinstance(self.tasks_at_once, int) and self.tasks_at_once > 1 and not network.batches:
            raise UserError(
                f"algorithm.tasks_at_once: {type(network.module).__name__} cannot serve {self.tasks_at_once} tasks in one computation; use 1 or auto"
            )
        if self.linear == "dual" and not network.swapped:
            raise UserError(
                f"algorithm.linear: {type(network.module).__name__} has layers that the dual form does not know; use auto"
            )

    def remarks(self, network: Network, tasks: TaskLoss, episode: Episode, params: Params) -> list[str]:
        if self.second_order != "finite_difference" or self.order == 1 or not self.inner_steps:
            return []
        near, exact = (
            maml.meta_step(maml.bound(network, tasks, [episode]), params, self.anneal_order_at + 1).grads
            for maml in (self, self.model_copy(update={"second_order": "auto"}))
        )
        apart = sum(
            float((near[n] - g).square().sum()) if n in near else float(g.square().sum()) for n, g in exact.items()
        )
        error = (apart / max(sum(float(g.square().sum()) for g in exact.values()), 1e-30)) ** 0.5
        return [
            f"finite differences approximate the meta-gradient: on the sample episode it is {100 * error:.2g} % of its length "
            "away from the exact one (second_order: auto)"
        ]

    def bound(
        self,
        network: Network,
        tasks: TaskLoss,
        episodes: Sequence[Episode],
        seed: int | None = None,
        learn: bool = True,
    ) -> Inner:
        second = learn and self.order == 2 and self.inner_steps > 0 and self.second_order != "finite_difference"
        dual = self._dual(network, episodes, second, learn)
        apart = self.clip is None and not (self.l2 and self.learn != "none") and self.inner_steps > 0
        fused = frozenset(network.linears()) - dual if apart else frozenset()
        return Inner(network, tasks, episodes, seed, dual, second, fused)

    def _dual(self, network: Network, episodes: Sequence[Episode], second: bool, learn: bool) -> frozenset[str]:
        layers = network.linears()
        if (
            self.linear == "materialised"
            or self.l2
            or self.clip
            or (learn and self.second_order == "finite_difference")
        ):
            return frozenset()
        if self.linear == "dual":
            return frozenset(layers)
        support = sum(network.tokens(e.support) for e in episodes) / len(episodes)
        query = sum(network.tokens(e.query) for e in episodes) / len(episodes)
        return frozenset(
            n for n, (i, o) in layers.items() if dual_pays(i, o, support, query, self.inner_steps, second, learn)
        )

    # what is computed

    def adapt(self, inner: Inner, local: Params, steps: int | None = None) -> Fast:
        how = self._how(inner.network, detach=self.order == 1)
        fast = inner.start(local)
        for t in range(self.inner_steps if steps is None else steps):
            fast = inner.step(fast, how(local, t))
        return fast

    def meta_step(self, inner: Inner, params: Params, step: int) -> MetaStep:
        weights = self.loss_weights(step)
        if self.order == 1 or step <= self.anneal_order_at:
            return unrolled(inner, params, self.inner_steps, self._how(inner.network, detach=True), weights)
        way = self.second_order
        if way == "auto":
            way = "unrolled" if self.inner_steps <= 5 else "recomputed"
        return WAYS[way](inner, params, self.inner_steps, self._how(inner.network, detach=False), weights)

    def loss_weights(self, step: int) -> list[float] | None:
        """Weights of the query loss after each inner step at outer step `step`, summing to 1; None: only the last counts."""
        if step > self.multi_step_loss or self.inner_steps < 2:
            return None
        each = (1 - (step - 1) / self.multi_step_loss) / self.inner_steps
        return [each] * (self.inner_steps - 1) + [1 - each * (self.inner_steps - 1)]


class _How:
    """Inner steps with the algorithm's rates, learned or not."""

    def __init__(self, maml: Maml, groups: dict[str, int], detach: bool) -> None:
        self.maml, self.groups, self.detach = maml, groups, detach

    def __call__(self, local: Params, t: int) -> Step:
        maml = self.maml
        rates = local.get("rates")

        def rate(name: str):  # type: ignore[no-untyped-def]
            if rates is None:
                return maml.inner_lr
            group = self.groups.get("head" if name.startswith("head.") else _group(name), 0)
            return rates[group, min(t, rates.shape[1] - 1)]

        return Step(rate, maml.l2, self.detach, maml.clip)


def _group(name: str) -> str:
    found = _LAYER.match(name)
    return found[1] if found else "below"


def dual_pays(inputs: int, outputs: int, support: float, query: float, steps: int, second: bool, learn: bool) -> bool:
    """Whether the dual form of a linear layer takes fewer operations than a matrix for each task.

    support, query: tokens of an episode. A product with an [inputs, outputs] matrix costs 2 n inputs outputs for n tokens;
    exact second order takes 9 of them a support step where the matrix is materialised and 6 in the dual form, which pays
    12 n N (inputs + outputs) more for N tokens of earlier steps; first order takes 3 and 2, and 4 n N (inputs + outputs).
    """
    if steps == 0:
        return False
    product, both = 2 * inputs * outputs, inputs + outputs
    earlier = support * (steps - 1) / 2
    # small batched products run at about two thirds of the speed of a large one
    slow = 1.5
    if second:
        materialised = 9 * steps * support * product
        dual = (
            6 * steps * support * product + slow * (12 * steps * support * earlier + 6 * query * steps * support) * both
        )
    else:
        materialised = 3 * steps * support * product
        dual = (
            2 * steps * support * product
            + slow * (4 * steps * support * earlier + (4 if learn else 2) * query * steps * support) * both
        )
    return dual < materialised
