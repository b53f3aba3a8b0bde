"""A head of zeros: nothing about the new task is assumed, and every output starts alike."""

import torch
from torch import Tensor

from raymeta.heads import Head


class Zero(Head):
    """W = 0, b = 0 at the start of each task, so that the number of ways is free and label order cannot matter.

    The first inner step moves only the head (the features' gradient is zero while W is), so use two steps or more.
    """

    def params(self, outputs: int, hidden: int, random: torch.Generator) -> dict[str, Tensor]:
        return {}

    def start(
        self, params: dict[str, Tensor], features: Tensor | None, targets: Tensor, outputs: int
    ) -> dict[str, Tensor]:
        hidden = next(iter(params.values())).shape[-1] if features is None else features.shape[-1]
        some = next(iter(params.values())) if features is None else features
        return {"weight": some.new_zeros(outputs, hidden), "bias": some.new_zeros(outputs)}
