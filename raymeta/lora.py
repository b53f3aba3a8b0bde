"""Low-rank adapters: small matrices beside a model's linear layers, which alone adapt to a task.

Hu et al. 2021, https://arxiv.org/abs/2106.09685: a layer's W x becomes W x + alpha / rank * B A x, with A random and B zero
at first, so that the model starts as it was. The adapters are those of `peft` (the extra `lora`).
"""

from collections.abc import Callable
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from raymeta.component import Section
from raymeta.errors import UserError, did_you_mean, first_line


class LoraSize(Section):
    """How large the adapters are, and beside which layers they stand."""

    rank: int = Field(8, ge=1)
    """Rows of A and columns of B."""
    alpha: float = Field(16.0, gt=0)
    """An adapter's output is scaled by alpha / rank."""
    targets: Literal["all-linear"] | Annotated[tuple[str, ...], Field(min_length=1)] = "all-linear"
    """Every linear layer of the encoder, or the last parts of their names, such as [query, value]."""


class Lora(Section):
    """Low-rank adapters adapt, and the head."""

    lora: LoraSize
    """Their size and place."""


def injected(module: nn.Module, size: LoraSize, seed: int) -> nn.Module:
    """The encoder with adapters in it, their A drawn from `seed`; raises UserError without peft, or for unknown targets."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError(
            "model.adapt.lora needs the package peft, which is not installed here; install raymeta's extra `lora` "
            "(pip install 'raymeta[lora]')"
        ) from error
    output = module.get_output_embeddings()  # type: ignore[operator]
    linear = {
        n for n, layer in module.named_modules() if isinstance(layer, (nn.Linear, Conv1D)) and layer is not output
    }
    if size.targets != "all-linear":
        known = sorted({n.rpartition(".")[2] for n in linear})
        for target in size.targets:
            if not any(n == target or n.endswith(f".{target}") for n in linear):
                raise UserError(
                    f"model.adapt.lora.targets: the model has no linear layer {target!r}{did_you_mean(target, known)} "
                    f"(layers: {', '.join(known)})"
                )
    config = LoraConfig(
        r=size.rank,
        lora_alpha=size.alpha,
        target_modules=size.targets if size.targets == "all-linear" else list(size.targets),
        fan_in_fan_out=any(isinstance(layer, Conv1D) for layer in module.modules()),
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        try:
            adapted: nn.Module = inject_adapter_in_model(config, module)
        except (ValueError, TypeError, NotImplementedError) as error:
            raise UserError(
                f"model.adapt.lora: peft cannot put adapters into this model: {first_line(error)}"
            ) from error
    return adapted


def is_adapter(parameter: str) -> bool:
    """Whether a parameter of this name is an adapter's."""
    return ".lora_A." in parameter or ".lora_B." in parameter


def merged(params: dict[str, Tensor], size: LoraSize, transposed: Callable[[str], bool]) -> dict[str, Tensor]:
    """The parameters of the encoder without adapters that computes the same: each layer's W + alpha / rank * B A.

    transposed: whether the layer of a name keeps its weight as [in, out], like GPT-2's.
    """
    found = {}
    for name, tensor in params.items():
        if is_adapter(name):
            continue
        layer = name.removesuffix(".base_layer.weight")
        if layer != name:
            down, up = (params[f"{layer}.lora_{m}.default.weight"] for m in "AB")
            more = size.alpha / size.rank * up @ down
            tensor = tensor + (more.mT if transposed(f"{layer}.base_layer") else more)
        found[plain_name(name)] = tensor
    return found


def plain_name(parameter: str) -> str:
    """What a parameter is called in the encoder without adapters."""
    return parameter.replace(".base_layer.", ".")
