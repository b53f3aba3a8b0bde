"""Tokens as answers, each told from those before it by a language model's own output layer: what such kinds share."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, model_validator
from torch import Tensor

from raymeta.episodes import Drawn, Examples, Ints, Pool
from raymeta.errors import UserError
from raymeta.inner import Picks
from raymeta.tasks import Choices, Range, Tasks


class NextToken(Tasks):
    """An episode is one task, a group of rows that belong together: `shots` of its texts to learn from, `queries` others."""

    generates: ClassVar[bool] = True
    fewest_ways: ClassVar[int] = 1
    metric: ClassVar[str] = "token_accuracy"

    ways: Range = (1, 1)
    """Tasks of an episode: always 1."""
    shots: Range = (8, 8)
    """Support instances of the task (K), or [low, high]."""
    queries: int = Field(8, ge=1)
    """Query instances of the task."""

    @model_validator(mode="after")
    def _one_task(self) -> "NextToken":
        if self.ways != (1, 1):
            raise ValueError(f"ways: an episode of {self.kind} is one task; leave ways out")
        return self

    # reading

    def end(self, tokenizer: Any) -> int:
        """The token that ends a target; raises UserError where the tokenizer has none."""
        for token in (tokenizer.eos_token_id, tokenizer.sep_token_id):
            if token is not None:
                return int(token)
        raise UserError(
            f"model.name: {self.kind} needs a token that ends a text, and the tokenizer has neither eos_token nor sep_token; "
            "set eos_token in its tokenizer_config.json"
        )

    # drawing

    def class_need(self, shots: int) -> int:
        return shots + self.queries

    def choices(self, pool: Pool) -> Choices:
        need, sizes = self.class_need(self.shots[1]), pool.class_sizes()
        if not (sizes >= need).any():
            raise UserError(
                f"tasks.shots: no task of the {pool.split} split has {need} instances (shots {self.shots[1]} + queries "
                f"{self.queries}); the largest has {sizes.max()}; lower tasks.shots or tasks.queries"
            )
        return super().choices(pool)

    def _fill(self, pool: Pool, classes: Ints, task: int | None, shots: int, rng: np.random.Generator) -> Drawn:
        rows = pool.rows_of(int(classes[0]), task)
        picked = rows[rng.choice(len(rows), shots + self.queries, replace=False, shuffle=True)]
        return Drawn((pool.classes[classes[0]],), picked[:shots], picked[shots:])

    # learning and scoring

    def picks(self, examples: Examples, pooling: str) -> Picks:
        """Each target token is an item, told by the decoder's state at its place."""
        return Picks(torch.arange(len(examples.extra["target_ids"]), device=examples.ids.device))

    def targets(self, examples: Examples) -> Tensor:
        return examples.extra["target_ids"]

    def score(self, logits: Tensor, examples: Examples, classes: Sequence[str]) -> dict[str, float]:
        """Over target tokens, each told from those before it: `token_accuracy`, and `query_loss` in nats a token."""
        targets = self.targets(examples)
        return {
            "token_accuracy": float((logits.argmax(-1) == targets).double().mean()),
            "query_loss": float(F.cross_entropy(logits.double(), targets)),
        }


def specials(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text."""
    found = tokenizer("a", return_special_tokens_mask=True)
    inside = [i for i, special in enumerate(found["special_tokens_mask"]) if not special]
    return found["input_ids"][: inside[0]], found["input_ids"][inside[-1] + 1 :]
