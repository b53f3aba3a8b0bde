"""Ways back through the inner loop: from the query loss of adapted parameters to the gradient of the meta-parameters.

Exact: `unrolled` keeps every step's graph; `recomputed` keeps only the parameters between steps, and walks back one step
at a time. Approximate: `finite_difference` replaces each Hessian-vector product by a difference of two gradients, of
relative error about 1e-4 to 2e-3 for a pretrained model and small steps (`raymeta check` measures it for a run), so that
first-order kernels suffice.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from raymeta.inner import Fast, Inner, Params, Step, descent
from raymeta.layers import History
from raymeta.products import Tape, lowered, summed, times

How = Callable[[Params, int], Step]
"""How inner step t (from 0) goes, given the local parameters (which hold learned rates)."""

_EPSILON = {"float32": 1e-5, "bf16": 2e-4}
"""Length of a finite difference's step, as a share of the norm of what adapts: between its curvature and rounding (in bfloat16
MiniLM's meta-gradient is 2 % off, with a step of 1e-5 as far as one of first order)."""

_MANY = 128
"""Tokens of a task from which on a finite difference keeps a weight's gradient rather than multiply it out twice."""


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
    """By reverse-mode differentiation through every step, whose graphs are kept. Exact; with detached steps, first-order MAML.

    Memory grows with the steps. weights: of the query loss after each step, [steps]; absent: only the last counts.
    """
    return _walked(inner, params, steps, how, weights, keep=True)


def recomputed(inner: Inner, params: Params, steps: int, how: How, weights: Sequence[float] | None = None) -> MetaStep:
    """By walking back over the steps, each computed again from the parameters before it: one step's graph at a time.

    The same gradient as `unrolled` for a third more time; memory grows only with the parameters (or the dual form's
    history) of each step.
    """
    return _walked(inner, params, steps, how, weights, keep=False)


def _walked(
    inner: Inner, params: Params, steps: int, how: How, weights: Sequence[float] | None, keep: bool
) -> MetaStep:
    """Forward over the steps, each of which starts from leaves, and back; `keep`: with the graphs of the way forward."""
    local = inner.opened(params)
    grads: Params = {}
    if steps == 0:
        start = inner.start(local)
        back, losses, logits = _of_query(inner, start, {}, 1.0, _Back({}, {}), local, grads, start.tape)
        _whole(back, grads)
        return _step(inner, local, grads, losses, logits)
    trail: list[tuple[Fast, Params, Fast | None]] = []
    with torch.set_grad_enabled(keep):
        after = inner.step(inner.start(local), how(local, 0))
    first = _light(after) if keep else None
    for t in range(1, steps):
        fast, leaves = _leaf(after, local)
        with torch.set_grad_enabled(keep):
            after = inner.step(fast, how(local, t))
        trail.append((fast, leaves, _light(after) if keep else None))
    fast, leaves = _leaf(after, local)
    del after  # what is done with is let go, here and below, for it is as large as the model
    last = 1.0 if weights is None else weights[-1]
    back, losses, logits = _of_query(inner, fast, leaves, last, _Back({}, {}), local, grads)
    del fast, leaves
    for t in range(steps - 1, 0, -1):
        back = _before(
            inner, trail.pop(), how(local, t), back, 0.0 if weights is None else weights[t - 1], local, grads
        )
    first = first or inner.step(inner.start(local), how(local, 0), again=True)
    _whole(_through(inner, first, back, {}, local, grads, start=True), grads)
    return _step(inner, local, grads, losses, logits)


@dataclass
class _Back:
    """A gradient on its way back. inside: of what moves within the graph, by name; sums: of the weights of fused and dual
    layers, by layer, which are added to in place."""

    inside: Params
    sums: Params


def _whole(back: _Back, grads: Params) -> None:
    """Adds the sums of what has come back to the start to the gradients of local parameters."""
    _add(grads, {f"{n}.weight": v.squeeze(0) for n, v in back.sums.items()})


