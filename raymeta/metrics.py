"""Metrics of one episode, and their mean over episodes with its 95 % interval."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite, sqrt

import numpy as np
from scipy.stats import t as student_t
from seqeval.metrics.v1 import precision_recall_fscore_support
from seqeval.scheme import IOB2


@dataclass(frozen=True)
class Estimate:
    """A mean over episodes (or repeats) and half the width of its 95 % confidence interval."""

    mean: float
    ci95: float

    def __str__(self) -> str:
        return self.text(1, 100)

    def text(self, digits: int, factor: float = 1, sign: str = "") -> str:
        """Times `factor`, with so many decimals; without an interval where a single episode gives none. sign: "+" shows it."""
        half = f"{factor * self.ci95:.{digits}f}" if isfinite(self.ci95) else "unknown"
        return f"{factor * self.mean:{sign}.{digits}f} ± {half}"

    @property
    def interval(self) -> tuple[float, float]:
        """Lower and upper end."""
        return self.mean - self.ci95, self.mean + self.ci95


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 1.96 s / sqrt(n) of per-episode values; the interval of a single value is infinite."""
    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        return Estimate(float(array.mean()), float("inf"))
    return Estimate(float(array.mean()), float(1.96 * array.std(ddof=1) / sqrt(len(array))))


def estimate_of_few(values: Sequence[float]) -> Estimate:
    """Mean and t s / sqrt(n) of independent repeats (seeds), with Student's t for n - 1 degrees of freedom."""
    found = estimate(values)
    if len(values) < 2:
        return found
    return Estimate(found.mean, found.ci95 / 1.96 * float(student_t.ppf(0.975, len(values) - 1)))


def estimates(episodes: Sequence[Mapping[str, float]]) -> dict[str, Estimate]:
    """The estimate of each metric over the episodes that have it."""
    names = dict.fromkeys(name for e in episodes for name in e)
    return {name: estimate([e[name] for e in episodes if name in e]) for name in names}


def differences(ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    """Ours less theirs of each metric, episode by episode; where one has fewer episodes, of those that both have.

    What makes an episode hard or easy is in both, so the interval of the mean difference is narrower than those of the two means.
    """
    pairs = zip(ours, theirs, strict=False)
    return [{name: mine[name] - other[name] for name in mine if name in other} for mine, other in pairs]


def estimate_of_ratio(sums: Sequence[float], counts: Sequence[float]) -> Estimate:
    """A mean over items that come in groups, from each group's sum and number of items; the groups are independent.

    The interval is that of a ratio estimate (Cochran 1977, section 2.11); of a single group it is infinite.
    """
    total, number = np.asarray(sums, dtype=np.float64), np.asarray(counts, dtype=np.float64)
    mean = float(total.sum() / number.sum())
    if len(total) < 2:
        return Estimate(mean, float("inf"))
    deviation = sqrt(float(((total - mean * number) ** 2).sum()) / (len(total) - 1) / len(total)) / number.mean()
    return Estimate(mean, float(1.96 * deviation))


def mean_of(found: Sequence[Estimate]) -> Estimate:
    """The mean of independent estimates, each with the same say: its variance is the sum of theirs over n squared."""
    variance = sum(e.ci95**2 for e in found)
    return Estimate(sum(e.mean for e in found) / len(found), sqrt(variance) / len(found))


def classification_scores(predicted: Sequence[int], gold: Sequence[int], classes: int) -> dict[str, float]:
    """`accuracy`, and `macro_f1`: the mean F1 of classes 0..classes-1, where a class never met or predicted counts 0."""
    table = np.zeros((classes, classes), dtype=np.int64)
    np.add.at(table, (np.asarray(gold), np.asarray(predicted)), 1)
    hits = table.diagonal()
    both = table.sum(0) + table.sum(1)
    f1 = np.divide(2 * hits, both, out=np.zeros(classes), where=both > 0)
    return {"accuracy": float(hits.sum() / max(table.sum(), 1)), "macro_f1": float(f1.mean())}


def entity_scores(predicted: Sequence[Sequence[int]], gold: Sequence[Sequence[int]], types: int) -> dict[str, float]:
    """Micro precision, recall and F1 of exact entity spans by seqeval (strict IOB2).

    Tags are codes, one sequence a sentence: 0 outside, 2i+1 the first and 2i+2 a later word of type i. A predicted
    later word that follows no word of its type starts an entity, as in conlleval.
    """
    names = ["O", *(f"{prefix}-{i}" for i in range(types) for prefix in "BI")]
    answer = [[names[c] for c in well_formed(sentence)] for sentence in predicted]
    truth = [[names[c] for c in sentence] for sentence in gold]
    if not any(t != "O" for sentence in (*answer, *truth) for t in sentence):
        return {"entity_f1": 0.0, "precision": 0.0, "recall": 0.0}
    precision, recall, f1, _ = precision_recall_fscore_support(
        truth, answer, average="micro", scheme=IOB2, zero_division=0
    )
    return {"entity_f1": float(f1), "precision": float(precision), "recall": float(recall)}


def well_formed(codes: Sequence[int]) -> list[int]:
    """BIO codes in which a later word that follows no word of its type is the first of an entity."""
    out: list[int] = []
    for code in codes:
        if code and code % 2 == 0 and (not out or out[-1] not in (code, code - 1)):
            code -= 1
        out.append(code)
    return out


def found_scores(predicted: Sequence[bool], gold: Sequence[bool], name: str) -> dict[str, float]:
    """`<name>_precision` and `<name>_recall` of finding what is true in `gold`; 0 where there is nothing to divide by."""
    hits = sum(p and g for p, g in zip(predicted, gold, strict=True))
    return {f"{name}_precision": hits / max(sum(predicted), 1), f"{name}_recall": hits / max(sum(gold), 1)}
