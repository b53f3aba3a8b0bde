"""Plots of a sweep (the extra `report`): what it is judged by against each setting, all settings at once, and what runs cost."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

import numpy as np

from raymeta.plots import COLORS, FAINT, OTHER, OURS, figure, headed

_ACROSS = 3
_MOST_LABELS = 12


@dataclass(frozen=True)
class Scale:
    """How a setting is drawn: on which axis its values lie, and where."""

    name: str
    """What it is called."""
    options: tuple[str, ...] = ()
    """Its values as text, where they are listed: each has a place of its own, in this order."""
    log: bool = False
    """Whether its axis is logarithmic."""
    whole: bool = False
    """Whether it takes whole numbers only."""
    ends: tuple[float, float] = (0.0, 1.0)
    """The ends of its axis, where they are not listed."""

    def share(self, value: float) -> float:
        """Where a value lies between the ends: 0 to 1."""
        low, high = (0.0, len(self.options) - 1.0) if self.options else self.ends
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return (value - low) / (high - low) if high > low else 0.5


@dataclass(frozen=True)
class Dot:
    """A run of a sweep as the plots show it."""

    number: int
    place: str
    """Where it ran."""
    at: Sequence[float]
    """Where it is on each setting's scale: its value, or the place among the listed ones."""
    value: float
    half: float
    """Half of the value's 95 % interval; 0 where it has none."""
    finished: bool
    """Whether it came to its end; else the scheduler stopped it before."""


def against(dots: Sequence[Dot], scales: Sequence[Scale], what: str, best: Dot | None) -> Any:
    """A panel a setting: what each run came to, by the setting's value. what: the label of the vertical axis."""
    columns = min(len(scales), _ACROSS)
    rows = -(-len(scales) // columns)
    made, panels = figure(max(5.0, 3.7 * columns), 3.6 * rows, columns, rows)
    places = list(dict.fromkeys(d.place for d in dots))
    for i, (scale, axes) in enumerate(zip(scales, panels, strict=False)):
        for place, color in zip(places, _colors(len(places)), strict=True):
            here = [d for d in dots if d.place == place]
            for finished, face in ((True, color), (False, "white")):
                some = [d for d in here if d.finished is finished]
                if some:
                    axes.errorbar(
                        [d.at[i] for d in some], [d.value for d in some], [d.half for d in some], fmt="o", color=color, markersize=6,
                        markerfacecolor=face, elinewidth=1.0, capsize=2, label=_legend(place if len(places) > 1 else "", finished),
                    )  # fmt: skip
        if best is not None:
            axes.plot(best.at[i], best.value, "o", markersize=12, markerfacecolor="none", color=OTHER, label="best")
            headed(axes, f"{scale.name}: best at {_told(scale, best.at[i])}", columns)
        _horizontal(axes, scale)
        axes.set_xlabel(f"{scale.name} (logarithmic)" if scale.log else scale.name)
        axes.set_ylabel(what)
    for axes in panels[len(scales) :]:
        axes.set_visible(False)
    handles = dict(zip(*reversed(panels[0].get_legend_handles_labels()), strict=True))
    made.legend(handles.values(), handles, frameon=False, fontsize=8.5, loc="outside lower center", ncols=4)
    return made


def parallel(dots: Sequence[Dot], scales: Sequence[Scale], what: str, best: Dot | None, title: str) -> Any:
    """A line a run over an axis a setting, and what it came to on the last axis, whose colour it has; the best one is thick."""
    from matplotlib import colormaps

    values = [d.value for d in dots]
    last = Scale(what, ends=(min(values), max(values)))
    axes_of = [*scales, last]
    made, (axes,) = figure(2.6 + 1.9 * len(axes_of), 4.2)
    colors = colormaps["viridis"].reversed()
    for dot in sorted(dots, key=lambda d: d == best):
        at = [s.share(v) for s, v in zip(axes_of, [*dot.at, dot.value], strict=True)]
        axes.plot(
            range(len(at)), at, color=OTHER if dot == best else colors(0.1 + 0.9 * at[-1]), linewidth=3.2 if dot == best else 1.5,
            linestyle="-" if dot.finished else (0, (4, 3)), alpha=0.95, solid_capstyle="round",
        )  # fmt: skip
    for x, scale in enumerate(axes_of):
        axes.axvline(x, color="#5a5f68", linewidth=1.0, zorder=0)
        for share, text in _ticks(scale):
            axes.plot([x - 0.015, x + 0.015], [share, share], color="#5a5f68", linewidth=1.0)
            axes.text(
                x + 0.03, share, text, fontsize=8.5, va="center", ha="left", color="#222",
                bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.8},
            )  # fmt: skip
    axes.set_xticks(range(len(axes_of)), [f"{s.name}\n(logarithmic)" if s.log else s.name for s in axes_of])
    axes.set_xlim(-0.15, len(axes_of) - 0.7)
    axes.set_ylim(-0.06, 1.06)
    axes.set_yticks([])
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.grid(visible=False)
    axes.tick_params(axis="x", length=0, labelsize=9.5)
    headed(axes, title)
    lines = [
        axes.plot([], [], color=OTHER, linewidth=3.2)[0],
        *(axes.plot([], [], color="#3b6d8c", ls=s)[0] for s in ("-", (0, (4, 3)))),
    ]
    made.legend(
        lines, ["best", "finished", "stopped early"], frameon=False, fontsize=8.5, loc="outside lower center", ncols=3
    )
    return made


