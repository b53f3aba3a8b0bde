"""Ways back through the inner loop: from the query loss of adapted parameters to the gradient of the meta-parameters.

Exact: `unrolled` keeps every step's graph; `recomputed` keeps only the parameters between steps, and walks back one step
at a time. Approximate: `finite_difference` replaces each Hessian-vector product by a difference of two gradients, of
relative error about 1e-4 to 2e-3 for a pretrained model and small steps (`raymeta check` measures it for a run), so that
first-order kernels suffice.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from raymeta.inner import Fast, Inner, Params, Step

How = Callable[[Params, int], Step]
"""How inner step t (from 0) goes, given the local parameters (which hold learned rates)."""

_EPSILON = 1e-5
"""Length of a finite difference's step, as a share of the norm of what adapts: between its curvature and rounding."""


@dataclass(frozen=True)
class MetaStep:
    """The meta-gradient of one or several tasks, summed over them.

    grads: by name (the token embedding's are [row, hidden], for `rows` of it); a parameter that the loss does not reach is
    absent. losses: query loss after adaptation, [task]. outputs: each task's query logits, [item, output].
    """

    grads: Params
    rows: Tensor
    losses: Tensor
    outputs: list[Tensor]


def unrolled(inner: Inner, params: Params, steps: int, how: How, weights: Sequence[float] | None = None) -> MetaStep:
    """By reverse-mode differentiation through every step that is kept differentiable.

    Exact where steps keep their graph; with detached steps, first-order MAML. Memory grows with the kept steps.
    weights: of the query loss after each step, [steps]; absent: only the last counts.
    """
    local = inner.opened(params)
    fast = inner.start(local)
    total: Tensor | None = None
    for t in range(steps):
        fast = inner.step(fast, how(local, t))
        if weights is not None and weights[t] and t + 1 < steps:
            part = weights[t] * inner.query_losses(inner.query_logits(fast)).sum()
            total = part if total is None else total + part
    logits = inner.query_logits(fast)
    losses = inner.query_losses(logits)
    last = losses.sum() * (1.0 if weights is None or not steps else weights[-1])
    return _step(inner, local, _gradient(last if total is None else total + last, local), losses, logits)


def recomputed(inner: Inner, params: Params, steps: int, how: How, weights: Sequence[float] | None = None) -> MetaStep:
    """By walking back over the steps, each computed again from the parameters before it: one step's graph at a time.

    The same gradient as `unrolled` for a third more time; memory grows only with the parameters (or the dual form's
    history) of each step.
    """
    if steps == 0:
        return unrolled(inner, params, steps, how)
    local = inner.opened(params)
    with torch.no_grad():
        states = [inner.start(local)]
        for t in range(steps):
            states.append(replace(inner.step(states[-1], how(local, t)), seen={}))
            states[t] = replace(states[t], features=None, seen={})
    grads: Params = {}
    fast, leaves = _leaf(states.pop(), local)
    logits = inner.query_logits(fast)
    losses = inner.query_losses(logits)
    back = _collect(losses.sum() * (1.0 if weights is None else weights[-1]), leaves, local, grads)
    del fast, leaves  # what is done with is let go, here and below, for it is as large as the model
    for t in range(steps - 1, 0, -1):
        weight = 0.0 if weights is None else weights[t - 1]
        back = _before(inner, states.pop(), how(local, t), back, weight, local, grads)
    _through(inner.step(inner.start(local), how(local, 0)), back, {}, local, grads)
    return _step(inner, local, grads, losses, logits)


def _before(inner: Inner, state: Fast, how: Step, back: Params, weight: float, local: Params, grads: Params) -> Params:
    """The gradient `back` after an inner step, carried to the state before it; `weight`: of the query loss there."""
    fast, leaves = _leaf(state, local)
    through = _through(inner.step(fast, how), back, leaves, local, grads)
    if not weight:
        return through
    fast, leaves = _leaf(state, local)
    direct = _collect(weight * inner.query_losses(inner.query_logits(fast)).sum(), leaves, local, grads)
    return _sum(through, direct)


