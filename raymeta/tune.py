"""Running a sweep by Ray Tune: kept in a folder, gone on with after any end.

Every trial is a run like any other, in the folder of its settings, so one that is finished is never done again, in this
sweep or another. What became of each is in trials.jsonl, from which a sweep goes on: Ray's own snapshot of an experiment
is pickled code and lags behind by seconds, while this file and the runs' checkpoints are all that is needed.
"""

import json
import shlex
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from raymeta import checkpoint, yaml12
from raymeta.cluster import Profile, connect, disconnect, room
from raymeta.errors import UserError
from raymeta.generations import evolved
from raymeta.parts import checked, prepared
from raymeta.population import schedule_text
from raymeta.searchers import SEARCHERS, Searcher
from raymeta.space import Distribution
from raymeta.sweep import Sweep
from raymeta.sweep_record import ENDED, Record, Trial, at_places, best, by_cluster, table
from raymeta.tuner import searched


def tune(sweep: Sweep, resume: bool = False) -> list[Trial]:
    """Runs the sweep, or goes on with it, and writes best.yaml; gives every trial, in order.

    Raises UserError for a mistake in the sweep, and where nothing came of the first trials.
    """
    settings = sweep.check()
    checked(sweep.run.parts)
    folder = sweep.folder
    record = Record(folder / "trials.jsonl")
    known = record.trials()
    if known and not resume:
        done = sum(t.state in ENDED for t in known.values())
        raise UserError(
            f"{folder} is a sweep with these settings, {done} of {len(known)} runs ended; add --resume to go on with it, or change "
            "something (its seed, its space, the run's name)"
        )
    if resume and not known:
        print(f"nothing to resume in {folder}; starting")
    with checkpoint.locked(folder):
        (folder / "logs").mkdir(exist_ok=True)
        (folder / "sweep.yaml").write_text(sweep.yaml(), encoding="utf-8")
        searcher = _searcher(sweep, settings, known)
        stop_at = None if sweep.budget_s is None else time.monotonic() + sweep.budget_s
        print(f"sweep: {folder}")
        for names in _by_address(sweep):
            _search(sweep, settings, searcher, names, record, stop_at)
        trials = [t for _, t in sorted(record.trials().items())]
        _conclude(sweep, folder, trials)
    return trials


def _searcher(sweep: Sweep, settings: dict[str, Distribution], known: dict[int, Trial]) -> Searcher:
    """The searcher, told of what was tried before."""
    found = SEARCHERS[sweep.searcher](settings, sweep.run.seed, sweep.minimize)
    points: dict[int, Trial] = {}
    for trial in known.values():
        if trial.point not in points or trial.state == "finished":
            points[trial.point] = trial
    for _, trial in sorted(points.items()):
        found.known(trial.settings, trial.value if trial.state in ENDED else None)
    return found


def _by_address(sweep: Sweep) -> list[list[str]]:
    """The clusters, those on one Ray cluster together: a driver is on one at a time."""
    groups: dict[str | None, list[str]] = {}
    for name in sweep.clusters or ("",):
        groups.setdefault(sweep.run_of({}, name).cluster.address, []).append(name)
    return list(groups.values())


def _search(
    sweep: Sweep,
    settings: dict[str, Distribution],
    searcher: Searcher,
    names: list[str],
    record: Record,
    stop_at: float | None,
) -> None:
    """Runs what is left of the sweep on the clusters `names`, all at one address."""
    known = record.trials()
    clusters = sweep.clusters or ("",)
    numbers = [
        point * len(clusters) + at for point in range(sweep.trials) for at, name in enumerate(clusters) if name in names
    ]
    left = [n for n in numbers if n not in known or known[n].state not in ENDED]
    if not left or (stop_at is not None and time.monotonic() >= stop_at):
        return
    left.sort(key=lambda n: n not in known)  # first those that were under way
    profiles = list(sweep.profiles(settings))
    largest = max(profiles, key=lambda p: p.most * p.cpus_per_worker)
    connect(largest.model_copy(update={"in_process": False}), sweep.run.root)
    at_once = _at_once(sweep, profiles)
    run = sweep.run
    if run.pretrain is None:  # once for all, on all machines; else it waits for the tokenizer
        prepared(run.parts, run.backbone, run.seed, run.root / "prepared", on_ray=True)
    try:
        if sweep.scheduler == "pbt":
            evolved(sweep, settings, searcher, record, at_once, stop_at)
            return
        todo = [(n, n // len(clusters), clusters[n % len(clusters)]) for n in left]
        searched(sweep, searcher, todo, record, at_once, stop_at)
    finally:
        if len(_by_address(sweep)) > 1:
            disconnect()


def _at_once(sweep: Sweep, profiles: Sequence[Profile]) -> int:
    """How many trials run at once; raises UserError, with the arithmetic, where fewer have room than were asked for."""
    tight = min(profiles, key=room)
    there = room(tight)
    if sweep.max_concurrent is None:
        return max(1, min(there, sweep.trials * max(1, len(sweep.clusters))))
    if sweep.max_concurrent > there:
        each = ", ".join(f"{count:g} {name}" for name, count in tight.bundle.items())
        raise UserError(
            f"max_concurrent: {sweep.max_concurrent} runs at once x {tight.most} workers x {each} do not fit: the cluster has room for {there} such "
            f"{'run' if there == 1 else 'runs'}; lower --max-concurrent to {there}, or cluster.workers or cluster.cpus_per_worker"
        )
    return sweep.max_concurrent


def _conclude(sweep: Sweep, folder: Path, trials: Sequence[Trial]) -> None:
    """Prints what the sweep came to, and writes its best run."""
    judge = sweep.judge
    print(f"\n{judge} of {len(trials)} runs:")
    print(table(trials, judge, sweep.minimize))
    if len(at_places(trials)) > 1:
        print(by_cluster(trials, judge, sweep.minimize))
    first = best(trials, sweep.minimize)
    if first is None:
        print("no run is finished")
        return
    if sweep.scheduler == "pbt":
        run, how = sweep.member(first.number, first.schedule[-1][0], first.settings), schedule_text(first)
    else:
        run = sweep.run_of(first.settings, "" if first.cluster not in sweep.clusters else first.cluster)
        how = " ".join(f"{_override(path, value)}" for path, value in first.settings.items())
    text = f"{judge} {judge.text(first.value, first.ci95)} in trial {first.number}: {how}"
    (folder / "best.yaml").write_text(f"# {text}\n{run.yaml()}", encoding="utf-8")
    print(f"\nbest: {text}\nas a run: raymeta run {folder / 'best.yaml'}")


def _override(path: str, value: Any) -> str:
    """`path=value` as the shell and `raymeta run` take it."""
    plain = isinstance(value, str) and yaml12.parse(value) == value
    return shlex.quote(f"{path}={value if plain else json.dumps(value)}")
