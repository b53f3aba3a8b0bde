"""The report of a model on one task with fixed labels: precision, recall and F1 of each class, their averages, and intervals.

Counts are sums over rows (texts) of what each row adds: how many gold, predicted and right answers of each class. A
bootstrap resamples rows, so words of a sentence stay together.
"""

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.integer[Any]]

_RIGHT, _PREDICTED, _GOLD = range(3)
_RESAMPLES = 1000


@dataclass(frozen=True)
class Interval:
    """A number, and the ends of its 95 % bootstrap interval over rows (nan where there is none)."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        if np.isnan(self.low):
            return f"{100 * self.value:.1f}"
        return f"{100 * self.value:.1f} [{100 * self.low:.1f}, {100 * self.high:.1f}]"


@dataclass(frozen=True)
class Line:
    """A class, or an average over classes; `accuracy` has no precision and recall."""

    name: str
    precision: float | None
    recall: float | None
    f1: float
    support: int


@dataclass(frozen=True)
class Report:
    """headline: the numbers to quote; tables: by name, lines of classes and then of averages; rows: texts measured."""

    rows: int
    headline: dict[str, Interval]
    tables: dict[str, tuple[list[Line], list[Line]]]

    def text(self) -> str:
        """The report in the layout of scikit-learn and seqeval, to four digits, and the headline in percent."""
        found = [
            ", ".join(f"{name} {value}" for name, value in self.headline.items()) + f"  (in %, {self.rows} rows"
            + (", 95 % bootstrap intervals over rows)" if any(not np.isnan(v.low) for v in self.headline.values()) else ")")
        ]  # fmt: skip
        for name, (classes, averages) in self.tables.items():
            width = max([len(line.name) for line in (*classes, *averages)], default=0)
            found.append("")
            if name:
                found.append(name)
            found.append(
                f"{'':>{width}} " + "".join(f" {h:>9}" for h in ("precision", "recall", "f1-score", "support"))
            )
            for group in (classes, averages):
                found += ["", *(_printed(line, width) for line in group)]
        return "\n".join(found) + "\n"

    def plain(self) -> dict[str, Any]:
        """The report as plain data."""
        return {
            "rows": self.rows,
            "headline": {n: {k: _known(v) for k, v in asdict(i).items()} for n, i in self.headline.items()},
            "tables": {
                name or "report": {
                    "classes": [asdict(line) for line in classes],
                    "averages": [asdict(line) for line in averages],
                }
                for name, (classes, averages) in self.tables.items()
            },
        }

    def csv(self) -> str:
        """Every line of every table as CSV."""
        out = io.StringIO(newline="")
        writer = csv.writer(out)
        writer.writerow(["table", "name", "precision", "recall", "f1", "support"])
        for table, (classes, averages) in self.tables.items():
            for line in (*classes, *averages):
                writer.writerow([table or "report", *asdict(line).values()])
        return out.getvalue()

    def write(self, folder: Path, name: str) -> None:
        """`name`.txt, `name`.json and `name`.csv in `folder`."""
        for ending, text in (("txt", self.text()), ("json", json.dumps(self.plain(), indent=1)), ("csv", self.csv())):
            (folder / f"{name}.{ending}").write_text(text, encoding="utf-8", newline="")


def _known(value: float) -> float | None:
    return None if np.isnan(value) else value


def _printed(line: Line, width: int) -> str:
    numbers = ("" if n is None else f"{n:.4f}" for n in (line.precision, line.recall, line.f1))
    return f"{line.name:>{width}} " + "".join(f" {n:>9}" for n in numbers) + f" {line.support:>9}"


Measure = Callable[[Floats], Floats]
"""A number from counts [..., 3, class], as [...]."""


@dataclass(frozen=True)
class Counts:
    """What each row adds to the counts of each class, as a list: row, class, and whether right, predicted or gold."""

    rows: int
    classes: int
    row: Ints
    cls: Ints
    which: Ints

    def total(self) -> Floats:
        """Right, predicted and gold answers of each class, [3, class]."""
        found = np.bincount(self.which * self.classes + self.cls, minlength=3 * self.classes)
        return found.reshape(3, self.classes).astype(np.float64)

    def resampled(self, seed: int = 0) -> Floats:
        """The same of as many rows, drawn with replacement, [resample, 3, class]."""
        rng = np.random.Generator(np.random.Philox(seed))
        cell = self.which * self.classes + self.cls
        found = np.empty((_RESAMPLES, 3 * self.classes))
        for i in range(_RESAMPLES):
            often = np.bincount(rng.integers(self.rows, size=self.rows), minlength=self.rows)
            found[i] = np.bincount(cell, often[self.row], 3 * self.classes)
        return found.reshape(_RESAMPLES, 3, self.classes)

    def intervals(self, measures: dict[str, Measure]) -> dict[str, Interval]:
        """Each measure, with the 2.5 and 97.5 percentiles over resampled rows."""
        whole = self.total()
        if self.rows < 2:
            return {name: Interval(float(of(whole)), np.nan, np.nan) for name, of in measures.items()}
        drawn = self.resampled()
        ends = {name: np.percentile(of(drawn), (2.5, 97.5)).tolist() for name, of in measures.items()}
        return {name: Interval(float(of(whole)), *ends[name]) for name, of in measures.items()}


def precision_recall_f1(counts: Floats) -> tuple[Floats, Floats, Floats]:
    """Of each class (0 where nothing was predicted, or there is nothing to find), [..., class] from [..., 3, class]."""
    right, predicted, gold = (counts[..., i, :] for i in range(3))
    return _share(right, predicted), _share(right, gold), _share(2 * right, predicted + gold)


def _share(of: Floats, by: Floats) -> Floats:
    return np.divide(of, by, out=np.zeros_like(of), where=by > 0)


def micro(counts: Floats) -> tuple[Floats, Floats, Floats]:
    """Precision, recall and F1 over all classes' answers together."""
    precision, recall, f1 = precision_recall_f1(counts.sum(-1, keepdims=True))
    return precision[..., 0], recall[..., 0], f1[..., 0]