def costs(places: Mapping[str, Sequence[tuple[float, float | None, bool]]]) -> Any:
    """Worker-seconds and tasks a second of every run, clusters side by side. places: where -> (worker-seconds, tasks a second, whether
    it is finished) of each run there."""
    made, (left, right) = figure(max(7.5, 2.4 + 2.2 * len(places)), 4.0, 2)
    for x, (runs, color) in enumerate(zip(places.values(), _colors(len(places)), strict=True)):
        aside = np.linspace(-0.16, 0.16, len(runs)) if len(runs) > 1 else np.zeros(1)
        for away, (spent, pace, finished) in zip(aside, runs, strict=True):
            face = color if finished else "white"
            if spent:
                left.plot(x + away, spent, "o", color=color, markerfacecolor=face, markersize=6)
            if pace:
                right.plot(x + away, pace, "o", color=color, markerfacecolor=face, markersize=6)
        done = [spent for spent, _, finished in runs if finished and spent]
        if done:
            left.hlines(mean(done), x - 0.28, x + 0.28, color="#222", linewidth=1.4)
        paces = [pace for _, pace, _ in runs if pace]
        if paces:
            right.hlines(median(paces), x - 0.28, x + 0.28, color="#222", linewidth=1.4)
    totals = {name: sum(spent for spent, _, _ in runs) for name, runs in places.items()}
    typical = {name: median([pace for _, pace, _ in runs if pace] or [0.0]) for name, runs in places.items()}
    on = {name: f" on {name}" if len(places) > 1 else "" for name in places}
    headed(left, "Cost: " + "; ".join(f"{_whole(total)} worker-s{on[name]}" for name, total in totals.items()))
    headed(right, "Throughput: " + "; ".join(f"{pace:.3g} tasks/s{on[name]}" for name, pace in typical.items()))
    left.set_ylabel("worker-seconds a run (line: mean of the finished)")
    right.set_ylabel("tasks/s (line: median of the runs)")
    for axes in (left, right):
        axes.set_xticks(range(len(places)), places)
        axes.set_xlim(-0.6, len(places) - 0.4)
        axes.set_ylim(bottom=0)
    shown = [left.plot([], [], "o", color=OURS, markerfacecolor=face)[0] for face in (OURS, "white")]
    made.legend(shown, ["finished", "not finished"], frameon=False, fontsize=8.5, loc="outside lower center", ncols=2)
    return made


def _colors(count: int) -> list[str]:
    return [COLORS[i % len(COLORS)] for i in range(count)] if count < len(COLORS) else [OURS, *[FAINT] * (count - 1)]


def _legend(place: str, finished: bool) -> str:
    state = "finished" if finished else "stopped early, after fewer steps"
    return f"{place}, {state}" if place else state


def _told(scale: Scale, value: float) -> str:
    return scale.options[int(value)] if scale.options else f"{value:g}"


def _horizontal(axes: Any, scale: Scale) -> None:
    """Sets an axis up for a setting."""
    if scale.options:
        few = len(scale.options) <= _MOST_LABELS
        long = max(map(len, scale.options)) > 6 and len(scale.options) > 2
        axes.set_xticks(range(len(scale.options)) if few else [], scale.options if few else [])
        axes.tick_params(axis="x", rotation=30 if long else 0)
        axes.set_xlim(-0.5, len(scale.options) - 0.5)
    elif scale.log:
        axes.set_xscale("log")
        low, high = scale.ends
        axes.set_xlim(low / (high / low) ** 0.04, high * (high / low) ** 0.04)
    else:
        from matplotlib.ticker import MaxNLocator

        low, high = scale.ends
        axes.xaxis.set_major_locator(MaxNLocator(integer=scale.whole, nbins=6))
        axes.set_xlim(low - 0.06 * (high - low), high + 0.06 * (high - low))


def _ticks(scale: Scale) -> list[tuple[float, str]]:
    """Where an axis of parallel coordinates is labelled: 0 to 1, and with what."""
    if scale.options:
        few = scale.options if len(scale.options) <= _MOST_LABELS else (scale.options[0], scale.options[-1])
        return [(scale.share(scale.options.index(text)), text) for text in few]
    low, high = scale.ends
    if scale.whole and high - low <= _MOST_LABELS:
        return [(scale.share(v), f"{v:g}") for v in range(int(low), int(high) + 1)]
    if scale.log:
        powers = [10.0**n for n in range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)]
        inner = [p for p in powers if 0.04 < scale.share(p) < 0.96]
        return [(scale.share(v), f"{v:g}") for v in (low, *inner, high)]
    return [(share, f"{low + share * (high - low):.2g}") for share in (0.0, 0.25, 0.5, 0.75, 1.0)]


def _whole(value: float) -> str:
    return f"{value:.0f}" if value >= 10 else f"{value:.2g}"
