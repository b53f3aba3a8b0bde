"""Plots of what was measured (the extra `report`): each gives a matplotlib figure whose title says what it shows.

Numbers are shares of 1, and drawn in percent. Intervals are 95 % ones.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from raymeta.errors import UserError

OURS, OTHER, _THIRD, FAINT = "#1f5fa8", "#c8552b", "#5d7f3a", "#8a8f98"
COLORS = (OURS, OTHER, _THIRD, FAINT, "#7b4fa0", "#b58900")
_SHOWN_CLASSES = 40

Row = Mapping[str, Any]


def figure(width: float, height: float, columns: int = 1, rows: int = 1) -> tuple[Any, list[Any]]:
    """An empty figure of so many inches, and its axes side by side, row by row; raises UserError without matplotlib."""
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError as error:
        raise UserError(
            "plots need matplotlib, which is not installed here; install raymeta's extra `report` (pip install 'raymeta[report]')"
        ) from error
    made = Figure(figsize=(width, height), dpi=160, layout="constrained")
    FigureCanvasAgg(made)
    axes = [made.add_subplot(rows, columns, i + 1) for i in range(rows * columns)]
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
        one.grid(axis="y", color="#e4e6ea", linewidth=0.8)
        one.set_axisbelow(True)
        one.tick_params(color="#b0b4bb", labelsize=9)
    return made, axes


def save(made: Any, path: Path) -> None:
    """Writes a figure as PNG."""
    made.savefig(path, facecolor="white")


def learning(rows: Sequence[Row], metric: str, lines: Mapping[str, str] | None = None) -> Any:
    """Query loss of meta-training by outer step, smoothed, and the metric on validation classes with its interval.

    rows: of metrics.jsonl; metric: that by which the run is judged; lines: label -> metric of each part of a mixed run.
    """
    steps = [r for r in rows if "query_loss" in r]
    checks = [r for r in rows if r.get("split") == "validation" and metric in r]
    name = words(metric)
    made, (left, right) = figure(9, 3.6, 2)
    at = np.array([r["step"] for r in steps])
    loss = np.array([r["query_loss"] for r in steps])
    smooth = _smoothed(left, at, loss, OURS, None)
    left.set_xlabel("outer step")
    left.set_ylabel("query loss (nats)")
    if len(smooth):
        fell = "falls" if smooth[-1] < loss[: max(5, len(loss) // 20)].mean() else "does not fall"
        headed(left, f"Query loss {fell}: {smooth[-1]:.2f} nats at the end")
    left.set_ylim(bottom=0)
    own = [(r["step"], 100 * r[f"query_{metric}"]) for r in steps if f"query_{metric}" in r]
    if own:
        own_at, values = np.array(own).T
        _smoothed(right, own_at, values, FAINT, "training classes, a step's tasks")
    x = [r["step"] for r in checks]
    for (label, key), color in zip(
        {"mean of the parts" if lines else "validation classes": metric, **(lines or {})}.items(), COLORS, strict=False
    ):
        if not all(key in r for r in checks):
            continue
        mean, half = (100 * np.array([r[k] for r in checks]) for k in (key, f"{key}_ci95"))
        right.fill_between(x, mean - half, mean + half, color=color, alpha=0.18, linewidth=0)
        label = f"{label}, 95 % interval" if key == metric else label
        right.plot(x, mean, color=color, marker="o", markersize=4, linewidth=1.8, label=label)
        if key == metric and len(mean):
            best = int(np.argmax(mean))
            headed(right, f"Validation {name}: {mean[best]:.1f} ± {half[best]:.1f} % at step {x[best]}")
    if not checks:
        headed(right, f"{first_up(name)} after adaptation; nothing was validated")
    right.set_xlim(left.get_xlim())
    right.set_xlabel("outer step")
    right.set_ylabel(f"{name} (%)")
    if right.get_legend_handles_labels()[0]:
        right.legend(frameon=False, fontsize=8.5, loc="lower right")
    return made


def perplexity(rows: Sequence[Row], objective: str) -> Any:
    """Perplexity of held-out text in pre-training, with its interval, on a logarithmic axis. rows: of metrics.jsonl."""
    checks = [r for r in rows if r.get("split") == "validation" and r.get("perplexity")]
    made, (axes,) = figure(6, 3.6)
    x, y = ([r[key] for r in checks] for key in ("step", "perplexity"))
    axes.plot(x, y, color=OURS, marker="o", markersize=4, linewidth=1.8)
    ends = [r.get("perplexity_ci95") or (r["perplexity"],) * 2 for r in checks]
    axes.fill_between(x, [e[0] for e in ends], [e[1] for e in ends], color=OURS, alpha=0.18, linewidth=0)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("step")
    axes.set_ylabel("perplexity of held-out text, 95 % interval")
    if y:
        headed(axes, f"Pre-training ({objective}): perplexity from {_three(y[0])} to {_three(y[-1])}")
    return made


def _smoothed(axes: Any, at: Any, values: Any, color: str, label: str | None) -> Any:
    """Every step as a faint dot, and their mean over a twentieth of all steps (five at least) up to each as a line, which it gives."""
    if not len(values):
        return values
    size = max(5, len(values) // 20)
    axes.plot(at, values, ".", color=color, alpha=0.35, markersize=5, markeredgewidth=0)
    totals = np.cumsum(np.insert(values, 0, 0.0))
    ends = np.arange(1, len(values) + 1)
    starts = np.maximum(ends - size, 0)
    smooth = (totals[ends] - totals[starts]) / (ends - starts)
    axes.plot(at, smooth, color=color, linewidth=1.8, label=label)
    return smooth


def adaptation(found: Mapping[str, Sequence[Row]], metric: str, what: str) -> Any:
    """A metric after 0, 1, ... inner steps, with intervals. found: name -> {"mean", "ci95"} of each number of steps."""
    name = words(metric)
    made, (axes,) = figure(6, 3.6)
    aside = np.linspace(-0.03, 0.03, len(found))
    for (label, points), color, away in zip(found.items(), COLORS, aside, strict=False):
        mean, half = (100 * np.array([p[key] for p in points]) for key in ("mean", "ci95"))
        axes.errorbar(
            np.arange(len(points)) + away, mean, half, color=color, marker="o", markersize=5, linewidth=1.8, capsize=4, label=label
        )  # fmt: skip
    ends = [f"{100 * p[0]['mean']:.1f} to {100 * p[-1]['mean']:.1f} % ({label})" for label, p in found.items()]
    last = len(next(iter(found.values()))) - 1
    steps = f"{last} inner steps take" if last > 1 else "One inner step takes"
    headed(axes, f"{steps} {name} from {'; from '.join(ends)}")
    axes.set_xticks(range(last + 1))
    axes.set_xlim(-0.3, last + 0.3)
    axes.margins(y=0.15)
    axes.set_xlabel(f"inner steps on the support set ({what})")
    axes.set_ylabel(f"{name} (%), 95 % interval")
    axes.legend(frameon=False, fontsize=9)
    return made


def classes(lines: Sequence[Row], title: str) -> Any:
    """F1 of each class, the best on top, with its support. lines: {"name", "f1", "support"}; of many, the weakest are shown."""
    ranked = sorted(lines, key=lambda line: line["f1"])
    shown = ranked[:_SHOWN_CLASSES]
    made, (axes,) = figure(6.5, 1.1 + 0.24 * len(shown))
    scores = [100 * line["f1"] for line in shown]
    axes.barh(range(len(shown)), scores, color=OURS, height=0.7)
    for i, (line, score) in enumerate(zip(shown, scores, strict=True)):
        axes.text(score + 1, i, f"{score:.0f}", va="center", fontsize=8, color="#444")
        axes.text(113, i, str(line["support"]), va="center", ha="right", fontsize=8, color="#444")
    axes.text(113, len(shown) - 0.1, "support", va="bottom", ha="right", fontsize=8, color="#444")
    axes.set_yticks(range(len(shown)), [_short(line["name"]) for line in shown])
    axes.set_ylim(-0.6, len(shown) - 0.4)
    axes.set_xlim(0, 114)
    axes.set_xticks(range(0, 101, 20))
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="#e4e6ea", linewidth=0.8)
    axes.set_xlabel("F1 (%)")
    weakest = f"; the {len(shown)} weakest of {len(ranked)}" if len(shown) < len(ranked) else ""
    headed(axes, f"{title}: F1 from {100 * ranked[0]['f1']:.0f} to {100 * ranked[-1]['f1']:.0f} %{weakest}")
    return made


def bars(groups: Sequence[str], series: Mapping[str, Sequence[Row | None]], metric: str, title: str) -> Any:
    """Means with interval whiskers, a cluster of bars for each group. series: name -> {"mean", "ci95"} of each group."""
    made, (axes,) = figure(max(6.0, 1.2 + 1.5 * len(groups)), 3.8)
    width = 0.8 / len(series)
    for i, ((name, found), color) in enumerate(zip(series.items(), COLORS, strict=False)):
        there = [(g, f) for g, f in enumerate(found) if f is not None]
        place = [g + (i - (len(series) - 1) / 2) * width for g, _ in there]
        means, halves = ([100 * f[key] for _, f in there] for key in ("mean", "ci95"))
        axes.bar(place, means, width * 0.92, color=color, label=name)
        axes.errorbar(place, means, halves, fmt="none", ecolor="#222", elinewidth=1.2, capsize=3)
        for x, mean, half in zip(place, means, halves, strict=True):
            axes.text(x, mean + half + 1, f"{mean:.1f}", ha="center", va="bottom", fontsize=8)
    axes.set_xticks(range(len(groups)), [_short(g, 28) for g in groups])
    axes.set_ylabel(f"{words(metric)} (%), 95 % interval")
    axes.set_ylim(bottom=0)
    axes.margins(y=0.12)
    headed(axes, title)
    axes.legend(frameon=False, fontsize=8.5, loc="upper center", bbox_to_anchor=(0.5, -0.12), ncols=min(len(series), 3))
    return made


def sizes(names: Sequence[str], series: Mapping[str, Sequence[Row]], metric: str, title: str) -> Any:
    """A metric by the size of the training set, a line with whiskers for each of `series`."""
    made, (axes,) = figure(6.5, 3.8)
    spread = np.linspace(-0.06, 0.06, len(series))
    for (name, found), color, aside in zip(series.items(), COLORS, spread, strict=False):
        means, halves = ([100 * f[key] for f in found] for key in ("mean", "ci95"))
        axes.errorbar(
            np.arange(len(names)) + aside, means, halves, color=color, marker="o", markersize=5, linewidth=1.6, capsize=3, label=name
        )  # fmt: skip
    axes.set_xticks(range(len(names)), names)
    axes.set_xlim(-0.4, len(names) - 0.6)
    axes.set_xlabel("texts to fine-tune on")
    axes.set_ylabel(f"{words(metric)} (%), 95 % interval")
    headed(axes, title)
    axes.legend(frameon=False, fontsize=8.5)
    return made


def headed(axes: Any, text: str, columns: int | None = None) -> None:
    """Gives axes a title to the left, on as many lines as it needs; columns: how many are side by side, absent: all."""
    made = axes.figure
    room = int(made.get_size_inches()[0] / (columns or len(made.axes)) * 13)
    axes.set_title("\n".join(textwrap.wrap(text, room)), fontsize=10, loc="left", pad=12)


def words(metric: str) -> str:
    """A metric's name for a person."""
    known = {"f1": "F1", "mean": "mean metric", "bleu": "BLEU", "chrf": "chrF"}
    return " ".join(known.get(part, part) for part in metric.split("_"))


def first_up(text: str) -> str:
    """The text with a capital at its start."""
    return text[:1].upper() + text[1:]


def _three(value: float) -> str:
    """A number of any size to about three digits."""
    return f"{value:.0f}" if value >= 100 else f"{value:.3g}"


def _short(name: str, most: int = 32) -> str:
    return name if len(name) <= most else name[: most - 1] + "…"
