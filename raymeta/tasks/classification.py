"""Text classification: N classes of a product, a domain or a corpus, K labelled texts each."""

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from raymeta.episodes import Drawn, Episode, Examples, Ints, Pool
from raymeta.inner import Picks
from raymeta.metrics import classification_scores
from raymeta.supervised import Report, classification_report
from raymeta.tasks import Tasks, Texts, seen, text_picks


class Classification(Tasks):
    """N-way K-shot classification of whole texts.

    Reads the roles `text` and `label`, and `task` where there is one (the domain). Each episode shuffles its labels,
    so that a class has no fixed output.
    """

    roles: ClassVar[tuple[str, ...]] = ("text", "label")
    metric: ClassVar[str] = "accuracy"
    auto_class: ClassVar[str] = "SequenceClassification"

    def fault(self, row: dict[str, Any]) -> str | None:
        text, label = row["text"], row["label"]
        if not isinstance(text, str):
            return f"text is {seen(text)}, not a string"
        if not text.strip():
            return "text is empty"
        if isinstance(label, float) or label is None or isinstance(label, (list, dict)):
            return f"label is {seen(label)}, not a string or a whole number"
        return "label is empty" if not str(label).strip() else None

    def encode(self, rows: Sequence[dict[str, Any]], tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
        found = tokenizer([row["text"] for row in rows], truncation=True, max_length=max_length, return_length=False)
        return [
            {"ids": ids, "classes": [str(row["label"])], "counts": [1], "cut": bool(whole.overflowing)}
            for row, ids, whole in zip(rows, found["input_ids"], found.encodings, strict=True)
        ]

    def class_need(self, shots: int) -> int:
        return shots + self.queries

    def _fill(self, pool: Pool, classes: Ints, task: int | None, shots: int, rng: np.random.Generator) -> Drawn:
        support, query = [], []
        for cls in classes:
            rows = pool.rows_of(int(cls), task)
            picked = rows[rng.choice(len(rows), shots + self.queries, replace=False, shuffle=True)]
            support.append(picked[:shots])
            query.append(picked[shots:])
        return Drawn(tuple(pool.classes[c] for c in classes), np.concatenate(support), np.concatenate(query))

    def examples(self, table: dict[str, Any], rows: Ints, classes: Sequence[str]) -> Examples:
        place = {name: i for i, name in enumerate(classes)}
        return Texts.joined(table, rows, {"labels": [place[c[0]] for c in table["classes"]]})

    def picks(self, examples: Examples, pooling: str) -> Picks:
        return text_picks(examples, pooling)

    def targets(self, examples: Examples) -> Tensor:
        return examples.extra["labels"]

    def score(self, logits: Tensor, examples: Examples, classes: Sequence[str]) -> dict[str, float]:
        return classification_scores(logits.argmax(-1).tolist(), self.targets(examples).tolist(), len(classes))

    def report(self, logits: Tensor, examples: Examples, classes: Sequence[str]) -> Report:
        return classification_report(logits.argmax(-1).tolist(), self.targets(examples).tolist(), classes)

    def show(self, episode: Episode, tokenizer: Any) -> str:
        lines = []
        for side, examples in (("support", episode.support), ("query", episode.query)):
            lines.append(f"{side}: {len(examples)} texts")
            ends = examples.lengths.cumsum(0).tolist()
            for i, (end, label) in enumerate(zip(ends, self.targets(examples).tolist(), strict=True)):
                text = tokenizer.decode(examples.ids[end - int(examples.lengths[i]) : end], skip_special_tokens=True)
                lines.append(f"  {episode.classes[label]:<24} {text}")
        return "\n".join(lines)