def finite_difference(
    inner: Inner, params: Params, steps: int, how: How, weights: Sequence[float] | None = None
) -> MetaStep:
    """As `recomputed`, each Hessian-vector product H u replaced by (g(theta + e u) - g(theta)) / e: approximate.

    Needs materialised linear layers, inner steps without clipping, and only the last query loss.
    """
    assert not inner.dual, "finite differences move adapted weights, which the dual form never makes"
    assert weights is None, "finite differences look at the last query loss only"
    if steps == 0:
        return unrolled(inner, params, steps, how)
    local = inner.opened(params)
    start = inner.start(local)
    shared = {n: p for n, p in start.shared.items() if p.requires_grad}
    trail: list[tuple[Fast, Params, Params]] = []
    fast = replace(start, features=None)
    for t in range(steps):
        fast, of_moving, of_shared = _plain_gradient(inner, fast, shared)
        trail.append((fast, of_moving, of_shared))
        fast = _descended(inner, fast, of_moving, how(local, t))
    grads: Params = {}
    fast, leaves = _leaf(fast, local)
    logits = inner.query_logits(fast)
    losses = inner.query_losses(logits)
    back = _collect(losses.sum(), leaves, local, grads)
    for t in range(steps - 1, -1, -1):
        before, of_moving, of_shared = trail.pop()
        step = how(local, t)
        push = {n: step.rates(_setting(n)) * v for n, v in back.items()}
        norm = torch.stack([u.detach().square().sum() for u in push.values()]).sum().sqrt()
        if float(norm) == 0.0:
            continue
        length = torch.stack([p.detach().square().sum() for p in before.moving().values()]).sum().sqrt()
        width = _EPSILON * length / norm
        ahead = before.moved(
            {n: p + width * push[n].detach() if n in push else p for n, p in before.moving().items()}, before.shared
        )
        _, there_moving, there_shared = _plain_gradient(inner, ahead, shared)
        _rate_gradients(local, back, of_moving, before, step, grads)
        back = {
            n: v - ((there_moving[n] - of_moving[n]) / width + 2 * step.l2 * push[n]) if n in of_moving else v
            for n, v in back.items()
        }
        for name in shared:
            if name in there_shared:
                grads[name] = grads.get(name, 0) - (there_shared[name] - of_shared[name]) / width
    _through(start, {n: v.detach() for n, v in back.items()}, {}, local, grads)
    return _step(inner, local, grads, losses, logits)


def carried_back(
    inner: Inner, params: Params, way: Callable[[Inner, Fast, Params, Params], tuple[Params, Fast]]
) -> MetaStep:
    """For algorithms whose meta-gradient is not that of the unrolled loop: `way` gives the gradient of the tasks' starting
    parameters (and adds that of other local ones to the dictionary it is handed), and the adapted parameters.

    It is carried from there to the meta-parameters: through the head's start, and the rows of the embedding.
    """
    local = inner.opened(params)
    start = inner.start(local)
    grads: Params = {}
    with torch.no_grad():
        fixed = Fast(
            {n: p.detach().requires_grad_() for n, p in start.own.items()},
            {},
            {n: w.detach().requires_grad_() for n, w in start.head.items()},
            start.shared,
        )
        back, fast = way(inner, fixed, local, grads)
        logits = inner.query_logits(fast)
        losses = inner.query_losses(logits)
    _through(start, back, {}, local, grads)
    return _step(inner, local, grads, losses, logits)


WAYS = {"unrolled": unrolled, "recomputed": recomputed, "finite_difference": finite_difference}
"""The ways, by their name in settings."""


def _step(inner: Inner, local: Params, grads: Params, losses: Tensor, logits: Tensor) -> MetaStep:
    return MetaStep(inner.closed(grads), inner.rows.flatten(), losses.detach(), inner.answers(logits))


def _gradient(loss: Tensor, local: Params) -> Params:
    names = [n for n, p in local.items() if p.requires_grad]
    found = torch.autograd.grad(loss, [local[n] for n in names], allow_unused=True)
    return {n: g for n, g in zip(names, found, strict=True) if g is not None}


