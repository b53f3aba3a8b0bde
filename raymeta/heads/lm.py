"""A language model's own output layer, which scores every token of its vocabulary."""

import torch
from torch import Tensor

from raymeta.heads import Head
from raymeta.products import linear


class Lm(Head):
    """The output layer as pretrained, for tasks whose answers are texts; it is taken by itself where a task needs it.

    Its matrix is the token embedding's where the model ties them. It adapts with `adapt: all` and `head`, and is left as it
    is elsewhere.
    """

    def params(self, outputs: int, hidden: int, random: torch.Generator) -> dict[str, Tensor]:
        return {}

    def start(self, params: dict[str, Tensor], features: Tensor, targets: Tensor, outputs: int) -> dict[str, Tensor]:
        own = {n.removeprefix("output."): p for n, p in params.items() if n.startswith("output.")}
        return {n: p.expand(len(features), *p.shape) for n, p in own.items()}

    def logits(self, fast: dict[str, Tensor], features: Tensor) -> Tensor:
        weight, bias = fast["weight"], fast.get("bias")
        if len(weight) == 1:  # of all tasks
            return linear(features, weight.squeeze(0), None if bias is None else bias.squeeze(0))
        return linear(features, weight, bias)
