"""The comparison of fine-tuning with and without meta-training, at several sizes, on the same rows."""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from raymeta.finetuning import Compare
from raymeta.finetuning.fit import Fit
from raymeta.finetuning.target import Target
from raymeta.metrics import Estimate, estimate_of_few
from raymeta.tasks import Tasks

ARMS: dict[str, tuple[Literal["metatrain", "backbone"], bool]] = {
    "meta-trained, fine-tuned": ("metatrain", True),
    "plain, fine-tuned": ("backbone", True),
    "meta-trained, nearest prototype": ("metatrain", False),
    "plain, nearest prototype": ("backbone", False),
}
"""The rows of a comparison: from where, and whether it trains."""
GAIN = "gain of meta-training, fine-tuned"

Arm = tuple[str, str]
"""Row and size."""


def arms(asked: Compare, tasks: Tasks) -> dict[Arm, list[Fit]]:
    """The fine-tunings of each row at each size, a repeat each; where outputs are no classes, none is a class mean."""
    sizes = [(shots, None) for shots in asked.shots] + [(None, rows) for rows in asked.rows]
    found: dict[Arm, list[Fit]] = {}
    for shots, rows in sizes:
        for name, (start, trains) in ARMS.items():
            if tasks.fixed_outputs and not trains:
                continue
            fits = [Fit(start, shots, rows, repeat, trains) for repeat in range(asked.seeds)]
            found[name, fits[0].size] = fits
    return found


def compared(results: Mapping[Arm, Sequence[dict[str, Any]]], target: Target) -> dict[str, Any]:
    """Test metric of each arm, and of the difference between the fine-tuned ones repeat by repeat: as plain data, with its text."""
    metric = target.tasks.metric
    values = {arm: [r["test"]["headline"][metric]["value"] for r in found] for arm, found in results.items()}
    sizes = list(dict.fromkeys(size for _, size in values))
    ours, plain = list(ARMS)[:2]
    for size in sizes:
        values[GAIN, size] = [a - b for a, b in zip(values[ours, size], values[plain, size], strict=True)]
    names = list(dict.fromkeys(name for name, _ in values))
    estimates = {arm: estimate_of_few(found) for arm, found in values.items()}
    seeds = len(next(iter(values.values())))
    return {
        "metric": metric,
        "seeds": seeds,
        "rows": {
            name: {
                s: {"mean": (e := estimates[name, s]).mean, "ci95": e.ci95, "values": values[name, s]} for s in sizes
            }
            for name in names
        },
        "text": _table(
            names, sizes, estimates, f"{target.name}: test {metric}, mean ± 95 % interval over {seeds} draws, in %"
        ),
    }


def _table(names: Sequence[str], sizes: Sequence[str], estimates: Mapping[Arm, Estimate], head: str) -> str:
    cells = [["", *sizes], *([name, *(str(estimates[name, size]) for size in sizes)] for name in names)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join(c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
    return "\n".join([head, *(f"  {line}" for line in lines)]) + "\n"
