"""Language modelling: a task is a document or a domain, and what is learned from some of its texts is how others go on."""

from collections.abc import Sequence
from math import exp
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from raymeta.episodes import Episode, Examples, Ints
from raymeta.tasks import Texts, seen
from raymeta.tasks._next_token import NextToken, specials


class LanguageModel(NextToken):
    """The next token of texts, from the first one on, for models of GPT-2 or Llama type (T5 writes them from an empty source).

    Reads the roles `text` and `task` (the document, author or domain that a text is of), which must be named. A text longer
    than `model.max_length` is cut. Nothing is generated: query texts are scored as they are, by `query_loss` in nats a token,
    its exponential `perplexity`, and `token_accuracy`.
    """

    roles: ClassVar[tuple[str, ...]] = ("text",)

    # reading

    def check(self, tokenizer: Any) -> None:
        self.end(tokenizer)

    def fault(self, row: dict[str, Any]) -> str | None:
        if not isinstance(row["text"], str):
            return f"text is {seen(row['text'])}, not a string"
        return None if row["text"].strip() else "text is empty"

    def encode(self, rows: Sequence[dict[str, Any]], tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
        """As Examples: the source is what stands before a text, the target the text, with its end unless it was cut."""
        first, _ = specials(tokenizer)
        end = self.end(tokenizer)
        room = max_length - len(first or [end]) + 1  # the last token is foretold and not read
        found = tokenizer(
            [row["text"] for row in rows], add_special_tokens=False, split_special_tokens=True, verbose=False
        )
        encoded = []
        for row, ids in zip(rows, found["input_ids"], strict=True):
            target = [t for t in ids if t != end]
            encoded.append({
                "ids": first or [end], "classes": [str(row.get("task", ""))], "counts": [1], "cut": len(target) >= room,
                "target_ids": [*target, end][:room], **({} if target else {"fault": "text has no token"}),
            })  # fmt: skip
        return encoded

    def examples(self, table: dict[str, Any], rows: Ints, classes: Sequence[str]) -> Examples:
        targets = table["target_ids"]
        return Texts.joined(
            table, rows, {"target_ids": np.concatenate(targets), "target_lengths": [len(t) for t in targets]}
        )

    # scoring

    def score(self, logits: Tensor, examples: Examples, classes: Sequence[str]) -> dict[str, float]:
        found = super().score(logits, examples, classes)
        return {**found, "perplexity": exp(found["query_loss"])}

    def show(self, episode: Episode, tokenizer: Any) -> str:
        lines = [f"task: {episode.classes[0]}"]
        for side, examples in (("support", episode.support), ("query", episode.query)):
            lines.append(f"{side}: {len(examples)} texts")
            ids = torch.split(examples.extra["target_ids"], examples.extra["target_lengths"].tolist())
            lines += [f"  {tokenizer.decode(text)}" for text in ids]
        return "\n".join(lines)