def macro(counts: Floats) -> tuple[Floats, Floats, Floats]:
    """The plain mean over classes of precision, recall and F1."""
    precision, recall, f1 = precision_recall_f1(counts)
    return precision.mean(-1), recall.mean(-1), f1.mean(-1)


def weighted(counts: Floats) -> tuple[Floats, Floats, Floats]:
    """The mean over classes, weighted by how many gold answers each has."""
    gold = counts[..., _GOLD, :]
    share = gold / np.maximum(gold.sum(-1, keepdims=True), 1)
    precision, recall, f1 = precision_recall_f1(counts)
    return (share * precision).sum(-1), (share * recall).sum(-1), (share * f1).sum(-1)


def _accuracy(counts: Floats) -> Floats:
    return _share(counts[..., _RIGHT, :].sum(-1), counts[..., _GOLD, :].sum(-1))


def classification_report(predicted: Sequence[int], gold: Sequence[int], classes: Sequence[str]) -> Report:
    """Of one answer a row; every class counts in the averages, as in scikit-learn with `labels`."""
    answers, truth = np.asarray(predicted, dtype=np.int64), np.asarray(gold, dtype=np.int64)
    rows = np.arange(len(truth))
    hit = answers == truth
    which = np.repeat([_RIGHT, _PREDICTED, _GOLD], [int(hit.sum()), len(rows), len(rows)])
    counts = Counts(
        len(rows), len(classes), np.concatenate([rows[hit], rows, rows]), np.concatenate([truth[hit], answers, truth]), which
    )  # fmt: skip
    measures: dict[str, Measure] = {
        "accuracy": _accuracy,
        "macro_f1": lambda found: macro(found)[2],
        "weighted_f1": lambda found: weighted(found)[2],
    }
    whole = counts.total()
    averages = [
        Line("accuracy", None, None, float(_accuracy(whole)), len(rows)),
        _average("macro avg", macro(whole), len(rows)),
        _average("weighted avg", weighted(whole), len(rows)),
    ]
    return Report(len(rows), counts.intervals(measures), {"": (_lines(classes, whole), averages)})


