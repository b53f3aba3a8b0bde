"""An adapted model used plainly: whole parameters of one task, and no inner loop any more.

While a task adapts, its parameters are kept as sparingly as they can be: only the embedding's rows that occur, linear layers
in dual form, low-rank adapters beside their layers. Here they become the tensors of an ordinary model.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from raymeta.episodes import Episode, Examples
from raymeta.inner import Fast, Inner, TaskLoss
from raymeta.layers import Params
from raymeta.model import Network


def whole(inner: Inner, fast: Fast, params: Params) -> Params:
    """`params` with what has adapted to the only task of `inner` in its place; the task's head is `head.weight`, `head.bias`
    (where it is the model's own output layer, that).

    The dual form of a layer is W_0 - sum_s D_s^T X_s (`raymeta.layers`), here added up.
    """
    assert inner.count == 1
    network = inner.network
    found = {n: p.detach() for n, p in params.items()}
    for name, tensor in fast.own.items():
        own = tensor.detach().squeeze(0)
        found[name] = found[name].index_copy(0, inner.rows[0], own) if name == network.embedding else own
    for name, (inputs, grads) in fast.history.items():
        moved = grads[0].detach().to(network.dtype).mT @ inputs[0].detach().to(network.dtype)
        found[f"{name}.weight"] = found[f"{name}.weight"] - (moved.mT if network.transposed(name) else moved)
    return found | {network.head_name(n): w.detach().squeeze(0) for n, w in fast.head.items()}


def bound(
    network: Network,
    tasks: TaskLoss,
    params: Params,
    asked: Examples,
    classes: Sequence[str],
    shown: Examples,
    dropout: tuple[int, int] | None = None,
    learn: bool = False,
) -> tuple[Inner, Fast]:
    """The texts `asked` bound to the network, and the state with the whole parameters `params` (`head.weight` and `head.bias`
    among them); `shown` is any text or several, for the place of a support set.

    dropout: what its masks are drawn from, a seed and a number; None: no dropout. learn: whether those of `Fast.shared` that the
    outer loop trains, and the head, require a gradient.
    """
    seed, number = dropout or (None, 0)
    inner = Inner(network, tasks, [Episode(number, "asked", tuple(classes), shown, asked)], seed, twice=False)
    local = inner.opened(params, learn)
    return inner, Fast({}, {}, {n: local[f"head.{n}"].unsqueeze(0) for n in ("weight", "bias")}, local)


@torch.no_grad()
def logits(
    network: Network, tasks: TaskLoss, params: Params, asked: Examples, classes: Sequence[str], shown: Examples
) -> Tensor:
    """Scores of the items of `asked`, [item, output], by the whole parameters `params` (see `bound`)."""
    inner, fast = bound(network, tasks, params, asked, classes, shown)
    return inner.answers(inner.query_logits(fast))[0]
