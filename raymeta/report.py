"""What runs came to, for a person: report.md with plots, and their tables as text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymeta import checkpoint, plots, yaml12
from raymeta.card import evaluation_tables, markdown, report_tables
from raymeta.config import Run
from raymeta.errors import UserError
from raymeta.stages.adaptation import LINES, by_step, inner_steps
from raymeta.stages.evaluate import ROWS, aligned, read, shown_estimate, text
from raymeta.track import rows

Values = dict[str, Any]


@dataclass(frozen=True)
class Found:
    """What a run's folder holds; run: as it lies there, whatever its storage said."""

    run: Run
    folder: Path
    evaluation: Values | None

    @property
    def title(self) -> str:
        """Name and hash."""
        return self.folder.name


def report(where: Sequence[str], to: Path | None, episodes: int) -> tuple[str, Path]:
    """Writes report.md and its plots; gives the tables as text, and the file.

    where: folders of runs, or folders of such; to: a folder (None: `report` in the only run's folder, or here); episodes: for
    what is measured now, in this process (0: nothing is). Raises UserError.
    """
    runs = [found for name in where for found in _runs(Path(name).expanduser())]
    to = to or (runs[0].folder if len(runs) == 1 else Path()) / "report"
    to.mkdir(parents=True, exist_ok=True)
    parts = ["# " + (f"Report on {runs[0].title}" if len(runs) == 1 else f"Report on {len(runs)} runs")]
    said = []
    if len(runs) > 1:
        markdown_text, plain = _comparison(runs, to)
        parts += markdown_text
        said.append(plain)
    for found in runs:
        parts += _one(found, to, episodes, heading=len(runs) > 1)
        if found.evaluation:
            said.append(f"{found.title}\n{text(found.run, found.evaluation)}")
        said += _finetuned_text(found.folder)
    path = to / "report.md"
    path.write_text("\n\n".join(part for part in parts if part) + "\n", encoding="utf-8")
    return "\n\n".join(part for part in said if part), path


def _runs(folder: Path) -> list[Found]:
    """The run in a folder, or those in the folders that it holds."""
    places = [folder] if (folder / "run.yaml").is_file() else sorted(p.parent for p in folder.glob("*/run.yaml"))
    if not places:
        raise UserError(f"{folder} is no run's folder and holds none; give one, like results/NAME-HASH, or results")
    return [Found(Run.of(yaml12.read(p / "run.yaml")), p, read(p / "evaluation.json")) for p in places]


def _one(found: Found, to: Path, episodes: int, heading: bool) -> list[str]:
    run = found.run
    adapt = run.model.adapt if isinstance(run.model.adapt, str) else run.model.model_dump(mode="json")["adapt"]
    parts = [f"## {found.title}"] if heading else []
    parts.append(
        f"`{run.model.name}`, {run.algorithm.kind} with {_count(inner_steps(run), 'inner step')}, head {run.model.head.kind}, adapts: {adapt}; "
        f"{', '.join(f'{p.tasks.kind} {p.name}' if len(run.parts) > 1 else p.tasks.kind for p in run.parts)}; {_count(run.outer.steps, 'outer step')} of "
        f"{_count(run.outer.tasks_per_step, 'task')}; seed {run.seed}."
    )
    parts += _pretrained(found, to)
    metrics = rows(found.folder / "metrics.jsonl")
    if metrics:
        lines = {p.name: f"{p.name}/{p.tasks.metric}" for p in run.parts} if len(run.parts) > 1 else None
        parts += ["### Meta-training", _image(plots.learning(metrics, run.metric, lines), to, found, "learning")]
    if found.evaluation:
        parts += ["### Evaluation", *evaluation_tables(found.evaluation)]
        entries = [s for s in found.evaluation["settings"] if "parts" not in s]
        if len(entries) > 1:
            parts.append(_settings_plot(found, entries, to))
        parts += _adaptation(found, to, episodes)
    for folder in sorted(found.folder.glob("finetune-*")):
        parts += _finetuned(found, folder, to)
    return parts


def _image(made: Any, to: Path, found: Found, name: str) -> str:
    """Saves a plot; gives the line that shows it, with its title as what is read in its place."""
    file = f"{found.title}-{name}.png"
    plots.save(made, to / file)
    titles = (axes.get_title(loc="left").replace("\n", " ") for axes in made.axes)
    return f"![{'; '.join(titles)}]({file})"


def _pretrained(found: Found, to: Path) -> list[str]:
    if found.run.pretrain is None or not (found.run.pretrained / "metrics.jsonl").is_file():
        return []
    made = plots.perplexity(rows(found.run.pretrained / "metrics.jsonl"), str(found.run.pretrain.objective))
    return ["### Pre-training", _image(made, to, found, "pretraining")]


def _adaptation(found: Found, to: Path, episodes: int) -> list[str]:
    """The plots of the metric after each inner step, measured now where it is not known."""
    if not inner_steps(found.run) or not episodes:
        return []
    run = found.run
    start = checkpoint.best(found.folder / "checkpoints")
    if start is None or any(part.tasks.generates for part in run.parts):
        return []
    try:
        measured = by_step(run, found.folder, start, episodes)
    except UserError as error:
        return [f"What each inner step does was not measured: {error}"]
    images = []
    for part in measured:
        series = {label: part[name] for name, label in LINES.items()}
        ways = "" if len(run.parts) == 1 else f"{part['part']}, "
        made = plots.adaptation(
            series, part["metric"], f"{ways}{part['episodes']} episodes of {run.evaluate.split} classes"
        )
        images.append(_image(made, to, found, f"adaptation-{part['part']}"))
    return ["### What each inner step does", *images]


