"""Metrics of texts agree with the packages that define them, on the same strings."""

import sys

import pytest
import sacrebleu
from hypothesis import given, settings
from hypothesis import strategies as st
from rouge_score import rouge_scorer

from raymeta import text_metrics
from raymeta.errors import UserError
from raymeta.text_metrics import bleu, chrf, distinct, rouge, same_text

ANSWERS = [
    "The cat sat on the mat.",
    "about how long have these symptoms been going on?",
    "",
    "Wie lange bestehen diese Symptome schon?",
    "这些症状持续多久了?",
]
REFERENCES = [
    ["A cat was sitting on the mat.", "The cat sat on a mat ."],
    ["How long have these symptoms been going on?"],
    ["nothing", "not a thing", "none"],
    ["Wie lange haben Sie diese Symptome schon?"],
    ["这些症状出现多久了?"],
]
SOME_WORDS = ("the", "cat", "sat", "on", "a", "mat", "dogs", "running", "ran", "quickly", ",", ".")
WORDS = st.lists(st.sampled_from(SOME_WORDS), max_size=12).map(" ".join)
PAIRS = st.lists(
    st.tuples(WORDS, st.lists(WORDS.filter(bool), min_size=1, max_size=3)), min_size=1, max_size=5
).map(lambda pairs: ([a for a, _ in pairs], [r for _, r in pairs]))  # fmt: skip


@pytest.mark.parametrize("tokens", ["13a", "intl", "char", "zh", "none"])
def test_bleu_is_sacrebleus_with_several_references(tokens):
    several = [["A cat was sitting on the mat.", *(r[0] for r in REFERENCES[1:])]]
    several.append(["The cat sat on a mat .", None, "not a thing", None, None])
    several.append([None, None, "none", None, None])
    wanted = sacrebleu.BLEU(tokenize=tokens).corpus_score(ANSWERS, several).score
    assert bleu(ANSWERS, REFERENCES, tokens) == pytest.approx(wanted / 100, abs=1e-12)
    assert wanted > 5


def test_chrf_is_sacrebleus():
    wanted = sacrebleu.CHRF().corpus_score([ANSWERS[3]], [[REFERENCES[3][0]]]).score
    assert chrf([ANSWERS[3]], [REFERENCES[3]]) == pytest.approx(wanted / 100, abs=1e-12)
    assert chrf(ANSWERS, [[a or "-"] for a in ANSWERS]) > 0.95


@settings(max_examples=60, deadline=None)
@given(PAIRS)
def test_rouge_is_rouge_scores_best_reference(pair):
    answers, references = pair
    scorer = rouge_scorer.RougeScorer(["rouge1", "rouge2", "rougeL"], use_stemmer=True)
    found = rouge(answers, references)
    for ours, theirs in (("rouge_1", "rouge1"), ("rouge_2", "rouge2"), ("rouge_l", "rougeL")):
        best = [
            max(scorer.score(r, a)[theirs].fmeasure for r in accepted)
            for a, accepted in zip(answers, references, strict=True)
        ]
        assert found[ours] == pytest.approx(sum(best) / len(best), abs=1e-12)


def test_distinct_counts_different_ngrams_of_all_answers():
    assert distinct(["a b a b", "a c"], 1) == 3 / 6
    assert distinct(["a b a b", "a c"], 2) == 3 / 4  # ab, ba, ab; ac
    assert distinct(["", "word"], 2) == 0.0


def test_texts_are_the_same_but_for_case_punctuation_and_spaces():
    assert (
        same_text(["Yes.", " entailment ", "no", "the cat"], [["yes"], ["Entailment"], ["yes", "NO!"], ["cat"]]) == 0.75
    )


@pytest.mark.parametrize(("module", "package"), [("sacrebleu", "sacrebleu"), ("rouge_score", "rouge-score")])
def test_a_missing_package_is_named_with_its_extra(module, package, monkeypatch):
    monkeypatch.setattr(text_metrics, "find_spec", lambda name: None if name == module else sys.modules)
    with pytest.raises(UserError, match=rf"{package}.*raymeta\[text\]"):
        text_metrics.needed("sacrebleu", "rouge_score")
