"""Summarization: a task is a domain, learned from some texts and their summaries."""

from collections.abc import Sequence
from typing import Any

from raymeta.episodes import Examples
from raymeta.tasks._text_to_text import Generation
from raymeta.text_metrics import needed, rouge


class Summarization(Generation):
    """Texts to their summaries; a task (column role `task`) is a domain.

    Scored by ROUGE-1, -2 and -L (rouge-score, F1 with stemming, in English); of several references the best counts.
    """

    template: str = "summarize: {source}"
    """What the model is given: the text as `{source}`, and `{task}`, in any words."""

    def check(self, tokenizer: Any) -> None:
        needed("rouge_score")
        super().check(tokenizer)

    def score_texts(self, answers: list[str], examples: Examples, classes: Sequence[str]) -> dict[str, float]:
        return rouge(answers, self.references(examples))
