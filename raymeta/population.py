"""Population-based training (Jaderberg et al. 2017, https://arxiv.org/abs/1711.09846): runs that take over from better ones.

Every `interval_steps` all members of a population stop and are compared. The worst fifth take over checkpoint and optimizer
of one of the best fifth (truncation selection, section 4.1.1), go on with its settings changed a little, and so a setting
becomes a schedule. A member that takes over is a run with a folder of its own, which begins with what it took: nothing of
the run before is overwritten. What was decided is in trials.jsonl before it is done, and is a function of the seed and of
the members' values alone, so that a sweep that was killed comes to the same.
"""

import json
import math
import os
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from raymeta import checkpoint
from raymeta.config import Run
from raymeta.errors import UserError
from raymeta.searchers import Point
from raymeta.space import Distribution, shown
from raymeta.track import rows

if TYPE_CHECKING:
    from raymeta.sweep_record import Trial

_SHARE = 0.2
_FACTORS = (0.8, 1.2)
_RESAMPLED = 0.25
_MAY_CHANGE = ("algorithm.", "outer.")
_FIXED = ("algorithm.kind", "algorithm.learn", "outer.steps", "outer.tasks_per_step", "outer.train")
"""Settings whose change would change what a checkpoint holds, or which episodes come next."""


def check(settings: dict[str, Distribution], run: Run, population: int, interval: int, every: int) -> None:
    """Raises UserError where a population cannot be trained so. every: steps between two values of the objective."""
    if population < 2:
        raise UserError("scheduler: pbt compares runs, and trials is 1; raise --trials, to 4 or more")
    fixed = [p for p in settings if not p.startswith(_MAY_CHANGE) or p in _FIXED]
    if fixed:
        raise UserError(
            f"scheduler: pbt changes settings on the way, and {', '.join(fixed)} cannot change once a run has begun; search it with "
            "another scheduler, or leave it out of the space"
        )
    learned = run.algorithm.kind == "meta_sgd" or getattr(run.algorithm, "learn", "none") != "none"
    rates = [p for p in ("algorithm.inner_lr", "algorithm.inner_steps") if p in settings]
    if learned and rates:
        raise UserError(
            f"scheduler: pbt would change {rates[0]} on the way, and the run's algorithm learns its inner rates; leave it out of the space, "
            "or set algorithm.learn to none"
        )
    if interval % every:
        raise UserError(
            f"interval_steps: {interval} is no multiple of {every}, the steps between two values of the objective; choose one that is, or "
            "change validation.every"
        )
    if interval >= run.outer.steps:
        raise UserError(
            f"interval_steps: {interval} leaves nothing to take over in a run of {run.outer.steps} steps; lower it, or raise outer.steps"
        )


def boundaries(interval: int, steps: int) -> list[int]:
    """The steps at which the members stop: multiples of the interval, and the last."""
    return [*range(interval, steps, interval), steps]


def moves(members: Sequence["Trial"], settings: dict[str, Distribution], step: int, seed: int, minimize: bool) -> list[dict[str, Any]]:  # fmt: skip
    """Who takes over from whom at `step`, and with which settings: [{"trial", "donor", "settings"}].

    A member that failed, or whose value is not finite, takes over in any case. Raises UserError where none is left.
    """
    rng = np.random.default_rng([seed, step])
    sound = [t for t in members if _value(t) is not None]
    if not sound:
        raise UserError(
            f"scheduler: none of the {len(members)} members has a finite value at step {step}; the last said: "
            f"{next((t.message for t in members if t.message), 'nothing')}"
        )
    ranked = sorted(sound, key=lambda t: ((_value(t) or 0.0) * (1 if minimize else -1), t.number))
    few = min(math.ceil(_SHARE * len(members)), len(members) // 2)
    donors = ranked[: max(1, min(few, len(ranked)))]
    last = ranked[len(donors) :][-few:]
    losers = sorted([*last, *(t for t in members if _value(t) is None)], key=lambda t: t.number)
    found = []
    for loser in losers:
        donor = donors[int(rng.integers(len(donors)))]
        changed = {path: perturbed(d, donor.settings[path], rng) for path, d in settings.items()}
        found.append({"trial": loser.number, "donor": donor.number, "settings": changed})
    return found


def perturbed(distribution: Distribution, value: Any, rng: np.random.Generator) -> Any:
    """A value near `value` (times 0.8 or 1.2; the next of a list or of whole numbers), or one time in four a new one."""
    if rng.random() < _RESAMPLED:
        return distribution.draw(rng)
    up = bool(rng.integers(2))
    if distribution.listed:
        place = distribution.values.index(value) + (1 if up else -1)
        return distribution.values[min(max(place, 0), len(distribution.values) - 1)]
    low, high = distribution.extremes
    near = value * _FACTORS[up]
    step = distribution.values[2] if distribution.kind == "quniform" else 1
    if distribution.kind in ("randint", "quniform"):
        near = round(near / step) * step
        if near == value:
            near = value + (step if up else -step)
    return distribution.value(min(max(near, low), high))


def _value(trial: "Trial") -> float | None:
    sound = trial.state != "failed" and trial.now is not None and math.isfinite(trial.now)
    return trial.now if sound else None


def name_of(run: Run, number: int, since: int) -> str:
    """The name of member `number`'s run, which began at step `since`."""
    return f"{run.name}-member{number}" + (f"-from{since}" if since else "")


def took_over(donor: Path, run: Run, step: int) -> None:
    """Makes the folder of a run that goes on from the checkpoint of `step` in the folder `donor`, or, where that is damaged, from
    the one before; once made, it stays.

    Raises UserError where none is whole.
    """
    if (run.folder / "checkpoints").is_dir():
        return
    root = donor / "checkpoints"
    taken = checkpoint.newest(root)
    if taken is None:
        raise UserError(f"{root}: no checkpoint is whole, and {run.name} was to take over the one of step {step}; remove the sweep's folder to begin anew")  # fmt: skip
    wanted = {taken.folder.name}
    best = taken.state.get("best")
    if best and (root / f"step_{best['step']:06d}").is_dir():
        wanted.add(f"step_{best['step']:06d}")
    building = run.folder.with_name(f".building-{run.folder.name}")
    shutil.rmtree(building, ignore_errors=True)
    for name in wanted:
        shutil.copytree(root / name, building / "checkpoints" / name, copy_function=_linked)
    kept = [row for row in rows(donor / "metrics.jsonl") if row["step"] <= taken.step]
    (building / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept), encoding="utf-8")
    shutil.rmtree(run.folder, ignore_errors=True)  # one without checkpoints: a lock, a log
    building.rename(run.folder)


def _linked(source: str, target: str) -> None:
    """A checkpoint's file never changes, so two runs may share it."""
    try:
        os.link(source, target)
    except OSError:  # other storage
        shutil.copy2(source, target)


def schedule_text(trial: "Trial") -> str:
    """What a member's settings were from which step on, as one line."""
    parts = []
    for at, (since, settings) in enumerate(trial.schedule):
        before: Point = trial.schedule[at - 1][1] if at else {}
        news = [f"{p.rpartition('.')[2]} {shown(v)}" for p, v in settings.items() if before.get(p) != v]
        parts.append(f"from step {since}: {', '.join(news) or 'the same'}" if since else ", ".join(news))
    return "; ".join(parts)