def entity_report(predicted: Sequence[Sequence[int]], gold: Sequence[Sequence[int]], classes: Sequence[str]) -> Report:
    """Of exact entity spans, as seqeval: in its strict mode (IOB2) and in its default mode, which reads tags as conlleval does.

    Tags are codes, one sequence a sentence: 0 outside, 2i+1 the first and 2i+2 a later word of type i. Types that are neither
    predicted nor there do not count in the averages.
    """
    tables: dict[str, tuple[list[Line], list[Line]]] = {}
    headline: dict[str, Interval] = {}
    for mode in ("default", "strict"):
        counts = _span_counts(predicted, gold, len(classes), mode == "strict")
        whole = counts.total()
        met = sorted(np.flatnonzero(whole.sum(0)).tolist(), key=lambda i: classes[i])
        found = whole[:, met]
        support = int(found[_GOLD].sum())
        averages = [
            _average(f"{name} avg", of(found), support)
            for name, of in (("micro", micro), ("macro", macro), ("weighted", weighted))
            if met
        ]
        tables[f"{mode} mode"] = (_lines([classes[i] for i in met], found), averages)
        measures: dict[str, Measure] = {"strict_f1": lambda found: micro(found)[2]}
        if mode == "default":
            measures = {
                "entity_f1": lambda found: micro(found)[2],
                "precision": lambda found: micro(found)[0],
                "recall": lambda found: micro(found)[1],
            }
        headline |= counts.intervals(measures)
    return Report(len(gold), headline, tables)


def spans(codes: Sequence[int], strict: bool) -> set[tuple[int, int, int]]:
    """Entities of a sentence: (type, first word, word after the last).

    One starts at a first word; unless `strict`, also at a later word that follows no word of its type.
    """
    found: set[tuple[int, int, int]] = set()
    start, inside = 0, -1  # of the entity that is open: its first word, and its type
    for i, code in enumerate((*codes, 0)):
        kind = (code - 1) // 2 if code else -1
        if code and code % 2 == 0 and kind == inside:
            continue
        if inside >= 0:
            found.add((inside, start, i))
        opens = code % 2 == 1 or (code > 0 and not strict)
        start, inside = i, kind if opens else -1
    return found


def _span_counts(
    predicted: Sequence[Sequence[int]], gold: Sequence[Sequence[int]], classes: int, strict: bool
) -> Counts:
    row: list[int] = []
    cls: list[int] = []
    which: list[int] = []
    for i, (answer, truth) in enumerate(zip(predicted, gold, strict=True)):
        answers, truths = spans(answer, strict), spans(truth, strict)
        for kind, held in ((_RIGHT, answers & truths), (_PREDICTED, answers), (_GOLD, truths)):
            for span in held:
                row.append(i)
                cls.append(span[0])
                which.append(kind)
    arrays = (np.array(values, dtype=np.int64) for values in (row, cls, which))
    return Counts(len(gold), classes, *arrays)


def _lines(names: Sequence[str], counts: Floats) -> list[Line]:
    precision, recall, f1 = precision_recall_f1(counts)
    return [
        Line(name, float(precision[i]), float(recall[i]), float(f1[i]), int(counts[_GOLD, i]))
        for i, name in enumerate(names)
    ]


def _average(name: str, found: tuple[Floats, Floats, Floats], support: int) -> Line:
    precision, recall, f1 = map(float, found)
    return Line(name, precision, recall, f1, support)
