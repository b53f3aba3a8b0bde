"""The target task: its classes in label order, and which rows of a prepared corpus train, validate and test."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from raymeta.episodes import SPLITS, Examples, Ints, generator
from raymeta.errors import UserError, did_you_mean
from raymeta.finetuning import Finetune, HeldOut
from raymeta.store import Prepared
from raymeta.tasks import Tasks


@dataclass(frozen=True)
class Target:
    """One task with fixed labels. Rows are positions in the prepared corpus in `folder`."""

    folder: str
    tasks: Tasks
    name: str
    classes: tuple[str, ...]
    train: Ints
    validation: Ints
    test: Ints

    @classmethod
    def of(cls, folder: Path, tasks: Tasks, settings: Finetune, seed: int, whole: str | None = None) -> "Target":
        """The target task of a prepared corpus; raises UserError where there is too little to learn or to test.

        whole: the split whose rows `held_out` divides; None: the corpus is divided already, unless it has but one split.
        """
        prepared = _opened(str(folder))
        (task,) = settings.task or (None,)
        if task is not None:
            _check_task(prepared.tasks, task)
        splits = list(prepared.summary["splits"])
        if whole is None and splits == ["train"]:
            whole = "train"
        if whole is not None:
            if not len(prepared.rows(whole, task)):
                raise UserError(
                    f"finetune.task: {task!r} has no row in the {whole} split of the run's corpus; name one that is held out, or say in "
                    "finetune.split which rows train, validate and test"
                )
            found = _divided(prepared, prepared.rows(whole, task), settings.held_out, seed)
        else:
            found = [prepared.rows(split, task) for split in SPLITS]
        name = task or ("the held-out classes" if whole == "test" else "the whole corpus")
        for split, rows in zip(("train", "test"), (found[0], found[2]), strict=True):
            if not len(rows):
                raise UserError(
                    f"finetune: {name} has no row to {split if split == 'test' else 'train on'}; "
                    + (f"change finetune.held_out ({settings.held_out.validation} validate, {settings.held_out.test} test)" if whole
                       else f"say in finetune.split which rows are of the {split} split")
                )  # fmt: skip
        if settings.patience is not None and not len(found[1]):
            raise UserError(
                f"finetune.patience: {settings.patience} validations were asked for, but {name} has no row to validate on; "
                "set finetune.patience to null, or give it validation rows"
            )
        classes = tuple(prepared.classes[c] for c in np.unique(prepared.held(np.concatenate(found))[1]))
        if tasks.outputs_for(len(classes)) < 2:
            raise UserError(
                f"finetune: {name} has {len(classes)} class(es) ({', '.join(classes)}), and there is nothing to tell apart"
            )
        return cls(str(folder), tasks, name, classes, *found)

    def account(self, say: Callable[[str], None]) -> None:
        """Says what a user should know of the task."""
        say(
            f"target: {self.name}, {len(self.classes)} classes; {len(self.train)} rows to train on, "
            f"{len(self.validation)} to validate, {len(self.test)} to test"
        )
        prepared = _opened(self.folder)
        known = {prepared.classes[c] for c in np.unique(prepared.held(self.train)[1])}
        missing = [c for c in self.classes if c not in known]
        if missing:
            say(
                f"{len(missing)} classes have no training row, and cannot be learned: {', '.join(missing[:5])}"
                + (", ..." if len(missing) > 5 else "")
            )

    def examples(self, rows: Ints) -> Examples:
        """These rows, labelled by their place in `classes`."""
        return self.tasks.examples(_opened(self.folder).take(rows), rows, self.classes)

    def drawn(self, shots: int | None, rows: int | None, seed: int, repeat: int) -> Ints:
        """The training rows of a repeat: all, `rows` of them, or `shots` that hold each class. Larger draws hold smaller ones,
        but where rows hold several classes.

        For `shots`, classes take their turn from the rarest on, and count the rows that earlier ones took.
        """
        order = self.train[generator(seed, f"finetune draw {repeat}", 0).permutation(len(self.train))]
        if rows is not None:
            return np.sort(order[:rows])
        if shots is None:
            return self.train
        owner, held = _opened(self.folder).held(order)
        taken = np.zeros(len(order), dtype=bool)
        classes, sizes = np.unique(held, return_counts=True)
        for cls in classes[np.argsort(sizes, kind="stable")]:
            holders = owner[held == cls]
            missing = max(shots - int(taken[holders].sum()), 0)
            taken[holders[~taken[holders]][:missing]] = True
        return np.sort(order[taken])

    def watched(self, rows: int | None, seed: int) -> Ints:
        """The validation rows that early stopping looks at."""
        if rows is None or rows >= len(self.validation):
            return self.validation
        return np.sort(generator(seed, "finetune watched", 0).permutation(self.validation)[:rows])


def batch(rows: Ints, size: int, step: int, seed: int, repeat: int) -> Ints:
    """The rows of batch `step`, counted from 1: each pass over `rows` has an order of its own."""
    a_pass = -(-len(rows) // size)
    epoch, at = divmod(step - 1, a_pass)
    order = generator(seed, f"finetune order {repeat}", epoch).permutation(len(rows))
    return rows[order[at * size : (at + 1) * size]]


def _divided(prepared: Prepared, rows: Ints, held_out: HeldOut, seed: int) -> list[Ints]:
    """Rows that train, validate and test: of each class, those shares. A row with several classes goes by its first."""
    owner, held = prepared.held(rows)
    first = np.full(len(rows), -1)
    first[owner[::-1]] = held[::-1]
    side = np.zeros(len(rows), dtype=np.int64)
    rng = generator(seed, "finetune held out", 0)
    for cls in np.unique(first):
        mine = rng.permutation(np.flatnonzero(first == cls))
        tests, validates = round(held_out.test * len(mine)), round(held_out.validation * len(mine))
        side[mine[:tests]] = 2
        side[mine[tests : tests + validates]] = 1
    return [rows[side == i] for i in range(len(SPLITS))]


def _check_task(names: list[str], task: str) -> None:
    if not any(names):
        raise UserError(
            f"finetune.task: {task!r} was asked for, but the corpus does not say which task a row is of; name the column "
            "(corpus.columns: {task: domain}), or leave finetune.task out"
        )
    if task not in names:
        some = ", ".join(names[:10]) + (", ..." if len(names) > 10 else "")
        raise UserError(
            f"finetune.task: no task of the corpus is called {task!r}{did_you_mean(task, names)} (tasks: {some})"
        )


@lru_cache(maxsize=4)
def _opened(folder: str) -> Prepared:
    return Prepared(Path(folder))
