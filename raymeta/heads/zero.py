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

    def start(self, params: dict[str, Tensor], features: Tensor, targets: Tensor, outputs: int) -> dict[str, Tensor]:
        tasks, _, hidden = features.shape
        return {"weight": features.new_zeros(tasks, outputs, hidden), "bias": features.new_zeros(tasks, outputs)}
