"""ProtoMAML's head: the first guess is the nearest class mean, and the inner loop improves on it.

Triantafillou et al. 2020, "Meta-Dataset", section 3, https://arxiv.org/abs/1903.03096: squared Euclidean distance to
the class mean c_n is, up to a constant, -|x - c_n|^2 = 2 c_n.x - |c_n|^2, so W_n = 2 c_n and b_n = -|c_n|^2. With no
inner step this is a Prototypical Network (Snell et al. 2017).
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from raymeta.heads import Head


class Prototype(Head):
    """W_n = 2 s c_n and b_n = -s |c_n|^2, with c_n the mean feature of class n's support items and s a scale."""

    reads_support: ClassVar[bool] = True

    scale: float = Field(1.0, gt=0)
    """s: how sharply distance decides; with `normalize`, 5 to 20 suits."""
    normalize: bool = False
    """Features are scaled to length 1 first, so that squared distance is 2 - 2 cos."""
    learn_scale: bool = False
    """s is a meta-parameter that starts at `scale` (kept positive: its logarithm is what is learned)."""

    def params(self, outputs: int, hidden: int, random: torch.Generator) -> dict[str, Tensor]:
        return {"head.log_scale": torch.tensor([self.scale]).log()} if self.learn_scale else {}

    def shaped(self, features: Tensor, params: dict[str, Tensor]) -> Tensor:
        return F.normalize(features, dim=-1, eps=1e-6) if self.normalize else features

    def start(self, params: dict[str, Tensor], features: Tensor, targets: Tensor, outputs: int) -> dict[str, Tensor]:
        member = F.one_hot(targets.clamp(min=0), outputs).to(features.dtype) * (targets >= 0).to(
            features.dtype
        ).unsqueeze(-1)
        counts = member.sum(1)
        means = member.mT @ features / counts.clamp(min=1).unsqueeze(-1)
        scale: Tensor | float = params["head.log_scale"].exp() if self.learn_scale else self.scale
        # a class without a support item has no mean: keep it from being predicted
        absent = torch.where(counts > 0, 0.0, -1e4).to(features.dtype)
        return {"weight": 2 * scale * means, "bias": -scale * means.square().sum(-1) + absent}
