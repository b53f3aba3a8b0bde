"""Metrics agree with the libraries that define them; intervals with their formula."""

import math
import random

import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import f1_score, precision_score, recall_score
from seqeval.scheme import IOB2
from sklearn.metrics import accuracy_score
from sklearn.metrics import f1_score as sklearn_f1

from raymeta.metrics import (
    Estimate,
    classification_scores,
    differences,
    entity_scores,
    estimate,
    estimate_of_few,
    estimates,
)

sentences = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=12), min_size=1, max_size=6)


def well_formed(codes: list[int]) -> list[int]:
    """The codes, with a later word that follows no word of its type made a first one."""
    out: list[int] = []
    for code in codes:
        follows = out and out[-1] in (code, code - 1)
        out.append(code - 1 if code and code % 2 == 0 and not follows else code)
    return out


def tags(codes: list[int]) -> list[str]:
    return [["O", "B-0", "I-0", "B-1", "I-1", "B-2", "I-2"][c] for c in codes]


@settings(max_examples=150, deadline=None)
@given(st.data(), sentences)
def test_entity_f1_is_seqevals(data, gold):
    predicted = [data.draw(st.lists(st.integers(0, 6), min_size=len(g), max_size=len(g))) for g in gold]
    gold = [well_formed(g) for g in gold]
    found = entity_scores(predicted, gold, types=3)
    truth, answer = [tags(g) for g in gold], [tags(well_formed(p)) for p in predicted]
    if any(t != "O" for sentence in (*truth, *answer) for t in sentence):
        strict = {"mode": "strict", "scheme": IOB2, "zero_division": 0}
        assert found["entity_f1"] == pytest.approx(f1_score(truth, answer, **strict), abs=1e-12)
        assert found["precision"] == pytest.approx(precision_score(truth, answer, **strict), abs=1e-12)
        assert found["recall"] == pytest.approx(recall_score(truth, answer, **strict), abs=1e-12)
    else:
        assert found == {"entity_f1": 0.0, "precision": 0.0, "recall": 0.0}


def test_entity_f1_counts_whole_spans_of_the_right_type():
    gold = [[1, 2, 0, 3], [5, 0]]
    assert entity_scores(gold, gold, 3)["entity_f1"] == 1.0
    found = entity_scores([[1, 0, 0, 3], [3, 0]], gold, 3)  # one of three is right, three were guessed
    assert found == {
        "entity_f1": pytest.approx(1 / 3),
        "precision": pytest.approx(1 / 3),
        "recall": pytest.approx(1 / 3),
    }
    assert entity_scores([[0, 0, 0, 0], [0, 0]], gold, 3) == {"entity_f1": 0.0, "precision": 0.0, "recall": 0.0}


@settings(max_examples=100, deadline=None)
@given(st.integers(2, 6), st.integers(1, 60), st.integers(0, 10**6))
def test_accuracy_and_macro_f1_are_scikit_learns(classes, n, seed):
    rng = random.Random(seed)
    gold = [rng.randrange(classes) for _ in range(n)]
    predicted = [rng.randrange(classes) for _ in range(n)]
    found = classification_scores(predicted, gold, classes)
    assert found["accuracy"] == pytest.approx(accuracy_score(gold, predicted))
    expected = sklearn_f1(gold, predicted, labels=list(range(classes)), average="macro", zero_division=0)
    assert found["macro_f1"] == pytest.approx(expected)


@given(st.lists(st.floats(0, 1), min_size=2, max_size=50))
def test_an_interval_is_196_standard_errors_to_each_side(values):
    found = estimate(values)
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((v - mean) ** 2 for v in values) / (len(values) - 1))
    assert found.mean == pytest.approx(mean, abs=1e-12)
    assert found.ci95 == pytest.approx(1.96 * spread / math.sqrt(len(values)), abs=1e-9)
    assert found.interval == (found.mean - found.ci95, found.mean + found.ci95)


def test_95_of_100_intervals_hold_the_true_mean():
    rng = np.random.Generator(np.random.Philox(0))
    held = 0
    for _ in range(1000):
        low, high = estimate(rng.normal(0.5, 0.2, size=100).tolist()).interval
        held += low <= 0.5 <= high
    assert 0.93 < held / 1000 < 0.97  # three standard deviations of the share are 0.02


def test_the_interval_of_a_few_repeats_is_students():
    values = [0.81, 0.84, 0.79, 0.86, 0.80]
    low, high = scipy.stats.t.interval(0.95, 4, np.mean(values), scipy.stats.sem(values))
    assert estimate_of_few(values).interval == (pytest.approx(low), pytest.approx(high))
    assert estimate_of_few([0.5]) == Estimate(0.5, math.inf)


def test_one_episode_has_no_interval():
    assert estimate([0.5]) == Estimate(0.5, math.inf)


def test_an_estimate_reads_in_percent():
    assert str(Estimate(0.8714, 0.0088)) == "87.1 ± 0.9"
    assert estimates([{"accuracy": 0.0, "f": 1.0}, {"accuracy": 1.0, "f": 1.0}])["f"] == Estimate(1.0, 0.0)
    assert estimates([]) == {}
    some = estimates([{"f": 0.0, "qa/f": 0.0}, {"f": 1.0}, {"f": 1.0, "qa/f": 1.0}])
    assert some["qa/f"] == estimate([0.0, 1.0])
    assert some["f"] == estimate([0.0, 1.0, 1.0])


def test_the_interval_of_a_single_episode_is_said_to_be_unknown():
    assert str(estimate([0.5])) == "50.0 ± unknown"
    assert str(estimate([0.5, 0.5])) == "50.0 ± 0.0"
    assert estimate([1.25, 1.75]).text(3) == "1.500 ± 0.490"


def test_the_interval_of_a_difference_leaves_out_what_makes_episodes_hard():
    hard = np.random.default_rng(0).normal(0.5, 0.2, size=200)
    ours = [{"accuracy": h + 0.05 + e, "loss": 1.0} for h, e in zip(hard, np.tile([0.01, -0.01], 100), strict=True)]
    theirs = [{"accuracy": h} for h in hard]
    found = estimates(differences(ours, theirs))
    assert list(found) == ["accuracy"]
    assert found["accuracy"].mean == pytest.approx(0.05)
    assert found["accuracy"].ci95 == pytest.approx(1.96 * 0.01 * np.sqrt(200 / 199) / np.sqrt(200))
    assert len(differences(ours, theirs[:50])) == 50
    assert found["accuracy"].text(1, 100, "+") == "+5.0 ± 0.1"
