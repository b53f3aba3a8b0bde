"""What a task is: which rows it reads, how episodes are drawn from them, and how a model's answer is scored.

A task kind is one file here (or a user's own, `kind: my_module:MyTasks`): a `Tasks` component that checks and encodes
rows, draws episodes, picks from the encoder's token states the features that a head classifies, and scores answers.
"""

from abc import abstractmethod
from collections.abc import Sequence
from math import nan
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BeforeValidator, Field, model_validator
from torch import Tensor

from raymeta.component import Component, Section
from raymeta.episodes import SPLITS, Drawn, Episode, Examples, Ints, Pool, generator
from raymeta.errors import UserError
from raymeta.inner import Picks
from raymeta.supervised import Interval, Report


def _range(value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return (value, value)
    whole = isinstance(value, (list, tuple)) and all(isinstance(v, int) and not isinstance(v, bool) for v in value)
    if not whole or len(value) != 2:
        raise ValueError(f"give a whole number, or [low, high], not {list(value) if whole else value!r}")
    if value[0] > value[1]:
        raise ValueError(f"a range goes from low to high, not {list(value)}")
    return value


Range = Annotated[tuple[int, int], BeforeValidator(_range)]
"""A number, or [low, high]: then each episode draws its own."""


class Split(Section):
    """Which examples train, validate and test: no class (or task) of one is ever seen in another.

    Either `column`, with the value(s) of each split; or `of: class | task` with numbers (drawn by the run's seed) or
    lists of names. One file a split (`corpus.path` as a mapping) needs no Split; with one, numbers and lists carve
    classes or tasks out of the training file.
    """

    column: str | None = None
    """The column that says to which split a row belongs; absent: split by `of`."""
    of: Literal["class", "task"] = "class"
    """What numbers and lists count: classes, or tasks (domains)."""
    train: str | int | tuple[str, ...] | None = None
    """Value(s) of `column`; or a number or list of classes or tasks; absent: what the other splits leave."""
    validation: str | int | tuple[str, ...] | None = None
    """Like `train`."""
    test: str | int | tuple[str, ...] | None = None
    """Like `train`."""

    @model_validator(mode="after")
    def _makes_sense(self) -> "Split":
        for name in SPLITS:
            value = getattr(self, name)
            if self.column and isinstance(value, int):
                raise ValueError(
                    f"{name}: with `column` give the value(s) of column {self.column!r}, not a number ({value})"
                )
            if not self.column and isinstance(value, str):
                raise ValueError(f"{name}: without `column` give a number or a list of names, not {value!r}")
            if isinstance(value, int) and value < 1:
                raise ValueError(f"{name}: {value} is not a number of {self.of}es; give at least 1")
        return self

    def values(self, name: str) -> list[str]:
        """The values or names that a split lists."""
        value = getattr(self, name)
        return [value] if isinstance(value, str) else list(value) if isinstance(value, tuple) else []


class Tasks(Component, family="raymeta.tasks", noun="task"):
    """A family of small tasks, and how episodes of N ways and K shots are drawn from them."""

    roles: ClassVar[tuple[str, ...]] = ()
    """The columns that this kind reads, by role, the answer last; the run's `corpus.columns` names them."""
    optional: ClassVar[tuple[str, ...]] = ()
    """Columns that this kind reads, by role, only where `corpus.columns` names them, as it does `task`."""
    text_roles: ClassVar[tuple[str, ...]] = ("text", "tokens", "question", "context", "source", "target")
    """The roles, of those that it reads, whose values are text that a model may be pre-trained on, in reading order."""
    metric: ClassVar[str] = ""
    """The metric that decides which checkpoint is best."""
    generates: ClassVar[bool] = False
    """Whether answers are tokens, which a language model tells by its own output layer. Such a kind's Examples hold the source
    texts as `ids` and `lengths`, and in `extra` the targets: `target_ids`, end to end, each ending in the end-of-sequence token
    (if it is whole), and `target_lengths` [text]."""
    auto_class: ClassVar[str] = ""
    """What follows `AutoModelFor` in the name of transformers' class that an adapted model is exported for; empty: none."""
    fewest_ways: ClassVar[int] = 2
    """Classes that an episode must have at least."""
    fixed_outputs: ClassVar[bool] = False
    """Whether an output of the head means the same in every task, so that it is learned over tasks and no class has a mean."""

    ways: Range = (5, 5)
    """Classes of an episode (N), or [low, high]."""
    shots: Range = (1, 1)
    """Support examples a class (K), or [low, high]."""
    queries: int = Field(5, ge=1)
    """Query examples a class."""
    classes_from: Literal["all", "task"] = "all"
    """`task`: the classes of an episode come from one task (domain); `all`: from the whole split."""
    split: Split = Split()
    """Which classes or tasks train, validate and test."""

    @model_validator(mode="after")
    def _positive(self) -> "Tasks":
        if self.ways[0] < self.fewest_ways:
            raise ValueError(f"ways: an episode needs at least {self.fewest_ways} classes, not {self.ways[0]}")
        if self.shots[0] < 1:
            raise ValueError(f"shots: an episode needs at least 1 example a class, not {self.shots[0]}")
        return self

    def outputs_for(self, ways: int) -> int:
        """Outputs of a head for `ways` classes."""
        return ways

    @property
    def slots(self) -> int:
        """States that make an item's feature, side by side: the head is that many times as wide as the encoder."""
        return 1

    @property
    def bounds(self) -> tuple[int, int] | None:
        """Fewest and most rows of a class, of a kind whose rows hold many classes by the way, like the words of a text: a class
        with fewer or more is none, and a row is of the splits of all its classes. None: a row is of one split."""
        return None

    # reading

    def reads(self) -> tuple[str, ...]:
        """The roles that these settings read."""
        return self.roles

    def check(self, tokenizer: Any) -> None:
        """Raises UserError where this kind cannot be computed here, or with this tokenizer."""

    def fingerprint(self) -> str:
        """A text that changes when what this kind reads beside the corpus changes."""
        return ""

    @abstractmethod
    def fault(self, row: dict[str, Any]) -> str | None:
        """Why `row` (role -> value) cannot be used, or None if it can."""

    @abstractmethod
    def encode(self, rows: Sequence[dict[str, Any]], tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
        """For each row: `ids` (int32, special tokens included), `classes` (names), `counts`, `cut` (bool), and extras."""

    # drawing

    @abstractmethod
    def class_need(self, shots: int) -> int:
        """Examples that a class must have to take part in an episode of `shots` shots."""

    @abstractmethod
    def _fill(self, pool: Pool, classes: Ints, task: int | None, shots: int, rng: np.random.Generator) -> Drawn | None:
        """Support and query examples for the drawn `classes`, or None if they cannot be filled."""

    def choices(self, pool: Pool) -> "Choices":
        """The classes of `pool` that can take part; raises UserError where they are too few."""
        return Choices.of(self, pool)

    def draw(self, pool: Pool, seed: int, number: int, choices: "Choices") -> Drawn:
        """Which examples make episode `number`: the same for the same (seed, split, number), whoever asks."""
        rng = generator(seed, pool.split, number)
        for _ in range(100):
            task, available = choices.group(rng)
            ways = int(rng.integers(self.ways[0], min(self.ways[1], len(available)) + 1))
            shots = int(rng.integers(self.shots[0], self.shots[1] + 1))
            classes = rng.permutation(available)[:ways]
            drawn = self._fill(pool, classes, task, shots, rng)
            if drawn is not None:
                return drawn
        raise UserError(
            f"tasks.shots: episode {number} of the {pool.split} split could not be filled in 100 draws "
            f"({self.ways[1]} ways, {self.shots[1]} shots, {self.queries} queries a class): the classes have too few "
            "examples apart from each other; lower tasks.shots, tasks.queries or tasks.ways"
        )

    @abstractmethod
    def examples(self, table: dict[str, Any], rows: Ints, classes: Sequence[str]) -> Examples:
        """The prepared rows in `table` (column -> list) as Examples, labelled by their place in `classes`."""

    # learning and scoring

    @abstractmethod
    def picks(self, examples: Examples, pooling: str) -> Picks:
        """Which token states make the items that the head classifies."""

    @abstractmethod
    def targets(self, examples: Examples) -> Tensor:
        """The class of each item, int64 [item]."""

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Mean cross-entropy over each task's items, [task]; logits [task, item, output], targets [task, item], -100: none."""
        return mean_cross_entropy(logits, targets, None)

    def measure(self, targets: Tensor) -> Tensor:
        """What `losses` divides the sum over each task's items by, [task]: a batch's loss is the mean of its parts' so weighted."""
        return (targets >= 0).sum(1)

    @abstractmethod
    def score(self, logits: Tensor, examples: Examples, classes: Sequence[str]) -> dict[str, float]:
        """The metrics of one episode's query answers, by name."""

    def report(self, logits: Tensor, examples: Examples, classes: Sequence[str]) -> Report:
        """What a supervised evaluation says of answers to a task with fixed labels."""
        found = self.score(logits, examples, classes)
        return Report(len(examples), {name: Interval(value, nan, nan) for name, value in found.items()}, {})

    @abstractmethod
    def show(self, episode: Episode, tokenizer: Any) -> str:
        """The episode as text, for a person."""

    # in use, after training

    def typed(self, row: dict[str, Any]) -> dict[str, Any]:
        """A row as this kind reads it, from one as a person types it."""
        return row

    def asked(self, row: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
        """`row`, which has no answer, with one that only holds its place."""
        return {**row, self.reads()[-1]: classes[0]}

    def output_names(self, classes: Sequence[str]) -> list[str]:
        """What each output of a head for `classes` says."""
        return list(classes)

    def items(self, examples: Examples) -> list[int]:
        """How many items each text has."""
        return [1] * len(examples)

    def answers(
        self, logits: Tensor, examples: Examples, classes: Sequence[str], rows: Sequence[dict[str, Any]]
    ) -> Any:
        """The answer to each of `rows`, in words, given the scores of their items, [item, output]."""
        names = self.output_names(classes)
        return [names[i] for i in logits.argmax(-1).tolist()]


def mean_cross_entropy(logits: Tensor, targets: Tensor, weight: Tensor | None) -> Tensor:
    """Cross-entropy of each task, [task]: the mean over its items, weighted by `weight` [output] of their classes."""
    tasks, items, outputs = logits.shape
    each = F.cross_entropy(
        logits.reshape(-1, outputs), targets.reshape(-1), weight, ignore_index=-100, reduction="none"
    )
    return each.view(tasks, items).sum(1) / total_weight(targets, weight)


def total_weight(targets: Tensor, weight: Tensor | None) -> Tensor:
    """The weights [output] of each task's items, summed, [task]; where there are none, how many items it has."""
    there = targets >= 0
    return there.sum(1) if weight is None else (weight[targets.clamp(min=0)] * there).sum(1)


class Choices:
    """Which classes an episode may draw: over the whole split, or task by task. Arrays, since tasks may be a million."""

    def __init__(self, classes: Ints, left_out: dict[str, int], tasks: Ints | None = None, starts: Ints | None = None):
        """classes: those of the whole split; or, with `tasks`, those of each task end to end, task i's from `starts[i]` to
        `starts[i + 1]`."""
        self._classes, self._tasks, self._starts = classes, tasks, starts
        self.left_out = left_out
        """Classes with too few examples, and how many each has (of some, where they are many)."""

    def __len__(self) -> int:
        return 1 if self._tasks is None else len(self._tasks)

    def __getitem__(self, i: int) -> tuple[int | None, Ints]:
        """A task that an episode may be of (None: of any), and the classes there."""
        if self._tasks is None or self._starts is None:
            return None, self._classes
        return int(self._tasks[i]), self._classes[self._starts[i] : self._starts[i + 1]]

    @classmethod
    def of(cls, tasks: Tasks, pool: Pool) -> "Choices":
        """The classes of `pool` with enough examples; raises UserError, naming the setting, where they are too few."""
        need = tasks.class_need(tasks.shots[1])
        grouped = tasks.classes_from == "task"
        sizes = np.diff(pool.cell_start) if grouped else pool.class_sizes()
        owner = pool.cell_class if grouped else np.arange(len(pool.classes))
        enough = sizes >= need
        left_out = {pool.classes[owner[i]]: int(sizes[i]) for i in np.flatnonzero(~enough & (sizes > 0))[:1000]}
        if grouped:
            kept_task, kept_class = pool.cell_task[enough], pool.cell_class[enough]
            order = np.lexsort((kept_class, kept_task))
            kept_task, kept_class = kept_task[order], kept_class[order]
            there, starts = np.unique(kept_task, return_index=True)
            sizes = np.diff(starts, append=len(kept_class))
            if not (sizes >= tasks.ways[0]).any():
                raise UserError(
                    f"tasks.ways: {tasks.ways[0]} ways were asked for within one task, but no task of the {pool.split} "
                    f"split has more than {sizes.max(initial=0)} classes with at least {need} examples "
                    f"(shots {tasks.shots[1]} + queries {tasks.queries}){_named(left_out)}; "
                    "lower tasks.ways, tasks.shots or tasks.queries, or set tasks.classes_from to all"
                )
            many = sizes >= tasks.ways[0]
            starts = np.concatenate([[0], np.cumsum(sizes[many])])
            return cls(kept_class[np.repeat(many, sizes)], left_out, there[many], starts)
        kept = np.flatnonzero(enough)
        if len(kept) < tasks.ways[0]:
            raise UserError(
                f"tasks.ways: {tasks.ways[0]} ways were asked for, but the {pool.split} split has {len(kept)} classes "
                f"with at least {need} examples (shots {tasks.shots[1]} + queries {tasks.queries}){_named(left_out)}; "
                f"lower tasks.ways, tasks.shots or tasks.queries, or move classes to {pool.split}"
            )
        return cls(kept, left_out)

    def group(self, rng: np.random.Generator) -> tuple[int | None, Ints]:
        """One group to draw from: tasks are drawn alike, whatever their size."""
        return self[int(rng.integers(len(self)))]


def _named(left_out: dict[str, int]) -> str:
    if not left_out:
        return ""
    some = ", ".join(f"{name!r} has {size}" for name, size in sorted(left_out.items(), key=lambda c: -c[1])[:3])
    return f" ({len(left_out)} more have fewer: {some}{', ...' if len(left_out) > 3 else ''})"


class Texts:
    """Joins prepared rows into Examples: shared by the task kinds that classify texts or their words."""

    @staticmethod
    def joined(table: dict[str, Any], rows: Ints, extra: dict[str, Sequence[int] | Ints]) -> Examples:
        """`table["ids"]` end to end, with `extra` arrays as they are."""
        ids = [np.asarray(i, dtype=np.int64) for i in table["ids"]]
        lengths = np.array([len(i) for i in ids], dtype=np.int64)
        tensors = {k: torch.from_numpy(np.asarray(v, dtype=np.int64)) for k, v in extra.items()}
        joined = torch.from_numpy(np.concatenate(ids))
        return Examples(joined, torch.from_numpy(lengths), torch.from_numpy(np.asarray(rows, dtype=np.int64)), tensors)


def text_picks(examples: Examples, pooling: str) -> Picks:
    """An item a text: its tokens' mean, its first token or its last."""
    ends = examples.lengths.cumsum(0)
    if pooling != "mean":
        return Picks(ends - 1 if pooling == "last" else ends - examples.lengths)
    device = examples.ids.device
    text = torch.repeat_interleave(torch.arange(len(examples), device=device), examples.lengths)
    return Picks(torch.arange(len(examples.ids), device=device), text, 1 / examples.lengths[text].double())


def seen(value: Any) -> str:
    """A value that is not what was expected, for a message."""
    return "missing" if value is None else f"{type(value).__name__} {str(value)[:40]!r}"


__all__ = ["Choices", "Range", "Split", "Tasks", "Texts"]
