"""iMAML: the meta-gradient of where the inner loop ends, whatever way it took there.

Rajeswaran, Finn, Kakade and Levine 2019, https://arxiv.org/abs/1909.04630. The inner loop minimises
L_support(phi') + proximal / 2 |phi' - phi|^2 (equation 4); at its minimum, the meta-gradient is
(I + H / proximal)^-1 grad L_query(phi') with H the support loss's Hessian there (lemma 1), solved by conjugate gradients
(algorithm 2). Memory does not grow with inner steps.
"""

from collections.abc import Sequence

import torch
from pydantic import Field
from torch import Tensor

from raymeta.algorithms import Algorithm
from raymeta.episodes import Episode
from raymeta.hypergradient import MetaStep, carried_back
from raymeta.inner import Fast, Inner, Step, TaskLoss
from raymeta.layers import Params
from raymeta.model import Network


class Imaml(Algorithm):
    """Implicit gradients: any number of inner steps at the memory of one; wants the inner loop to come near its minimum."""

    inner_lr: float = Field(0.05, gt=0)
    """Step size of the inner gradient descent; below 2 / (proximal + largest curvature), or it diverges."""
    inner_steps: int = Field(5, ge=1)
    """Gradient steps on each task's support set."""
    proximal: float = Field(2.0, gt=0)
    """The paper's lambda: how strongly a task's parameters are held to the initialisation."""
    conjugate_steps: int = Field(5, ge=1)
    """Steps of the conjugate gradient solver, each one Hessian-vector product."""
    l2: float = Field(0.0, ge=0)
    """Lambda of L + l2 * |theta|^2 over what adapts."""

    def bound(
        self,
        network: Network,
        tasks: TaskLoss,
        episodes: Sequence[Episode],
        seed: int | None = None,
        learn: bool = True,
    ) -> Inner:
        return Inner(network, tasks, episodes, seed, twice=learn)

    def adapt(self, inner: Inner, local: Params, steps: int | None = None) -> Fast:
        return self._descended(inner, inner.start(local), self.inner_steps if steps is None else steps)

    def _descended(self, inner: Inner, start: Fast, steps: int) -> Fast:
        anchor = {**start.own, **{f"head.{n}": w for n, w in start.head.items()}}
        how = Step(
            lambda name: self.inner_lr,
            self.l2,
            proximal=self.proximal,
            anchor={n: p.detach() for n, p in anchor.items()},
        )
        fast = start
        for _ in range(steps):
            fast = inner.step(fast, how)
        return fast

    def meta_step(self, inner: Inner, params: Params, step: int) -> MetaStep:
        return carried_back(inner, params, self._way)

    def _way(self, inner: Inner, start: Fast, local: Params, grads: Params) -> tuple[Params, Fast]:
        fast = self._descended(inner, start, self.inner_steps)
        names = [
            n for n in fast.moving() if not (inner.network.backbone.adapt == "body" and n.startswith("head.fast."))
        ]
        with torch.enable_grad():
            leaves = {n: p.detach().requires_grad_() for n, p in fast.moving().items()}
            wanted = {n: p for n, p in local.items() if p.requires_grad}
            at = fast.moved(leaves, {n: local[n] for n in fast.shared})
            query = inner.query_losses(inner.query_logits(at)).sum()
            found = torch.autograd.grad(query, [*(leaves[n] for n in leaves), *wanted.values()], allow_unused=True)
            target = [_or_zero(g, leaves[n]) for n, g in zip(leaves, found, strict=False) if n in names]
            for name, grad in zip(wanted, found[len(leaves) :], strict=True):
                if grad is not None:
                    grads[name] = grads[name] + grad if name in grads else grad
            support = inner.support_losses(at).sum() + self.l2 * sum(leaves[n].square().sum() for n in names)
            slope = torch.autograd.grad(support, [leaves[n] for n in names], create_graph=True, allow_unused=True)
        slopes = [_or_zero(g, leaves[n]) for n, g in zip(names, slope, strict=True)]

        def curved(vector: list[Tensor]) -> list[Tensor]:
            """(I + H / proximal) times a vector; tasks have Hessians of their own, so all are solved together."""
            pairs = [(s, v) for s, v in zip(slopes, vector, strict=True) if s.requires_grad]
            product = torch.autograd.grad(
                [s for s, _ in pairs],
                [leaves[n] for n in names],
                [v for _, v in pairs],
                retain_graph=True,
                allow_unused=True,
            )
            return [v + _or_zero(h, v) / self.proximal for v, h in zip(vector, product, strict=True)]

        solved = _conjugate_gradient(curved, target, self.conjugate_steps)
        pairs = [(s, -v / self.proximal) for s, v in zip(slopes, solved, strict=True) if s.requires_grad]
        if wanted and pairs:
            mixed = torch.autograd.grad(
                [s for s, _ in pairs], list(wanted.values()), [v for _, v in pairs], allow_unused=True
            )
            for name, grad in zip(wanted, mixed, strict=True):
                if grad is not None:
                    grads[name] = grads[name] + grad if name in grads else grad
        return dict(zip(names, solved, strict=True)), fast


def _or_zero(tensor: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if tensor is None else tensor


def _conjugate_gradient(matrix, target: list[Tensor], steps: int) -> list[Tensor]:  # type: ignore[no-untyped-def]
    """x with matrix(x) = target for a symmetric positive definite map, each task (first axis) with step sizes of its own."""

    def dot(a: list[Tensor], b: list[Tensor]) -> Tensor:
        return torch.stack([(x * y).flatten(1).sum(1) for x, y in zip(a, b, strict=True)]).sum(0)

    def plus(a: list[Tensor], factor: Tensor, b: list[Tensor]) -> list[Tensor]:
        return [x + factor.view(-1, *[1] * (x.dim() - 1)) * y for x, y in zip(a, b, strict=True)]

    solved = [torch.zeros_like(t) for t in target]
    rest = [t.clone() for t in target]
    direction = rest
    size = dot(rest, rest)
    for _ in range(steps):
        product = matrix(direction)
        curvature = dot(direction, product)
        step = torch.where(curvature > 0, size / curvature.clamp(min=1e-30), torch.zeros_like(size))
        solved, rest = plus(solved, step, direction), plus(rest, -step, product)
        new = dot(rest, rest)
        direction = plus(rest, new / size.clamp(min=1e-30), direction)
        size = new
    return solved
