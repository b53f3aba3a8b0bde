"""Metrics of generated texts, computed by the packages that define them (the extra `text`): each a share between 0 and 1."""

import string
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal

from raymeta.errors import UserError

References = Sequence[Sequence[str]]
"""The accepted texts of each answer, at least one."""

BleuTokens = Literal["13a", "intl", "char", "zh", "none"]
"""How sacrebleu splits texts into tokens."""

_PACKAGES = {"sacrebleu": "sacrebleu", "rouge_score": "rouge-score"}
"""Modules of the extra `text`, and the packages that they come in."""


def needed(*modules: str) -> None:
    """Raises UserError where a module of the extra `text` is not installed."""
    for module in modules:
        if find_spec(module) is None:
            raise UserError(
                f"this task kind's metrics need the package {_PACKAGES[module]}, which is not installed here; install raymeta's "
                "extra `text` (pip install 'raymeta[text]')"
            )


def bleu(answers: Sequence[str], references: References, tokens: BleuTokens = "13a") -> float:
    """BLEU of all answers together, as sacrebleu has it (Post 2018), divided by 100."""
    return float(_sacrebleu().corpus_bleu(answers, _by_place(references), tokenize=tokens).score) / 100


def chrf(answers: Sequence[str], references: References) -> float:
    """chrF2 of all answers together, as sacrebleu has it (Popovic 2015), divided by 100."""
    return float(_sacrebleu().corpus_chrf(answers, _by_place(references)).score) / 100


def rouge(answers: Sequence[str], references: References) -> dict[str, float]:
    """Mean F1 of `rouge_1`, `rouge_2` and `rouge_l` as rouge-score has it, with stemming: the best reference counts."""
    scorer = _rouge_scorer()
    found = [scorer.score_multi(list(accepted), answer) for answer, accepted in zip(answers, references, strict=True)]
    names = {"rouge_1": "rouge1", "rouge_2": "rouge2", "rouge_l": "rougeL"}
    return {ours: sum(f[theirs].fmeasure for f in found) / len(found) for ours, theirs in names.items()}


def distinct(answers: Sequence[str], n: int) -> float:
    """Distinct-n (Li et al. 2016): different n-grams of words in all answers, over all n-grams; 0 where there is none."""
    grams = [tuple(words[i : i + n]) for words in map(str.split, answers) for i in range(len(words) - n + 1)]
    return len(set(grams)) / len(grams) if grams else 0.0


def same_text(answers: Sequence[str], references: References) -> float:
    """Share of answers that equal a reference but for case, punctuation and spaces: Super-NaturalInstructions' exact match."""
    hits = [
        any(_plain(answer) == _plain(reference) for reference in accepted)
        for answer, accepted in zip(answers, references, strict=True)
    ]
    return sum(hits) / len(hits)


def _plain(text: str) -> str:
    return " ".join(text.lower().translate(_PUNCTUATION).split())


_PUNCTUATION = str.maketrans("", "", string.punctuation)


def _by_place(references: References) -> list[list[str | None]]:
    """The first references of all answers, then the second ones, ...; None where an answer has fewer."""
    most = max(len(accepted) for accepted in references)
    return [[accepted[i] if i < len(accepted) else None for accepted in references] for i in range(most)]


def _sacrebleu() -> Any:
    needed("sacrebleu")
    return import_module("sacrebleu")


@lru_cache(maxsize=1)
def _rouge_scorer() -> Any:
    needed("rouge_score")
    return import_module("rouge_score.rouge_scorer").RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