def _light(after: Fast) -> Fast:
    """Without the fused weights, which the next state holds."""
    return replace(after, own=after.small())


def _of_query(
    inner: Inner,
    fast: Fast,
    leaves: Params,
    weight: float,
    back: _Back,
    local: Params,
    grads: Params,
    start: Tape | None = None,
) -> tuple[_Back, Tensor, Tensor]:
    """`back` and the query loss's gradient times `weight`; the losses and the logits. start: the tape of the forward that the
    graph goes on to, if any."""
    logits = inner.query_logits(fast)
    losses = inner.query_losses(logits)
    tape = inner.query_tape
    tape.sums = back.sums
    if start is not None:
        start.sums = back.sums
    found = _backward(inner, [losses.sum() * weight], None, leaves, local, grads)
    if start is not None:
        start.finish()
    # the values alone: what has been differentiated would hold the adapted weights for as long as its results live
    return _Back(_sum(back.inside, found), tape.finish()), losses.detach(), logits.detach()


def _before(
    inner: Inner,
    kept: tuple[Fast, Params, Fast | None],
    how: Step,
    back: _Back,
    weight: float,
    local: Params,
    grads: Params,
) -> _Back:
    """The gradient `back` after an inner step, carried to the state before it; `weight`: of the query loss there.

    kept: the state before the step on leaves, the leaves, and what came of the step (None: it is taken again)."""
    fast, leaves, after = kept
    back = _through(inner, after or inner.step(fast, how, again=True), back, leaves, local, grads)
    if weight:
        fast, leaves = _leaf(fast, local)
        back, _, _ = _of_query(inner, fast, leaves, weight, back, local, grads)
    return back


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
    trail: list[tuple[Fast, _Slope]] = []
    fast = start
    for t in range(steps):
        step = how(local, t)
        fast, slope = _slope(inner, fast, shared, keep=not step.l2)
        trail.append((replace(fast, own=_without(fast.own, slope.matrices)), slope))
        fast = _descended(fast, slope, step)
    length = _length([*trail[0][0].moving().values(), *(p for n, p in start.own.items() if n not in start.small())])
    grads: Params = {}
    fast, leaves = _leaf(fast, local)
    back, losses, logits = _of_query(inner, fast, leaves, 1.0, _Back({}, {}), local, grads)
    for t in range(steps - 1, -1, -1):
        before, slope = trail.pop()
        fast = before = _ascended(before, fast, slope, how(local, t))
        _difference(inner, before, slope, how(local, t), back, length, shared, local, grads)
    back = _Back({n: v.detach() for n, v in back.inside.items()}, back.sums)
    _whole(_through(inner, start, back, {}, local, grads, start=True), grads)
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
    _through(inner, start, _Back(back, {}), {}, local, grads, start=True)
    return _step(inner, local, grads, losses, logits)


WAYS = {"unrolled": unrolled, "recomputed": recomputed, "finite_difference": finite_difference}
"""The ways, by their name in settings."""


def _step(inner: Inner, local: Params, grads: Params, losses: Tensor, logits: Tensor) -> MetaStep:
    return MetaStep(*inner.closed(grads), losses.detach(), inner.answers(logits))


def _leaf(fast: Fast, local: Params) -> tuple[Fast, Params]:
    """The state on leaves of its own, for the part that moves."""
    leaves = {n: p.detach().requires_grad_() for n, p in fast.moving().items()}
    return fast.moved(leaves, {n: local[n] for n in fast.shared}), leaves