def _settings_plot(found: Found, entries: Sequence[Values], to: Path) -> str:
    """The settings or parts of one evaluation beside each other, by their first metric."""
    metric = next(iter(entries[0]["metrics"]))
    entries = [e for e in entries if metric in e["metrics"]]
    there = [row for row in ROWS if any(row in e for e in entries)]
    series = {ROWS[row]: [e[row][metric] if row in e else None for e in entries] for row in there}
    ours = [e for e in entries if "metrics" in e]
    ends = [f"{shown_estimate(e['metrics'], metric)} % ({_setting(e)})" for e in (ours[0], ours[-1])]
    title = f"Meta-trained, {plots.words(metric)} is {ends[0]} and {ends[1]}"
    return _image(plots.bars([_setting(e) for e in entries], series, metric, title), to, found, "settings")


def _setting(entry: Values) -> str:
    ways = "" if entry["ways"] == 1 else f"{entry['ways']}-way "
    return f"{entry['part']}, {ways}{entry['shots']}-shot" if "part" in entry else f"{ways}{entry['shots']}-shot"


def _finetuned(found: Found, folder: Path, to: Path) -> list[str]:
    """A fine-tuned model's report with the F1 of its classes, and the comparison with and without meta-training."""
    summary, full, compared = (read(folder / f"{n}.json") for n in ("finetune", "test", "comparison"))
    if summary is None:
        return []
    parts = [f"### Fine-tuned on {summary['target']}", f"{summary['size']}, from `{summary['from']}`."]
    if full:
        parts += report_tables(full)
        lines = next(iter(full["tables"].values()))["classes"]
        if lines:
            parts.append(_image(plots.classes(lines, summary["target"]), to, found, f"{folder.name}-classes"))
    if compared:
        names = list(next(iter(compared["rows"].values())))
        series = {n: [of[s] for s in names] for n, of in compared["rows"].items() if not n.startswith("gain")}
        gain = next((of for n, of in compared["rows"].items() if n.startswith("gain")), None)
        title = f"{summary['target']}, test {plots.words(compared['metric'])}, {compared['seeds']} draws"
        if gain:
            title += f": meta-training adds {shown_estimate(gain, names[0])} points at {names[0]}, {shown_estimate(gain, names[-1])} at {names[-1]}"
        parts += [
            markdown(
                ["", *names], [[n, *(shown_estimate(of, s) for s in names)] for n, of in compared["rows"].items()]
            ),
            _image(plots.sizes(names, series, compared["metric"], title), to, found, f"{folder.name}-sizes"),
        ]
    return parts


def _finetuned_text(folder: Path) -> list[str]:
    texts = []
    for path in sorted(folder.glob("finetune-*")):
        texts += [
            (path / f"{n}.txt").read_text(encoding="utf-8").rstrip()
            for n in ("test", "comparison")
            if (path / f"{n}.txt").is_file()
        ]
    return texts


def _comparison(runs: Sequence[Found], to: Path) -> tuple[list[str], str]:
    """Runs beside each other, those with the same metric together: plot and table."""
    by_metric: dict[str, list[tuple[str, Values]]] = {}
    for found in runs:
        if found.evaluation:
            entry = found.evaluation["settings"][0]
            by_metric.setdefault(next(iter(entry["metrics"])), []).append((found.title, entry))
    parts, said = ["## Comparison"], []
    for metric, entries in by_metric.items():
        there = {row: label for row, label in ROWS.items() if any(row in e for _, e in entries)}
        series = {label: [e[row][metric] if row in e else None for _, e in entries] for row, label in there.items()}
        ranked = sorted(entries, key=lambda pair: -pair[1]["metrics"][metric]["mean"])
        best = ranked[0][1]["metrics"]
        title = f"{ranked[0][0]} is first: {plots.words(metric)} {shown_estimate(best, metric)} %"
        if len(ranked) > 1:
            second = ranked[1][1]["metrics"][metric]
            apart = best[metric]["mean"] - best[metric]["ci95"] > second["mean"] + second["ci95"]
            title += "" if apart else f"; the interval of {ranked[1][0]} overlaps"
        file = f"comparison-{metric.replace('/', '-')}.png"
        plots.save(plots.bars([name for name, _ in entries], series, metric, title), to / file)
        cells = [
            [name, _what(e), *(shown_estimate(e[row], metric) if row in e else "" for row in there)]
            for name, e in entries
        ]
        head = [f"{metric} in %", "measured on", *there.values()]
        parts += [f"![{title}]({file})", markdown(head, cells)]
        said.append("\n".join(aligned([head, *cells])))
    if not by_metric:
        return ["None of the runs is evaluated."], ""
    return parts, "\n\n".join(said)


def _what(entry: Values) -> str:
    shape = f"mean over {', '.join(entry['parts'])}" if "parts" in entry else _setting(entry)
    return f"{entry['split']}: {entry['episodes']} episodes, {shape}"


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'' if number == 1 else 's'}"
