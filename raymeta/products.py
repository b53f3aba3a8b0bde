"""The products of linear layers; above all one whose weight lies outside of autograd's graph, its gradient summed in one place.

In an inner loop an adapted matrix is as large as all activations of a short text together, and what costs time beside the
products is passing over it: autograd makes its gradient, scales it, and adds up three of them for each inner step. Here an
inner step W - rate * D^T X is one product, made of the layer's inputs X and its output gradients D; and on the way back
every contribution to the gradient in W, that of the forward and that of the inner gradient together, is one product that
adds itself to a `Tape`'s sum in place. What is computed is the same.

Shapes: inputs [task, token, in], outputs [task, token, out], a weight [task, out, in], or [1, out, in] where tasks share it.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable


@dataclass
class Tape:
    """What the products of one forward note while they are differentiated.

    outputs: layer -> the gradient at its output, noted while the inner gradient is taken. sums: layer -> the gradient in its
    weight, in the weight's layout; None until the way back begins. It holds no tensor that has a graph for longer than the
    call that notes it: the graph holds the tape, and a circle would never be freed.
    """

    outputs: dict[str, Tensor] = field(default_factory=dict)
    sums: dict[str, Tensor] | None = None
    late: dict[str, tuple["Layer", Tensor, Tensor]] = field(default_factory=dict)

    def add(self, of: "Layer", rows: list[Tensor], columns: list[Tensor]) -> None:
        """Adds rows^T columns (rows [task, token, out], columns [task, token, in]), pair by pair, to the layer's sum."""
        assert self.sums is not None
        row = rows[0] if len(rows) == 1 else torch.cat(rows, 1)
        column = columns[0] if len(columns) == 1 else torch.cat(columns, 1)
        if of.shared:
            row, column = row.reshape(1, -1, row.shape[-1]), column.reshape(1, -1, column.shape[-1])
        left, right = (column, row) if of.transposed else (row, column)
        self.sums[of.name] = summed(self.sums.get(of.name), left, right)

    def finish(self) -> dict[str, Tensor]:
        """The sums, once nothing more can come."""
        for of, grad, further in self.late.values():
            self.add(of, [grad], [further])
        self.late = {}
        found, self.sums = self.sums or {}, None
        return found


@dataclass(frozen=True)
class Layer:
    """Which layer a product is of. transposed: its weight is [in, out]; shared: one weight serves all tasks."""

    name: str
    transposed: bool
    shared: bool


def summed(known: Tensor | None, left: Tensor, right: Tensor, alpha: float = 1.0) -> Tensor:
    """known + alpha * left^T right, in place; left [task, token, a], right [task, token, b]."""
    if known is None:
        found = _each(left.mT, right)
        return found if alpha == 1.0 else found.mul_(alpha)
    if left.dtype != known.dtype:
        return known.add_((left.mT @ right).to(known.dtype), alpha=alpha)
    if _suits_onednn(left[0].T, right[0], beside=True):
        for task, total in enumerate(known):
            total.add_(_by_onednn(left[task].T, right[task]), alpha=alpha)
    elif len(left) == 1:
        known[0].addmm_(left[0].T, right[0], alpha=alpha)
    else:
        known.baddbmm_(left.mT, right, alpha=alpha)
    return known


def lowered(
    weight: Tensor, inputs: Tensor, pull: Tensor, transposed: bool, kept: float = 1.0, factor: float = 1.0
) -> Tensor:
    """kept * weight - factor * pull^T inputs: a task's weight after an inner step; pull: gradients at the layer's outputs."""
    left, right = (inputs, pull) if transposed else (pull, inputs)
    left, right = left.to(weight.dtype), right.to(weight.dtype)
    if _suits_onednn(left[0].T, right[0], beside=True):
        right = right * -factor
        if len(left) == 1:
            return _by_onednn(left[0].T, right[0]).add_(weight[0], alpha=kept).unsqueeze(0)
        found = weight.new_empty(len(left), *weight.shape[1:])
        for task, old in enumerate(weight.expand_as(found)):
            torch.add(_by_onednn(left[task].T, right[task]), old, alpha=kept, out=found[task])
        return found
    if len(left) == 1:
        return torch.addmm(weight[0], left[0].T, right[0], beta=kept, alpha=-factor).unsqueeze(0)
    return torch.baddbmm(weight, left.mT, right, beta=kept, alpha=-factor)