def _through(
    inner: Inner, after: Fast, back: _Back, leaves: Params, local: Params, grads: Params, start: bool = False
) -> _Back:
    """The gradient `back` of the state `after`, carried to the leaves it was made from and to local parameters.

    A fused weight that moved by pull^T inputs sends its gradient to both; what its layer's products add to it on the way is
    summed by their tape. start: the state was made from local parameters, which tasks share.
    """
    outputs, given = [], []
    for name, tensor in after.moving().items():
        if name in back.inside and tensor.requires_grad:
            outputs.append(get_gradient_edge(tensor))
            given.append(back.inside[name])
    for layer, (pull, inputs, factor) in after.pulls.items():
        if layer in back.sums:
            matrix = back.sums[layer].to(pull.dtype)
            matrix = matrix.mT if layer in after.turned else matrix
            outputs.append(get_gradient_edge(pull))
            given.append(times(inputs.detach().to(pull.dtype), matrix.mT).mul_(-factor))
            if inputs.requires_grad:
                outputs.append(get_gradient_edge(inputs))
                given.append(times(pull.detach(), matrix).mul_(-factor).to(inputs.dtype))
    sums = back.sums
    if after.kept != 1.0:
        for layer in after.fused & sums.keys():
            sums[layer].mul_(after.kept)
    if start:
        sums = {n: v if len(v) == 1 else v.sum(0, keepdim=True) for n, v in sums.items()}
    tape = after.tape
    if tape is not None:
        tape.sums = sums
    del after, back  # the way back needs the graph, not its values
    found = _backward(inner, outputs, given, leaves, local, grads) if outputs else {}
    return _Back(found, sums if tape is None else tape.finish())


def _backward(
    inner: Inner,
    outputs: list[Tensor] | list[GradientEdge],
    given: list[Tensor] | None,
    leaves: Params,
    local: Params,
    grads: Params,
) -> Params:
    names = [n for n, p in local.items() if p.requires_grad]
    wanted = [*leaves.values(), *(local[n] for n in names), inner.anchor]
    found = torch.autograd.grad(outputs, wanted, given, allow_unused=True)
    _add(grads, {n: g for n, g in zip(names, found[len(leaves) :], strict=False) if g is not None})
    return {n: g for n, g in zip(leaves, found[: len(leaves)], strict=True) if g is not None}


def _add(grads: Params, more: Params) -> None:
    for name, grad in more.items():
        grads[name] = grads[name] + grad if name in grads else grad


def _sum(one: Params, other: Params) -> Params:
    return {n: one[n] + other[n] if n in one and n in other else one.get(n, other.get(n)) for n in {**one, **other}}  # type: ignore[misc]


def _rate(step: Step, name: str) -> float:
    """The rate of a fused weight, which is one number."""
    rate = step.rates(name)
    return float(rate.detach()) if isinstance(rate, Tensor) else rate


def _setting(moving: str) -> str:
    """The name by which rates know a moving tensor."""
    return moving.replace("head.fast.", "head.")


@dataclass(frozen=True)
class _Slope:
    """The support loss's gradient: in what adapts within the graph, of which the inner step moves `moved` (with adapt: body
    not the head), in shared parameters, and in fused weights, each as (output gradients, inputs), whose product it is."""

    moving: Params
    moved: frozenset[str]
    shared: Params
    products: History
    matrices: Params
    """Of fused weights with so many tokens that a product costs more than to keep it: the product."""


def _slope(inner: Inner, fast: Fast, shared: Params, keep: bool = False) -> tuple[Fast, _Slope]:
    """The state on leaves, without a graph, and the slope there. keep: with products that are needed twice."""
    leaves = {n: p.detach().requires_grad_() for n, p in fast.moving().items()}
    fixed = {n: shared[n].detach().requires_grad_() if n in shared else p for n, p in fast.shared.items()}
    at = fast.moved(leaves, fixed)
    wanted = {**leaves, **{n: fixed[n] for n in shared}}
    found, seen, outputs = (
        _gradients(inner, at, wanted) if fast.features is None else _of_start(inner, fast, at, wanted, shared)
    )
    moving = {n: g for n, g in found.items() if n in leaves}
    stands = inner.network.backbone.adapt == "body"
    moved = frozenset(n for n in moving if not (stands and n.startswith("head.fast.")))
    products = {n: (g, seen[n].detach().to(g.dtype)) for n, g in outputs.items()}
    matrices = {
        f"{layer}.weight": summed(None, *_sides(fast, layer, rows, columns))
        for layer, (rows, columns) in products.items()
        if keep and rows.shape[1] >= _MANY and rows.dtype == fast.own[f"{layer}.weight"].dtype
    }
    return at, _Slope(moving, moved, {n: g for n, g in found.items() if n in shared}, products, matrices)


