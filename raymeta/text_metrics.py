"""Metrics of texts, each a share between 0 and 1: of generated ones, computed by the packages that define them (the extra
`text`), and of answers to questions, by the rules of SQuAD and MLQA."""

import re
import string
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, Literal
from unicodedata import category

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


def exact_match(answer: str, accepted: Sequence[str], language: str = "en") -> float:
    """1 where the answer equals an accepted one once both are `squad_tokens`, else 0; no accepted answer means ""."""
    found = squad_tokens(answer, language)
    return float(any(found == squad_tokens(a, language) for a in accepted or [""]))


def token_f1(answer: str, accepted: Sequence[str], language: str = "en") -> float:
    """F1 of the answer's tokens against those of the accepted answer that it is nearest to; where either has no token, as
    where a question has no answer, 1 if both have none, else 0."""
    return max(_f1(squad_tokens(answer, language), squad_tokens(a, language)) for a in accepted or [""])


def squad_tokens(text: str, language: str = "en") -> list[str]:
    """Tokens of an answer, in lower case, without punctuation and articles.

    SQuAD's rules (Rajpurkar et al. 2016) as MLQA has them for each language (Lewis et al. 2020, its evaluation script 1.0):
    punctuation is Unicode's, articles are the language's. Chinese is split into characters, and so are Japanese and Thai,
    which MLQA does not have. Languages without a list of articles keep all words.
    """
    plain = "".join(c for c in text.lower() if c not in string.punctuation and category(c)[0] != "P")
    language = language.lower().partition("-")[0]
    if language in _ARTICLES:
        plain = _ARTICLES[language].sub(" ", plain)
    if language in _CHARACTERS:
        plain = _CHARACTERS[language].sub(r" \g<0> ", plain)
    return plain.split()


def _f1(found: Sequence[str], wanted: Sequence[str]) -> float:
    if not found or not wanted:
        return float(list(found) == list(wanted))
    same = sum((Counter(found) & Counter(wanted)).values())
    return 2 * same / (len(found) + len(wanted))


_ARTICLES = {
    "en": re.compile(r"\b(a|an|the)\b"),
    "es": re.compile(r"\b(un|una|unos|unas|el|la|los|las)\b"),
    "vi": re.compile(r"\b(của|là|cái|chiếc|những)\b"),
    "de": re.compile(r"\b(ein|eine|einen|einem|eines|einer|der|die|das|den|dem|des)\b"),
    "ar": re.compile(r"ال"),
}
_CHARACTERS = {
    "zh": re.compile(r"[\u4e00-\u9fa5]"),
    "ja": re.compile(r"[\u3005\u3040-\u30ff\u3400-\u9fff]"),
    "th": re.compile(r"[\u0e00-\u0e7f]"),
}