def times(x: Tensor, matrix: Tensor, bias: Tensor | None = None) -> Tensor:
    """[task, token, a] by [task or 1, a, b] -> [task, token, b], plus bias [task or 1, b]. It has no gradient."""
    if len(matrix) > 1:
        return _each(x, matrix, bias)
    rows, matrix = x.reshape(-1, x.shape[-1]), matrix[0]
    one = bias[0] if bias is not None and len(bias) == 1 else None
    found = multiplied(rows, matrix, one)
    found = found.view(*x.shape[:-1], matrix.shape[-1])
    return found if bias is None or one is not None else found.add_(bias.unsqueeze(1))


def multiplied(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """[a, n] by [n, b] -> [a, b], plus bias [b]. It has no gradient."""
    if _suits_onednn(left, right):
        return _by_onednn(left, right, bias)
    return left @ right if bias is None else torch.addmm(bias, left, right)


def _each(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """[task, a, n] by [task, n, b], plus bias [task or 1, b]: task by task where oneDNN has a lead."""
    if _suits_onednn(left[0], right[0], beside=True):
        biases = [None] * len(left) if bias is None else bias.expand(len(left), -1).unbind()
        found = [_by_onednn(*each) for each in zip(left, right, biases, strict=True)]
        return found[0].unsqueeze(0) if len(found) == 1 else torch.stack(found)
    if bias is not None:
        return torch.baddbmm(bias.unsqueeze(1), left, right)
    return left @ right if len(left) > 1 else (left[0] @ right[0]).unsqueeze(0)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """torch.nn.functional.linear, differentiable as often as it, by the faster library.

    x [..., in], weight [out, in], bias [out]; or task by task: x [task, token, in], weight [task, out, in], bias [task, out].
    """
    batched = weight.dim() == 3
    rows = x if batched else x.reshape(-1, x.shape[-1])
    first, matrix = (rows[0], weight[0].T) if batched else (rows, weight.T)
    if not torch.is_autocast_enabled(x.device.type) and _suits_onednn(first, matrix, beside=True):
        found: Tensor = _Linear.apply(rows, weight, bias)  # type: ignore[no-untyped-call]
        return found.view(*x.shape[:-1], weight.shape[-2])
    if not batched:
        return F.linear(x, weight, bias)
    return x @ weight.mT if bias is None else torch.baddbmm(bias.unsqueeze(1), x, weight.mT)


class _Linear(torch.autograd.Function):
    """x W^T + b of matrices, or of a batch of them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        if x.dim() == 2:
            return multiplied(x, weight.mT, bias)
        return _each(x, weight.mT, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        x, weight = ctx.saved_tensors
        wanted = ctx.needs_input_grad
        of_x = _Linear.apply(grad, weight.mT, None) if wanted[0] else None  # type: ignore[no-untyped-call]
        of_weight = _Linear.apply(grad.mT, x.mT, None) if wanted[1] else None  # type: ignore[no-untyped-call]
        return of_x, of_weight, grad.sum(-2) if wanted[2] else None


# which library multiplies

for _cache in ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY"):
    os.environ.setdefault(_cache, "64")
"""oneDNN, and what torch keeps of it, compile a product for each shape and hold the last 1024, up to 2 MiB each; few-shot
episodes are seldom equally long, so that those would fill up and serve no one. Read when oneDNN is first used."""

_ONEDNN = getattr(torch.ops.mkldnn, "_linear_pointwise", None) if torch._C._has_mkldnn else None
"""oneDNN's product, by which torch.compile computes linear layers on a CPU; None where this torch has none. It does not pack a
matrix anew for each call, which the BLAS does and which weighs where tokens are few."""

_FROM, _FROM_AHEAD = 8_000_000, 1_000_000
"""Multiply-adds from which oneDNN is the faster in float32: as a rule (one Zen 4 core), and where it has a lead."""

_LEAD = 1.5


@lru_cache
def onednn_leads() -> bool:
    """Whether oneDNN is the faster by far here, as where the BLAS leaves half of each register unused: MKL on a Zen 5.

    Measured once a process, in some 50 ms, in turns and on a product so large that nothing else tells; the ratio is about 1
    or about 2, so that chance does not decide.
    """
    if _ONEDNN is None:
        return False
    plain: dict[str, Any] = {"dtype": torch.float32, "device": "cpu"}  # whatever the default is
    x, weight = torch.ones(256, 384, **plain), torch.ones(1536, 384, **plain)
    ways: tuple[Callable[[], Tensor], ...] = (lambda: x @ weight.T, lambda: _by_onednn(x, weight.T))
    seconds: tuple[list[float], list[float]] = ([], [])
    with torch.no_grad(), torch.autocast("cpu", enabled=False):
        for _ in range(8):
            for work, took in zip(ways, seconds, strict=True):
                start = time.perf_counter()
                work()
                took.append(time.perf_counter() - start)
    return min(seconds[0]) > _LEAD * min(seconds[1])


def _by_onednn(left: Tensor, right: Tensor, bias: Tensor | None = None) -> Tensor:
    """[a, n] by [n, b], plus bias [b]."""
    assert _ONEDNN is not None
    found: Tensor = _ONEDNN(left, right.T, bias, "none", [], "")
    return found


def _suits_onednn(left: Tensor, right: Tensor, beside: bool = False) -> bool:
    """Whether oneDNN should multiply these matrices. beside: it must do without what the BLAS has, batches and adding up."""
    if _ONEDNN is None or left.device.type != "cpu" or not left.dtype == right.dtype == torch.float32:
        return False
    operations = len(left) * right.numel()
    return operations >= _FROM_AHEAD and (onednn_leads() or (operations >= _FROM and not beside))


def product(x: Tensor, bias: Tensor | None, anchor: Tensor, weight: Tensor, of: Layer, tape: Tape) -> Tensor:
    """x W^T + b, noted on the tape; twice differentiable in x and b. x [task, token, in], bias [task or 1, out].

    anchor: a scalar that the result is tied to, so that it has a graph where x has none.
    """
    found: Tensor = _Product.apply(x, bias, anchor, weight, of, tape)  # type: ignore[no-untyped-call]
    return found


class _Product(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, bias: Tensor | None, anchor: Tensor, weight: Tensor, of: Layer, tape: Tape
    ) -> Tensor:
        if torch.is_autocast_enabled(x.device.type):
            to = torch.get_autocast_dtype(x.device.type)
            x, weight, bias = x.to(to), weight.to(to), None if bias is None else bias.to(to)
        ctx.save_for_backward(x)
        ctx.weight, ctx.of, ctx.tape = weight, of, tape
        ctx.one_bias = bias is not None and len(bias) == 1
        return times(x, weight if of.transposed else weight.mT, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        tape, of = ctx.tape, ctx.of
        of_bias = None
        if ctx.needs_input_grad[1]:
            of_bias = grad.sum((0, 1)).unsqueeze(0) if ctx.one_bias else grad.sum(1)
        if tape.sums is None:
            tape.outputs[of.name] = grad
        else:
            (x,) = ctx.saved_tensors
            _, *earlier = tape.late.pop(of.name, (of,))
            tape.add(of, [grad, *earlier[:1]], [x, *earlier[1:]])
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = _Back.apply(grad, ctx.weight, of, tape)  # type: ignore[no-untyped-call]
        return of_x, of_bias, None, None, None, None


class _Back(torch.autograd.Function):
    """g W: a product's gradient in x."""

    @staticmethod
    def forward(ctx: Any, grad: Tensor, weight: Tensor, of: Layer, tape: Tape) -> Tensor:
        ctx.save_for_backward(grad)
        ctx.weight, ctx.of, ctx.tape = weight, of, tape
        return times(grad, weight.mT if of.transposed else weight)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, further: Tensor) -> Any:
        (grad,) = ctx.saved_tensors
        if ctx.tape.sums is not None:
            ctx.tape.late[ctx.of.name] = (ctx.of, grad.detach(), further)  # it waits for the product's own
        return times(further, ctx.weight if ctx.of.transposed else ctx.weight.mT), None, None, None
