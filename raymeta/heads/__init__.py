"""The layer that tells an episode's classes apart: how its weights start for a new task.

Every head is linear, `logits = x W^T + b`; heads differ in where W and b come from when a task begins.
"""

from abc import abstractmethod
from typing import ClassVar

import torch
import torch.nn.functional as F
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
    def start(
        self, params: dict[str, Tensor], features: Tensor | None, targets: Tensor, outputs: int
    ) -> dict[str, Tensor]:
        """A task's own `weight` [outputs, hidden] and `bias` [outputs], differentiable in `params` and `features`."""

    def shaped(self, features: Tensor, params: dict[str, Tensor]) -> Tensor:
        """The features as the head wants them, [item, hidden]."""
        return features

    def logits(self, fast: dict[str, Tensor], features: Tensor) -> Tensor:
        """Scores of each item, [item, outputs]."""
        return F.linear(features, fast["weight"], fast["bias"])
