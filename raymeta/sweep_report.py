"""What a sweep came to, for a person: report.md with plots, and its tables as text."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raymeta import plots, sweep_plots, yaml12
from raymeta.card import markdown
from raymeta.errors import UserError
from raymeta.objective import Objective
from raymeta.population import schedule_text
from raymeta.space import Distribution, shown
from raymeta.stages.evaluate import aligned
from raymeta.sweep import Sweep
from raymeta.sweep_plots import Dot, Scale
from raymeta.sweep_record import Record, Trial, at_places, best, cluster_rows, rows_of, short


def is_sweep(folder: Path) -> bool:
    """Whether a folder is a sweep's."""
    return (folder / "sweep.yaml").is_file()


def report(folder: Path, to: Path | None) -> tuple[str, Path]:
    """Writes report.md and its plots of the sweep in `folder`; gives its tables as text, and the file.

    to: a folder (None: `report` in the sweep's). Raises UserError where no run has come to anything yet.
    """
    sweep = Sweep.of(yaml12.read(folder / "sweep.yaml", "sweep"))
    trials = [trial for _, trial in sorted(Record(folder / "trials.jsonl").trials().items())]
    settings = {p: d for p, d in sweep.space.settings.items() if any(p in t.settings for t in trials)}
    judge, first = sweep.judge, best(trials, sweep.minimize)
    scales = [
        _scale(name, settings[p], [t.settings[p] for t in trials if p in t.settings])
        for p, name in short(list(settings)).items()
    ]
    dots = _dots(trials, settings, judge)
    if not dots:
        raise UserError(
            f"{folder}: none of its {len(trials)} runs has come to a value of {judge} yet; go on with the sweep first"
        )
    to = to or folder / "report"
    to.mkdir(parents=True, exist_ok=True)
    chosen = next((d for d in dots if first and d.number == first.number), None)
    what = _axis(judge)
    drawn = {
        "settings": sweep_plots.against(dots, scales, what, chosen),
        "parallel": sweep_plots.parallel(dots, scales, what, chosen, _finding(trials, sweep)),
        "cost": sweep_plots.costs(
            {
                name: [(t.worker_s, t.tasks_per_s, t.state == "finished") for t in here]
                for name, here in at_places(trials).items()
            }
        ),
    }
    images = {name: _image(made, to / f"{name}.png") for name, made in drawn.items()}
    table, side_by_side = rows_of(trials, judge, sweep.minimize), cluster_rows(trials, judge, sweep.minimize)
    parts = [f"# Report on the sweep {folder.name}", _asked(sweep, trials), f"{_finding(trials, sweep)}."]
    if first is not None:
        parts.append(
            f"The best run, as it can be run again: `raymeta run {folder / 'best.yaml'}`; its folder: `{first.folder}`."
        )
    parts += ["## Against each setting", images["settings"], "## All settings at once", images["parallel"]]
    parts += [
        "## Cost",
        images["cost"],
        markdown(side_by_side[0], side_by_side[1:]),
        "## Runs",
        markdown(table[0], table[1:]),
    ]
    parts += [f"- run {t.number}: {schedule_text(t)}" for t in trials if len(t.schedule) > 1]
    parts += [f"- run {t.number} failed: {t.message}" for t in trials if t.state == "failed"]
    path = to / "report.md"
    path.write_text("\n\n".join(parts) + "\n", encoding="utf-8")
    return "\n\n".join([_finding(trials, sweep), "\n".join(aligned(table)), "\n".join(aligned(side_by_side))]), path


def _asked(sweep: Sweep, trials: Sequence[Trial]) -> str:
    """What was searched, and how."""
    searched = "; ".join(f"`{p}` from {d.kind} {list(d.values)}" for p, d in sweep.space.settings.items())
    states = {s: sum(t.state == s for t in trials) for s in ("finished", "stopped", "paused", "failed", "running")}
    counted = ", ".join(f"{count} {'under way' if s == 'running' else s}" for s, count in states.items() if count)
    return (
        f"Space `{sweep.space_name}` ({searched}) of the run `{sweep.run.name}`, searcher {sweep.searcher}, scheduler {sweep.scheduler}; "
        f"judged by `{sweep.judge}`, {'less' if sweep.minimize else 'more'} is better; {len(trials)} runs: {counted}."
    )


def _finding(trials: Sequence[Trial], sweep: Sweep) -> str:
    """The best finished run beside the worst, with their intervals."""
    judge = sweep.judge
    first, last = best(trials, sweep.minimize), best(trials, not sweep.minimize)
    if first is None or last is None:
        return "No run is finished"
    unit = " %" if judge.percent else ""
    words = ", ".join(f"{n} {shown(first.settings.get(p))}" for p, n in short(list(first.settings)).items())
    text = f"Best {plots.words(judge.column)} {judge.text(first.value, first.ci95)}{unit} at {words}"
    return text if first is last else f"{text}; worst of the finished {judge.text(last.value, last.ci95)}{unit}"


def _scale(name: str, distribution: Distribution, values: Sequence[Any]) -> Scale:
    if distribution.listed:
        return Scale(name, options=tuple(shown(v) for v in distribution.values))
    low, high = (float(v) for v in distribution.values[:2])
    if distribution.kind == "randint":
        return Scale(name, whole=True, ends=(low, max(high - 1, *values)))
    return Scale(name, log=distribution.kind == "loguniform", ends=(low, high))


def _dots(trials: Sequence[Trial], settings: dict[str, Distribution], judge: Objective) -> list[Dot]:
    """The trials that have come to something, as plots show them; scores in percent."""
    factor = 100.0 if judge.percent else 1.0
    places = {t.number: name for name, here in at_places(trials).items() for t in here}
    return [
        Dot(
            t.number, places[t.number], [float(d.drawn(t.settings[p])) for p, d in settings.items()], factor * t.value, factor * (t.ci95 or 0.0),
            t.state == "finished",
        )
        for t in trials
        if t.value is not None and t.value == t.value and all(p in t.settings for p in settings)
    ]  # fmt: skip


def _axis(judge: Objective) -> str:
    name = f"{judge.split} {plots.words(judge.column)}".strip()
    return f"{name} (%)" if judge.percent else name


def _image(made: Any, path: Path) -> str:
    """Saves a plot; gives the line that shows it, with its titles as what is read in its place."""
    plots.save(made, path)
    titles = [axes.get_title(loc="left").replace("\n", " ") for axes in made.axes]
    return f"![{'; '.join(t for t in titles if t)}]({path.name})"
