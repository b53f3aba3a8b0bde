"""What of a model adapts to a task: settings, and the parameters that they choose."""

from collections.abc import Iterable
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from raymeta.component import Section
from raymeta.errors import UserError
from raymeta.lora import Lora, is_adapter

PROMPT = "prompt.weight"
"""The name of a soft prompt's vectors among the parameters."""


class Last(Section):
    """The last `last` layers adapt (of a decoder, where there is one), and the head."""

    last: int = Field(ge=1)
    """How many layers."""


class Layers(Section):
    """These layers adapt (counted from 0, the lowest; of a decoder, where there is one), and the head."""

    layers: tuple[int, ...] = Field(min_length=1)
    """Which layers."""


class PromptSize(Section):
    """How long a soft prompt is."""

    tokens: int = Field(20, ge=1)
    """Virtual tokens before each text; they take room among a model's positions."""


class Prompt(Section):
    """A soft prompt adapts, and the head.

    Lester et al. 2021, https://arxiv.org/abs/2104.08691: vectors that stand before each text's (source) tokens as if they
    were their embeddings; at first, rows of the vocabulary drawn by the seed. They are raymeta's own and not `peft`'s, whose
    prompt tuning wraps a model's forward around ids: here they are rows behind the token embedding's, so that they pack,
    differentiate twice and differ by task like any row.
    """

    prompt: PromptSize
    """Its length."""

    def vectors(self, embedding: Tensor, random: torch.Generator) -> Tensor:
        """Where the prompt starts: [virtual token, hidden], rows of the token embedding."""
        drawn = torch.randint(len(embedding), (self.prompt.tokens,), generator=random)
        return embedding.detach()[drawn.to(embedding.device)].clone()


Adapt = Literal["all", "head", "body"] | Last | Layers | Lora | Prompt


def chosen(adapt: Adapt, names: Iterable[str], stack: str, count: int) -> frozenset[str]:
    """Which of the parameters `names` adapt; `stack` is the name of the model's layers, and `count` their number.

    Raises UserError where there is no such layer.
    """
    if adapt in ("all", "body"):
        return frozenset(names)
    if adapt == "head":
        return frozenset()
    if isinstance(adapt, Lora):
        return frozenset(n for n in names if is_adapter(n))
    if isinstance(adapt, Prompt):
        return frozenset([PROMPT])
    if isinstance(adapt, Last):
        if adapt.last > count:
            raise UserError(f"model.adapt.last: {adapt.last} layers were asked for, but the model has {count}; use all")
        layers = range(count - adapt.last, count)
        starts = tuple(f"{stack}.{i}." for i in layers)
    else:
        assert isinstance(adapt, Layers)
        wrong = [i for i in adapt.layers if not 0 <= i < count]
        if wrong:
            raise UserError(f"model.adapt.layers: there is no layer {wrong[0]}; the model has layers 0 to {count - 1}")
        starts = tuple(f"{stack}.{i}." for i in adapt.layers)
    return frozenset(n for n in names if n.startswith(starts))
