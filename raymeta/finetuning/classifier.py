"""A network and an output layer of its own for one task: its loss, gradient and answers as functions of all parameters."""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from raymeta.episodes import Ints
from raymeta.finetuning.target import Target
from raymeta.heads import Head
from raymeta.heads.learned import Learned
from raymeta.heads.prototype import Prototype
from raymeta.heads.zero import Zero
from raymeta.inner import Fast, Inner
from raymeta.layers import Params
from raymeta.model import Network
from raymeta.plain import bound
from raymeta.tasks import Tasks

WEIGHT, BIAS = "head.weight", "head.bias"


@dataclass(frozen=True)
class PartGradient:
    """Gradient and loss of a part of a batch, both summed over the part's items and weighted as the task kind weighs them.

    grads: by name (the token embedding's are [row, hidden], for `rows` of it); weight: what the sums are to be divided by.
    """

    grads: Params
    rows: Tensor
    weight: float
    loss: float


class Classifier:
    """The network's encoder under one linear layer, W [output, feature] and b, that tells the target's classes apart."""

    def __init__(self, network: Network, target: Target, head: Head, at_once: int, device: torch.device) -> None:
        """head: how features are shaped, and where W and b start; at_once: texts computed together."""
        self.network, self.target, self.head, self.at_once, self.device = network, target, head, at_once, device
        self.outputs = target.tasks.outputs_for(len(target.classes))

    def moving(self, params: Params) -> list[str]:
        """The names of the parameters that train."""
        body = {n for n in self.network.trainable() if not n.startswith("head.")}
        return [n for n in params if n in body or n in (WEIGHT, BIAS)]

    def gradient(self, params: Params, rows: Ints, seed: int, number: int) -> PartGradient:
        """Of the loss of these rows, in the parameters that train; seed and number: what dropout's masks are drawn from."""
        inner, fast = self._bound(params, rows, (seed, number), learn=True)
        losses = inner.query_losses(inner.query_logits(fast))
        weight = float(self._tasks.measure(self._tasks.targets(inner.episodes[0].query).unsqueeze(0)))
        leaves = {n: p for n, p in fast.shared.items() if p.requires_grad}
        found = torch.autograd.grad(losses.sum() * weight, list(leaves.values()), allow_unused=True)
        grads, touched = inner.closed({n: g for n, g in zip(leaves, found, strict=True) if g is not None})
        return PartGradient(grads, touched, weight, float(losses.detach().sum()) * weight)

    @torch.no_grad()
    def logits(self, params: Params, rows: Ints) -> Tensor:
        """Scores of the items of these rows, all computed at once, [item, output]."""
        inner, fast = self._bound(params, rows)
        return inner.answers(inner.query_logits(fast))[0]

    @torch.no_grad()
    def started(self, params: Params, rows: Ints, seed: int) -> Params:
        """W and b before training; `rows` are what a head that reads examples makes them from, `seed` seeds one that is random."""
        features, targets = [], []
        nothing = {name: params[self.network.embedding].new_zeros(1) for name in (WEIGHT, BIAS)}
        for part in parts(rows, self.at_once):
            inner, fast = self._bound({**params, **nothing}, part)
            features.append(inner.query_features(fast).squeeze(0))
            targets.append(self._tasks.targets(inner.episodes[0].query))
        shaped = self.head.shaped(torch.cat(features).unsqueeze(0), params)
        if isinstance(self.head, Learned) and len(params.get(WEIGHT, ())) < self.outputs:
            random = torch.Generator().manual_seed(seed)
            new = self.head.params(self.outputs, shaped.shape[-1], random)
            params = {**params, **{n: p.to(shaped) for n, p in new.items()}}
        found = self.head.start(params, shaped, torch.cat(targets).unsqueeze(0), self.outputs)
        return {f"head.{n}": tensor.squeeze(0).clone() for n, tensor in found.items()}

    @property
    def _tasks(self) -> Tasks:
        return self.target.tasks

    def _bound(
        self, params: Params, rows: Ints, dropout: tuple[int, int] | None = None, learn: bool = False
    ) -> tuple[Inner, Fast]:
        self.network.head = self.head
        asked, shown = (self.target.examples(some).to(self.device) for some in (rows, rows[:1]))
        return bound(self.network, self._tasks, params, asked, self.target.classes, shown, dropout, learn)


def parts(rows: Ints, size: int) -> list[Ints]:
    """`rows` cut into runs of at most `size`."""
    return [rows[at : at + size] for at in range(0, len(rows), size)]


def head_for(asked: Literal["prototype", "zero", "learned"] | None, own: Head) -> Head:
    """The head that fine-tuning starts from: the run's own, where it is of the kind that is asked for."""
    if asked is None or asked == own.kind:
        return own
    heads: dict[str, type[Head]] = {"prototype": Prototype, "zero": Zero, "learned": Learned}
    return heads[asked]()
