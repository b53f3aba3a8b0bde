"""Which split each row belongs to: by a column, by files, or by classes or tasks that are named or drawn."""

import numpy as np
import numpy.typing as npt

from raymeta.episodes import SPLITS, Ints
from raymeta.errors import UserError, did_you_mean
from raymeta.tasks import Split


def assigned(
    split: Split,
    seed: int,
    classes: list[str],
    tasks: list[str],
    origins: list[str],
    held: Ints,
    held_start: Ints,
    task: Ints,
    origin: Ints,
) -> npt.NDArray[np.int8]:
    """The split of each row: 0 train, 1 validation, 2 test, -1 none (so too where its classes belong to different ones).

    Where nothing says which rows are for what, all are for training.
    """
    side = np.full(len(task), -1, dtype=np.int8)
    if split.column:
        place = {v: i for i, v in enumerate(origins)}
        for i, name in enumerate(SPLITS):
            for value in split.values(name):
                if value not in place:
                    raise UserError(
                        f"tasks.split.{name}: column {split.column!r} never holds {value!r} (it holds: {', '.join(origins[:10])})"
                    )
                side[origin == place[value]] = i
        return side
    filed = bool(origins)
    for i, name in enumerate(SPLITS):
        if name in origins:
            side[origin == origins.index(name)] = i
    if all(getattr(split, name) is None for name in SPLITS):
        return side if filed else np.zeros_like(side)
    free = side == 0 if filed else np.ones(len(side), dtype=bool)  # the rows to be shared out
    if split.of == "task":
        side_of = _shares(split, seed, tasks, np.unique(task[free]), filed)
        side[free] = side_of[task[free]]
        return side
    count = np.diff(held_start)
    side_of = _shares(split, seed, classes, np.unique(held[np.repeat(free, count)]), filed)
    some = np.flatnonzero(count)
    found = side_of[held]
    low, high = (f.reduceat(found, held_start[some]) if len(some) else found for f in (np.minimum, np.maximum))
    of_row = np.full(len(side), -1, dtype=np.int8)
    of_row[some] = np.where(low == high, low, -1)
    side[free] = of_row[free]
    return side


def _shares(split: Split, seed: int, names: list[str], there: Ints, filed: bool) -> npt.NDArray[np.int8]:
    """The split of each class or task in `names` (-1: none), of which those at the places `there` are shared out."""
    free = [names[u] for u in there]
    listed = [v for name in SPLITS for v in split.values(name)]
    for name in SPLITS:
        for value in split.values(name):
            if value not in free:
                where = "training file" if filed else "corpus"
                raise UserError(
                    f"tasks.split.{name}: no {split.of} of the {where} is called {value!r}{did_you_mean(value, free)} "
                    f"(there are: {', '.join(free[:10])}{', ...' if len(free) > 10 else ''})"
                )
            if listed.count(value) > 1:
                raise UserError(f"tasks.split: {split.of} {value!r} is listed twice; a {split.of} belongs to one split")
    left = [u for u in free if u not in set(listed)]
    left = [left[i] for i in np.random.Generator(np.random.Philox(seed)).permutation(len(left))]
    plural = {"class": "classes", "task": "tasks"}[split.of]
    place = {name: i for i, name in enumerate(names)}
    side_of = np.full(len(names), -1, dtype=np.int8)
    for i, name in enumerate(SPLITS):
        value = getattr(split, name)
        chosen = split.values(name)
        if isinstance(value, int):
            if value > len(left):
                raise UserError(
                    f"tasks.split.{name}: {value} {plural} were asked for, but of the {len(free)} there are {len(left)} left; lower it"
                )
            chosen, left = left[:value], left[value:]
        side_of[[place[c] for c in chosen]] = i
    if split.train is None:
        side_of[[place[u] for u in left]] = 0
    return side_of
