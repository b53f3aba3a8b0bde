"""Ways back through the inner loop: from the query loss of adapted parameters to the gradient of the meta-parameters."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from raymeta.model import Fast, Inner, Params


@dataclass(frozen=True)
class MetaStep:
    """One task's meta-gradient.

    grads: by name, of the *local* parameters (the token embedding's are [row, hidden], for `rows` of it); a parameter
    that the loss does not reach is absent. query_loss: after adaptation. outputs: the query items' logits, detached.
    """

    grads: Params
    rows: Tensor
    query_loss: Tensor
    outputs: Tensor


def unrolled(inner: Inner, params: Params, adapt: Callable[[Inner, Params], Fast]) -> MetaStep:
    """The gradient by reverse-mode differentiation through every step that `adapt` took and kept differentiable.

    Exact where the steps kept their graph (order 2); with detached steps it is first-order MAML. Memory grows with the
    number of kept steps.
    """
    local = {n: p.detach().requires_grad_() for n, p in inner.localised(params).items()}
    fast = adapt(inner, local)
    outputs = inner.query_outputs(fast)
    loss = inner.query_loss(outputs)
    grads = torch.autograd.grad(loss, list(local.values()), allow_unused=True)
    found = {n: g for n, g in zip(local, grads, strict=True) if g is not None}
    return MetaStep(found, inner.rows, loss.detach(), outputs.detach())
