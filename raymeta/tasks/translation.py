"""Translation: a task is a language pair, learned from some pairs of sentences."""

from collections.abc import Sequence
from typing import Any

from raymeta.episodes import Examples
from raymeta.tasks._text_to_text import Generation
from raymeta.text_metrics import BleuTokens, bleu, chrf, needed


class Translation(Generation):
    """Sentences into another language; a task (column role `task`) is a language or a pair of them.

    Scored by BLEU and chrF over all query sentences of an episode (sacrebleu).
    """

    template: str = "translate {task}: {source}"
    """What the model is given: the sentence as `{source}`, and the language as `{task}`, in any words."""
    bleu_tokens: BleuTokens = "13a"
    """How BLEU splits texts: `13a` for languages that write spaces between words; `zh` for Chinese; `char` where there are
    no spaces. chrF needs none."""

    def check(self, tokenizer: Any) -> None:
        needed("sacrebleu")
        super().check(tokenizer)

    def score_texts(self, answers: list[str], examples: Examples, classes: Sequence[str]) -> dict[str, float]:
        references = self.references(examples)
        return {"bleu": bleu(answers, references, self.bleu_tokens), "chrf": chrf(answers, references)}