def _gradients(inner: Inner, at: Fast, wanted: Params) -> tuple[Params, Params, Params]:
    """The support loss's gradient in `wanted`; watched layers' inputs and the gradients at their outputs."""
    with torch.enable_grad():
        losses, seen, tape = inner.support(at)
        found = torch.autograd.grad(losses.sum(), [*wanted.values(), inner.anchor], allow_unused=True)
    return {n: g for n, g in zip(wanted, found, strict=False) if g is not None}, seen, tape.outputs


def _of_start(inner: Inner, start: Fast, at: Fast, wanted: Params, shared: Params) -> tuple[Params, Params, Params]:
    """The same at the start, whose features are known, by their graph, which is left for the way back."""
    assert start.features is not None
    assert start.tape is not None
    features = start.features.detach().requires_grad_()
    with torch.enable_grad():
        losses = inner.support_losses(replace(at, features=features))
        direct = torch.autograd.grad(losses.sum(), [features, *wanted.values()], allow_unused=True)
    found = {n: g for n, g in zip(wanted, direct[1:], strict=True) if g is not None}
    if start.features.requires_grad:
        below = {**start.small(), **shared}
        through = torch.autograd.grad(
            start.features, [*below.values(), inner.anchor], direct[0], retain_graph=True, allow_unused=True
        )
        found = _sum(found, {n: g for n, g in zip(below, through, strict=False) if g is not None})
    outputs, start.tape.outputs = start.tape.outputs, {}
    return found, start.seen, outputs


def _sides(fast: Fast, layer: str, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor]:
    """Output gradients and inputs of a layer, in the order in which their product is its weight's gradient."""
    return (columns, rows) if layer in fast.turned else (rows, columns)


def _without(params: Params, names: Params) -> Params:
    return {n: p for n, p in params.items() if n not in names}


def _descended(fast: Fast, slope: _Slope, step: Step) -> Fast:
    """The state after an inner step down the slope, without a graph."""
    moved = {}
    with torch.no_grad():
        for name, old in fast.moving().items():
            moved[name] = old.detach()
            if name in slope.moved:
                grad = slope.moving[name] if not step.l2 else slope.moving[name] + 2 * step.l2 * old
                moved[name] = descent(old, step.rates(_setting(name)), grad)
        own = dict(fast.own)
        for layer, (rows, columns) in slope.products.items():
            rate = _rate(step, f"{layer}.weight")
            weight, matrix = own[f"{layer}.weight"], slope.matrices.get(f"{layer}.weight")
            kept = 1 - 2 * rate * step.l2
            own[f"{layer}.weight"] = (
                lowered(weight, columns, rows, layer in fast.turned, kept, rate)
                if matrix is None
                else torch.add(weight, matrix, alpha=-rate)
            )
    after = replace(fast.moved(moved, fast.shared), steps=fast.steps + 1)
    return replace(after, own={n: moved.get(n, p) for n, p in own.items()})


def _ascended(before: Fast, after: Fast, slope: _Slope, step: Step) -> Fast:
    """`before`, with those of its weights that were not kept made anew, in place, of the weights `after` the inner step."""
    own = dict(before.own)
    for name, matrix in slope.matrices.items():
        own[name] = after.own[name].detach().add_(matrix, alpha=_rate(step, name))
    return replace(before, own=own)


