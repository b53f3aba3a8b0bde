"""iMAML: the meta-gradient of where the inner loop ends, whatever way it took there.

Rajeswaran, Finn, Kakade and Levine 2019, https://arxiv.org/abs/1909.04630. The inner loop minimises
L_support(phi') + proximal / 2 |phi' - phi|^2 (equation 4); at its minimum, the meta-gradient is
(I + H / proximal)^-1 grad L_query(phi') with H the support loss's Hessian there (lemma 1), solved by conjugate gradients
(algorithm 2). Memory does not grow with inner steps.
"""

from collections.abc import Callable, Sequence

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
        body = inner.network.backbone.adapt == "body"
        with torch.enable_grad():
            leaves = {n: p.detach().requires_grad_() for n, p in fast.moving().items()}
            at = fast.moved(leaves, {n: local[n] for n in fast.shared})
            names = [n for n in leaves if not (body and n.startswith("head.fast."))]
            moving = [leaves[n] for n in names]
            # what the losses read beside what moves: other meta-parameters, and the head's start where it stays
            still = {n: p for n, p in {**local, **leaves}.items() if p.requires_grad and n not in names}
            query = inner.query_losses(inner.query_logits(at)).sum()
            found = torch.autograd.grad(query, [*moving, *still.values()], allow_unused=True)
            support = inner.support_losses(at).sum() + self.l2 * sum(p.square().sum() for p in moving)
            slope = torch.autograd.grad(support, moving, create_graph=True, allow_unused=True)
        target = [_or_zero(g, p) for g, p in zip(found, moving, strict=False)]
        curves = [g is not None and g.requires_grad for g in slope]
        slopes = [g for g in slope if g is not None and g.requires_grad]

        def product(vector: list[Tensor], of: list[Tensor], keep: bool = True) -> list[Tensor]:
            """The gradient's slope times a vector, by what `of` it is a slope in."""
            if not (slopes and of):
                return [torch.zeros_like(p) for p in of]
            given = [v for v, bent in zip(vector, curves, strict=True) if bent]
            back = torch.autograd.grad(slopes, of, given, retain_graph=keep, allow_unused=True)
            return [_or_zero(g, p) for g, p in zip(back, of, strict=True)]

        def matrix(vector: list[Tensor]) -> list[Tensor]:
            """(I + H / proximal) times a vector; tasks have Hessians of their own, so all are solved together."""
            return [v + h / self.proximal for v, h in zip(vector, product(vector, moving), strict=True)]

        solved = _conjugate_gradient(matrix, target, self.conjugate_steps)
        mixed = product(solved, list(still.values()), keep=False)
        back = dict(zip(names, solved, strict=True))
        for name, grad, through in zip(still, found[len(moving) :], mixed, strict=True):
            (back if name in leaves else grads)[name] = _or_zero(grad, through) - through / self.proximal
        return back, fast


def _or_zero(tensor: Tensor | None, like: Tensor) -> Tensor:
    return torch.zeros_like(like) if tensor is None else tensor


def _conjugate_gradient(
    matrix: Callable[[list[Tensor]], list[Tensor]], target: list[Tensor], steps: int
) -> list[Tensor]:
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
