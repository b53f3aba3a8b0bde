"""The layer that tells an episode's classes apart: how its weights start for a new task.

Every head is linear, `logits = x W^T + b`; heads differ in where W and b come from when a task begins. All tensors have a
leading task axis: several tasks are computed at once.
"""

from abc import abstractmethod
from typing import ClassVar

import torch
from torch import Tensor

from raymeta.component import Component


class Head(Component, family="raymeta.heads", noun="head", usual="prototype"):
    """Where a task's output layer starts."""

    reads_support: ClassVar[bool] = False
    """Whether `start` looks at the support set's features."""

    @abstractmethod
    def params(self, outputs: int, hidden: int, random: torch.Generator) -> dict[str, Tensor]:
        """Meta-parameters of the head, by name; each name starts with `head.`."""

    @abstractmethod
    def start(self, params: dict[str, Tensor], features: Tensor, targets: Tensor, outputs: int) -> dict[str, Tensor]:
        """Each task's own `weight` [task, outputs, hidden] and `bias` [task, outputs].

        Differentiable in `params` and `features`. features: [task, item, hidden]; targets: int64 [task, item], -100 where
        a task has fewer items.
        """

    def shaped(self, features: Tensor, params: dict[str, Tensor]) -> Tensor:
        """The features as the head wants them, [task, item, hidden]."""
        return features

    def logits(self, fast: dict[str, Tensor], features: Tensor) -> Tensor:
        """Scores of each item, [task, item, outputs]."""
        return torch.baddbmm(fast["bias"].unsqueeze(1), features, fast["weight"].mT)
