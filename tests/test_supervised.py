"""Reports agree with scikit-learn's and seqeval's, in numbers and in layout; intervals are those of resampled rows."""

import csv
import io
import json
import random
import warnings

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seqeval.metrics import classification_report as seqeval_report
from seqeval.scheme import IOB2
from sklearn.metrics import classification_report as sklearn_report

from raymeta.supervised import Line, classification_report, entity_report, spans

TYPES = ["place", "actor", "dish"]
TAGS = ["O", *(f"{prefix}-{t}" for t in TYPES for prefix in "BI")]


def as_dict(lines: list[Line]) -> dict[str, dict[str, float | None]]:
    return {
        line.name: {"precision": line.precision, "recall": line.recall, "f1-score": line.f1, "support": line.support}
        for line in lines
    }


def answers(seed: int, classes: int, n: int) -> tuple[list[int], list[int]]:
    rng = random.Random(seed)
    gold = [rng.randrange(classes) for _ in range(n)]
    return [g if rng.random() < 0.6 else rng.randrange(classes) for g in gold], gold


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.integers(1, 60))
def test_a_classification_report_is_scikit_learns(seed, classes, n):
    predicted, gold = answers(seed, classes, n)
    names = [f"class {i}" for i in range(classes)]
    found = classification_report(predicted, gold, names)
    wanted = sklearn_report(
        gold, predicted, labels=list(range(classes)), target_names=names, output_dict=True, zero_division=0
    )
    lines, averages = found.tables[""]
    for name, numbers in as_dict([*lines, *averages[1:]]).items():
        assert numbers == pytest.approx(wanted[name], abs=1e-12), name
    accuracy = float(np.mean(np.array(predicted) == np.array(gold)))
    assert averages[0] == Line("accuracy", None, None, pytest.approx(accuracy), n)
    assert found.headline["accuracy"].value == pytest.approx(accuracy)
    assert found.headline["macro_f1"].value == pytest.approx(wanted["macro avg"]["f1-score"])
    assert found.headline["weighted_f1"].value == pytest.approx(wanted["weighted avg"]["f1-score"])


sentences = st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=12), min_size=1, max_size=6)


@settings(max_examples=30, deadline=None)
@given(st.data(), sentences)
def test_an_entity_report_is_seqevals_in_both_modes(data, gold):
    """On any tags, even those in which an entity has no first word."""
    predicted = [data.draw(st.lists(st.integers(0, 6), min_size=len(g), max_size=len(g))) for g in gold]
    found = entity_report(predicted, gold, TYPES)
    truth, answer = ([[TAGS[c] for c in s] for s in side] for side in (gold, predicted))
    for mode in ("default", "strict"):
        lines, averages = found.tables[f"{mode} mode"]
        if not lines:
            assert not any(spans(s, mode == "strict") for s in (*gold, *predicted))
            continue
        how = {"mode": "strict", "scheme": IOB2} if mode == "strict" else {}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            wanted = seqeval_report(truth, answer, output_dict=True, zero_division=0, **how)
        ours = as_dict([*lines, *averages])
        assert list(ours) == list(wanted)
        for name, numbers in ours.items():
            assert numbers == pytest.approx(wanted[name], abs=1e-12), (mode, name)
        headline = "entity_f1" if mode == "default" else "strict_f1"
        assert found.headline[headline].value == pytest.approx(wanted["micro avg"]["f1-score"], abs=1e-12)


def test_the_text_has_the_layout_of_seqeval():
    gold = [[1, 2, 0, 3], [5, 0, 0], [3, 4, 4]]
    predicted = [[1, 2, 0, 3], [0, 5, 0], [3, 4, 0]]
    text = entity_report(predicted, gold, TYPES).text()
    truth, answer = ([[TAGS[c] for c in s] for s in side] for side in (gold, predicted))
    wanted = seqeval_report(truth, answer, digits=4, zero_division=0)

    def words(table: str) -> list[list[str]]:
        return [line.split() for line in table.splitlines() if line.strip()]

    default = text.partition("default mode\n")[2].partition("strict mode\n")[0]
    assert words(default) == words(wanted)
    assert len({len(line) for line in default.splitlines() if line.strip()}) == 1  # columns are aligned
    assert text.startswith("entity_f1 50.0 [")


def test_a_report_as_json_and_csv_holds_what_its_text_does(tmp_path):
    predicted, gold = answers(0, 3, 40)
    report = classification_report(predicted, gold, ["a", 'b "quoted", c', "d"])
    report.write(tmp_path, "test")
    assert (tmp_path / "test.txt").read_text() == report.text()
    plain = json.loads((tmp_path / "test.json").read_text())
    assert plain["rows"] == 40
    assert plain["headline"]["accuracy"]["value"] == report.headline["accuracy"].value
    with (tmp_path / "test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [r["name"] for r in rows] == ["a", 'b "quoted", c', "d", "accuracy", "macro avg", "weighted avg"]
    lines, averages = report.tables[""]
    for row, line, also in zip(
        rows,
        [*lines, *averages],
        [*plain["tables"]["report"]["classes"], *plain["tables"]["report"]["averages"]],
        strict=True,
    ):
        assert float(row["f1"]) == line.f1 == also["f1"]
        assert int(row["support"]) == line.support == also["support"]
    assert next(csv.reader(io.StringIO(report.csv()))) == ["table", "name", "precision", "recall", "f1", "support"]


def test_nineteen_of_twenty_bootstrap_intervals_hold_the_true_accuracy():
    rng = np.random.Generator(np.random.Philox(0))
    held = 0
    for _ in range(60):
        gold = rng.integers(3, size=200)
        right = rng.random(200) < 0.8
        found = classification_report(np.where(right, gold, (gold + 1) % 3), gold, list("abc")).headline["accuracy"]
        held += found.low <= 0.8 <= found.high
    assert held >= 51  # binomial: fewer than 51 of 60 at 95 % has a chance of 1 in 700


def test_sentences_are_resampled_whole():
    """Of two sentences, one all right and one all wrong, a resample holds one of them twice or each once."""
    found = entity_report([[1, 0, 1, 0], [0, 0, 0, 0]], [[1, 0, 1, 0], [3, 0, 3, 0]], TYPES).headline["recall"]
    assert (found.value, found.low, found.high) == (0.5, 0.0, 1.0)


def test_nothing_found_where_there_is_nothing_is_zero():
    found = entity_report([[0, 0]], [[0, 0]], TYPES)
    assert found.headline["entity_f1"].value == 0.0
    assert "support" in found.text()