def _difference(
    inner: Inner,
    before: Fast,
    slope: _Slope,
    step: Step,
    back: _Back,
    length: float,
    shared: Params,
    local: Params,
    grads: Params,
) -> None:
    """Carries `back`, in place, over the inner step that was taken at `before`, where the slope was `slope`."""
    push = {n: step.rates(_setting(n)) * v for n, v in back.inside.items() if n in slope.moved}
    rates = {n: _rate(step, f"{n}.weight") for n in back.sums}
    norm = _length([*push.values(), *(v for n, v in back.sums.items())], [1.0] * len(push) + list(rates.values()))
    if norm == 0.0:
        return
    epsilon = _EPSILON[inner.network.backbone.precision]
    width = epsilon * (length or 1.0) / norm  # what adapts may be a head of zeros alone
    moving = {n: torch.add(p, push[n], alpha=width) if n in push else p for n, p in before.moving().items()}
    ahead = before.moved({n: p.detach() for n, p in moving.items()}, before.shared)
    own = {
        n: torch.add(p, back.sums[n.removesuffix(".weight")], alpha=width * rates[n.removesuffix(".weight")])
        if n.removesuffix(".weight") in back.sums
        else p
        for n, p in ahead.own.items()
    }
    there = _slope(inner, replace(ahead, own=own), shared)[1]
    _rate_gradients(local, back, slope, before, step, grads)
    for name, grad in slope.moving.items():
        if name in back.inside:
            curve = torch.sub(grad, there.moving[name]).div_(width)
            if step.l2 and name in push:
                curve -= 2 * step.l2 * push[name]
            back.inside[name] = back.inside[name] + curve
    for layer, total in back.sums.items():
        if step.l2:
            total.mul_(1 - 2 * step.l2 * rates[layer])
        if layer in slope.products:
            (rows, columns), (rows_there, columns_there) = slope.products[layer], there.products[layer]
            matrix = slope.matrices.get(f"{layer}.weight")
            if matrix is None:
                rows_there, columns_there = torch.cat([rows_there, rows], 1), torch.cat([columns_there, -columns], 1)
            else:
                total.add_(matrix, alpha=1 / width)
            summed(total, *_sides(before, layer, rows_there, columns_there), alpha=-1 / width)
    for name in shared:
        if name in there.shared:
            _add(grads, {name: (slope.shared[name] - there.shared[name]) / width})


def _length(tensors: Sequence[Tensor], factors: Sequence[float] | None = None) -> float:
    """The Euclidean norm of tensors, each times its factor, end to end."""
    norms = [float(torch.linalg.vector_norm(t.detach())) for t in tensors]
    return math.hypot(*(n * f for n, f in zip(norms, factors or [1.0] * len(norms), strict=True)))


def _rate_gradients(local: Params, back: _Back, slope: _Slope, before: Fast, step: Step, grads: Params) -> None:
    """Adds the gradient of learned rates: theta - rate * g has the derivative -g in its rate."""
    rated = [n for n in local if n.startswith("rates") and local[n].requires_grad]
    if not rated:
        return
    moving = before.moving()
    with torch.enable_grad():
        terms = [
            step.rates(_setting(n)) * (back.inside[n] * (g + 2 * step.l2 * moving[n])).detach()
            for n, g in slope.moving.items()
            if n in back.inside and n in slope.moved
        ]
        for layer, (rows, columns) in slope.products.items():
            if layer in back.sums:
                total = back.sums[layer].mT if layer in before.turned else back.sums[layer]
                terms.append(step.rates(f"{layer}.weight") * (rows * times(columns, total.mT)).sum())
        found = torch.autograd.grad(
            -torch.stack([t.sum() for t in terms]).sum(), [local[n] for n in rated], allow_unused=True
        )
    _add(grads, {n: g for n, g in zip(rated, found, strict=True) if g is not None})