def _leaf(fast: Fast, local: Params) -> tuple[Fast, Params]:
    """The state on leaves of its own, for the part that moves."""
    leaves = {n: p.detach().requires_grad_() for n, p in fast.moving().items()}
    return fast.moved(leaves, {n: local[n] for n in fast.shared}), leaves


def _collect(loss: Tensor, leaves: Params, local: Params, grads: Params) -> Params:
    """Gradient of `loss` in the leaves; that in local parameters is added to `grads`."""
    return _backward([loss], None, leaves, local, grads)


def _through(after: Fast, back: Params, leaves: Params, local: Params, grads: Params) -> Params:
    """The gradient `back` of the state `after`, carried to the leaves it was made from and to local parameters."""
    pairs = [(get_gradient_edge(p), back[n]) for n, p in after.moving().items() if n in back and p.requires_grad]
    del after  # the way back needs its graph, not its values
    return _backward([e for e, _ in pairs], [g for _, g in pairs], leaves, local, grads) if pairs else {}


def _backward(
    outputs: list[Tensor] | list[GradientEdge], given: list[Tensor] | None, leaves: Params, local: Params, grads: Params
) -> Params:
    names = [n for n, p in local.items() if p.requires_grad]
    found = torch.autograd.grad(outputs, [*leaves.values(), *(local[n] for n in names)], given, allow_unused=True)
    for name, grad in zip(names, found[len(leaves) :], strict=True):
        if grad is not None:
            grads[name] = grads[name] + grad if name in grads else grad
    return {n: g for n, g in zip(leaves, found[: len(leaves)], strict=True) if g is not None}


def _sum(one: Params, other: Params) -> Params:
    return {n: one[n] + other[n] if n in one and n in other else one.get(n, other.get(n)) for n in {**one, **other}}  # type: ignore[misc]


def _setting(moving: str) -> str:
    """The name by which rates know a moving tensor."""
    return moving.replace("head.fast.", "head.")


def _plain_gradient(inner: Inner, fast: Fast, shared: Params) -> tuple[Fast, Params, Params]:
    """The state, detached, and the support loss's gradient in what moves and in shared parameters."""
    leaves = {n: p.detach().requires_grad_() for n, p in fast.moving().items()}
    fixed = {n: shared[n].detach().requires_grad_() if n in shared else p for n, p in fast.shared.items()}
    at = fast.moved(leaves, fixed)
    names = list(shared)
    with torch.enable_grad():
        loss = inner.support_losses(at).sum()
        found = torch.autograd.grad(loss, [*leaves.values(), *(fixed[n] for n in names)], allow_unused=True)
    moving = {n: g for n, g in zip(leaves, found, strict=False) if g is not None}
    if inner.network.backbone.adapt == "body":
        moving = {n: g for n, g in moving.items() if not n.startswith("head.fast.")}
    return at, moving, {n: g for n, g in zip(names, found[len(leaves) :], strict=True) if g is not None}


def _descended(inner: Inner, fast: Fast, grads: Params, step: Step) -> Fast:
    moved = {}
    for name, old in fast.moving().items():
        value = old.detach()
        if name in grads:
            value = value - step.rates(_setting(name)) * (grads[name] + 2 * step.l2 * value)
        moved[name] = value.detach()
    return replace(fast.moved(moved, fast.shared), steps=fast.steps + 1)


def _rate_gradients(local: Params, back: Params, of_moving: Params, before: Fast, step: Step, grads: Params) -> None:
    """Adds the gradient of learned rates: theta - rate * g has the derivative -g in its rate."""
    rated = [n for n in local if n.startswith("rates") and local[n].requires_grad]
    if not rated:
        return
    moving = before.moving()
    with torch.enable_grad():
        total = sum(
            -(step.rates(_setting(n)) * (back[n] * (g + 2 * step.l2 * moving[n])).detach()).sum()
            for n, g in of_moving.items()
            if n in back
        )
    assert isinstance(total, Tensor)
    found = torch.autograd.grad(total, [local[n] for n in rated], allow_unused=True)
    for name, grad in zip(rated, found, strict=True):
        if grad is not None:
            grads[name] = grads[name] + grad if name in grads else grad
