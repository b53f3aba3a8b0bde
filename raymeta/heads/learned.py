"""A head whose initial weights are meta-learned like any other parameter, as in the original MAML."""

import torch
from torch import Tensor

from raymeta.heads import Head


class Learned(Head):
    """W and b start from meta-parameters (Finn et al. 2017). Episodes with fewer ways use the first rows."""

    def params(self, outputs: int, hidden: int, random: torch.Generator) -> dict[str, Tensor]:
        weight = torch.randn(outputs, hidden, generator=random) * 0.02
        return {"head.weight": weight, "head.bias": torch.zeros(outputs)}

    def start(self, params: dict[str, Tensor], features: Tensor, targets: Tensor, outputs: int) -> dict[str, Tensor]:
        tasks = len(features)
        weight, bias = params["head.weight"][:outputs], params["head.bias"][:outputs]
        return {"weight": weight.expand(tasks, *weight.shape), "bias": bias.expand(tasks, *bias.shape)}
