"""What became of each run of a sweep: trials.jsonl, a row an event, and the tables that people read."""

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import median
from typing import Any

from raymeta.objective import Objective
from raymeta.space import shown
from raymeta.stages.evaluate import aligned

ENDED = ("finished", "stopped")
"""States of a trial that a sweep does not take up again: it came to its end, or the scheduler gave it up."""


@dataclass
class Trial:
    """One run of a sweep: what was tried, where, and what it came to."""

    number: int
    point: int
    settings: dict[str, Any]
    cluster: str
    folder: str
    state: str = "running"
    step: int = 0
    value: float | None = None
    ci95: float | None = None
    worker_s: float = 0.0
    tasks_per_s: float | None = None
    message: str = ""
    path: list[tuple[int, float]] = field(default_factory=list)
    """What it had come to at each step that it told."""
    now: float | None = None
    """Its value at the last such step, where `value` is of the best so far."""
    paused: int = 0
    """The step at which it waits for the others of its population, and its number of steps once it is finished."""
    schedule: list[tuple[int, dict[str, Any]]] = field(default_factory=list)
    """Its settings, and from which step on: more than one where it has taken over another's run."""
    donor: str = ""
    """The folder of the run that it took over."""


class Record:
    """The file in which a sweep's events are kept; a row is complete or not there."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def add(self, event: str, **values: Any) -> None:
        """Appends a row, and sees to it that it is on disk."""
        torn = self.path.exists() and not self.path.read_bytes().endswith(b"\n")
        with self.path.open("a", encoding="utf-8") as file:
            file.write(
                ("\n" if torn and self.path.stat().st_size else "") + json.dumps({"event": event, **values}) + "\n"
            )
            file.flush()
            os.fsync(file.fileno())

    def trials(self) -> dict[int, Trial]:
        """Every trial so far, by number, as its events leave it."""
        found: dict[int, Trial] = {}
        if not self.path.exists():
            return found
        for line in self.path.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                row = json.loads(line)
            except ValueError:
                continue  # half written when the process was ended
            event, number = row.pop("event"), row.pop("trial", None)
            if event == "round":
                _took_over(found, row["step"], row["moves"])
            elif event == "starts":
                before = found.get(number)
                found[number] = Trial(number=number, schedule=[(0, row["settings"])], **row)
                if before:
                    found[number].path = before.path
                    found[number].now, found[number].paused = before.now, before.paused
                    found[number].schedule, found[number].donor = before.schedule, before.donor
            elif number in found:
                took(found[number], event, row)
        return found


def _took_over(found: dict[int, Trial], step: int, moves: Sequence[dict[str, Any]]) -> None:
    """Makes each member that takes over another's run what that is at `step`, with settings of its own."""
    for move in moves:
        mine, donor = found[move["trial"]], found[move["donor"]]
        found[mine.number] = replace(
            donor, number=mine.number, point=mine.point, settings=move["settings"], folder=move["folder"], donor=donor.folder, state="running", path=list(donor.path),
            worker_s=mine.worker_s, schedule=[*donor.schedule, (step, move["settings"])],
        )  # fmt: skip


def took(trial: Trial, event: str, row: dict[str, Any]) -> None:
    """Brings a trial up to date by an event: `row` (a step), or its end."""
    if event in ("paused", "finished"):
        trial.paused = trial.step
    for name, value in row.items():
        setattr(trial, name, value)
    if event != "row":
        trial.state = event
    if row.get("value") is not None and (not trial.path or trial.step > trial.path[-1][0]):
        trial.path.append((trial.step, row["value"]))


def best(trials: Iterable[Trial], minimize: bool) -> Trial | None:
    """The best of the finished trials, or None."""
    done = [t for t in trials if t.state == "finished" and t.value is not None]
    return sorted(done, key=lambda t: (_rank(t, minimize), t.number))[0] if done else None


def _rank(trial: Trial, minimize: bool) -> float:
    value = trial.value
    if value is None or value != value:
        return float("inf")
    return value if minimize else -value


def table(trials: Sequence[Trial], objective: Objective, minimize: bool, limit: int = 20) -> str:
    """Trials as text, the running ones first, then the best first; at most `limit`, with how many are left out."""
    cells = rows_of(trials, objective, minimize)
    more = [f"  and {len(trials) - limit} more"] if len(trials) > limit else []
    return "\n".join([*aligned(cells[: limit + 1]), *more])


def rows_of(trials: Sequence[Trial], objective: Objective, minimize: bool) -> list[list[str]]:
    """The cells of a table of trials, its head first: the running ones, then the best first."""
    order = sorted(trials, key=lambda t: (t.state != "running", t.state == "failed", _rank(t, minimize), t.number))
    paths = list(dict.fromkeys(p for t in trials for p in t.settings))
    several = len({t.cluster for t in trials}) > 1
    head = [
        "trial",
        *(["cluster"] if several else []),
        *short(paths).values(),
        "step",
        objective.column,
        "worker-s",
        "state",
    ]
    return [head] + [
        [
            str(t.number), *([called(t.cluster)] if several else []), *(shown(t.settings.get(p)) for p in paths), str(t.step),
            objective.text(t.value, t.ci95), f"{t.worker_s:.0f}", t.state,
        ]
        for t in order
    ]  # fmt: skip


def by_cluster(trials: Sequence[Trial], objective: Objective, minimize: bool) -> str:
    """Clusters side by side, as text."""
    return "\n".join(aligned(cluster_rows(trials, objective, minimize)))


def cluster_rows(trials: Sequence[Trial], objective: Objective, minimize: bool) -> list[list[str]]:
    """Clusters side by side, a table's cells, its head first: the best value on each, tasks a second, and worker-seconds, of all
    runs and of a finished one."""
    cells = [["cluster", "finished", f"best {objective.column}", "tasks/s", "worker-s", "worker-s a finished run"]]
    for name, here in at_places(trials).items():
        done = [t for t in here if t.state == "finished"]
        first = best(here, minimize)
        paces = [t.tasks_per_s for t in here if t.tasks_per_s]
        cells.append([
            name, f"{len(done)} of {len(here)}", objective.text(first.value, first.ci95) if first else "-",
            f"{median(paces):.2f}" if paces else "-", f"{sum(t.worker_s for t in here):.0f}",
            f"{sum(t.worker_s for t in done) / len(done):.0f}" if done else "-",
        ])  # fmt: skip
    return cells


def at_places(trials: Iterable[Trial]) -> dict[str, list[Trial]]:
    """The trials by where they ran: on which cluster, and with which of its settings where those are searched."""
    found: dict[str, list[Trial]] = {}
    for trial in trials:
        searched = {p: v for p, v in trial.settings.items() if p == "cluster" or p.startswith("cluster.")}
        words = [] if "cluster" in searched else [called(trial.cluster)]
        words += [shown(v) if p == "cluster" else f"{p.rpartition('.')[2]} {shown(v)}" for p, v in searched.items()]
        found.setdefault(", ".join(words), []).append(trial)
    return found


def called(cluster: str) -> str:
    """A cluster's name: of a profile that is a file, without its folder."""
    path = Path(cluster)
    if path.suffix not in (".yaml", ".yml"):
        return cluster
    return path.parent.name if path.stem == "profile" and path.parent.name else path.stem


def short(paths: Sequence[str]) -> dict[str, str]:
    """Each dotted path's last part, or the whole where two have the same."""
    last = [p.rpartition(".")[2] for p in paths]
    return {p: name if last.count(name) == 1 else p for p, name in zip(paths, last, strict=True)}
