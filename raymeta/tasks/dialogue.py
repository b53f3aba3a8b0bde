"""Dialogue: a task is a service, learned from some turns: what the system says next, or what the user wants."""

from collections.abc import Sequence
from typing import Any, ClassVar, Literal

from raymeta.episodes import Examples
from raymeta.tasks._text_to_text import Generation
from raymeta.text_metrics import bleu, distinct, needed, same_text


class Dialogue(Generation):
    """The turns so far to the next one, or to the user's intent; a task (column role `task`) is a service.

    With `predict: intent` the role `intent` is read in place of `target`. Responses are scored by BLEU (sacrebleu) and
    distinct-1 and -2 (Li et al. 2016) over all answers of an episode, intents by the share that is named right.
    """

    optional: ClassVar[tuple[str, ...]] = ("references", "intent")

    predict: Literal["response", "intent"] = "response"
    """What is generated: the system's next turn, or the user's intent."""
    keep: Literal["start", "end"] = "end"
    """Which end of a source that is cut remains: the last turns."""

    def reads(self) -> tuple[str, ...]:
        return ("source", "intent") if self.predict == "intent" else self.roles

    def check(self, tokenizer: Any) -> None:
        needed("sacrebleu")
        super().check(tokenizer)

    def fault(self, row: dict[str, Any]) -> str | None:
        return super().fault(self._row(row))

    def encode(self, rows: Sequence[dict[str, Any]], tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
        return super().encode([self._row(row) for row in rows], tokenizer, max_length)

    def _row(self, row: dict[str, Any]) -> dict[str, Any]:
        return {**row, "target": row["intent"]} if self.predict == "intent" else row

    def score_texts(self, answers: list[str], examples: Examples, classes: Sequence[str]) -> dict[str, float]:
        references = self.references(examples)
        if self.predict == "intent":
            return {"intent_accuracy": same_text(answers, references)}
        return {
            "bleu": bleu(answers, references),
            "distinct_1": distinct(answers, 1),
            "distinct_2": distinct(answers, 2),
        }
