"""An episode: the support and query examples of one small task, drawn as a pure function of (seed, split, number).

`Pool` is what an episode is drawn from: which examples of a split hold which class, as memory-mapped arrays, so that
drawing costs a few random reads however large the corpus is. `Examples` are tokenised texts laid end to end without
padding; how they are padded or packed is the model's business.
"""

import zlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

Ints = npt.NDArray[np.integer[Any]]

SPLITS = ("train", "validation", "test")


def generator(seed: int, split: str, number: int) -> np.random.Generator:
    """The random numbers of episode `number`: a Philox counter, so that none depends on an earlier one."""
    key = np.array([seed & 0xFFFF_FFFF_FFFF_FFFF, zlib.crc32(split.encode())], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key, counter=np.array([0, 0, 0, number], dtype=np.uint64)))


@dataclass(frozen=True)
class Examples:
    """Tokenised texts end to end.

    ids: int64 [token]; lengths: int64 [text], tokens of each text, special tokens included;
    rows: int64 [text], where each text came from; extra: what the task kind adds, by name, each an int64 [n].
    """

    ids: Tensor
    lengths: Tensor
    rows: Tensor
    extra: dict[str, Tensor]

    def __len__(self) -> int:
        return len(self.lengths)

    def to(self, device: torch.device) -> "Examples":
        """The same examples on `device`."""
        moved = {k: v.to(device) for k, v in self.extra.items()}
        return Examples(self.ids.to(device), self.lengths.to(device), self.rows, moved)


@dataclass(frozen=True)
class Episode:
    """One small task: `classes` names its N classes in label order; support and query share no example.

    part: which of the corpora that a run mixes it comes from.
    """

    number: int
    split: str
    classes: tuple[str, ...]
    support: Examples
    query: Examples
    part: int = 0

    def to(self, device: torch.device) -> "Episode":
        """The same episode on `device`."""
        return replace(self, support=self.support.to(device), query=self.query.to(device))

    def to_row(self) -> dict[str, Any]:
        """A flat row of numbers, strings and arrays, as Ray Data carries it."""
        row: dict[str, Any] = {
            "number": self.number,
            "split": self.split,
            "classes": list(self.classes),
            "part": self.part,
        }
        for side, examples in (("support", self.support), ("query", self.query)):
            row[f"{side}.ids"] = examples.ids.numpy().astype(np.int32)
            row[f"{side}.lengths"] = examples.lengths.numpy().astype(np.int32)
            row[f"{side}.rows"] = examples.rows.numpy()
            for name, values in examples.extra.items():
                row[f"{side}.extra.{name}"] = values.numpy().astype(np.int32)
        return row

    @classmethod
    def from_row(cls, row: dict[str, Any]) -> "Episode":
        """The episode that `to_row` flattened."""

        def side(name: str) -> Examples:
            prefix = f"{name}.extra."
            extra = {
                k.removeprefix(prefix): tensor(v) for k, v in row.items() if k.startswith(prefix) and v is not None
            }
            return Examples(
                tensor(row[f"{name}.ids"]), tensor(row[f"{name}.lengths"]), tensor(row[f"{name}.rows"]), extra
            )

        def tensor(values: Any) -> Tensor:
            return torch.from_numpy(np.array(values, dtype=np.int64))

        whole = (int(row["number"]), str(row["split"]), tuple(row["classes"]), side("support"), side("query"))
        return cls(*whole, int(row["part"]))


@dataclass(frozen=True)
class Drawn:
    """What an episode will hold: class names in label order, and row positions of its support and query examples."""

    classes: tuple[str, ...]
    support: Ints
    query: Ints


@dataclass(frozen=True)
class Pool:
    """The examples of one split, by class and by task.

    A *cell* is the examples of one class in one task; cells are sorted by (class, task), so that the examples of a
    class over all tasks are one contiguous run of `postings`.

    classes, tasks: names; cell_class, cell_task: int32 [cell]; cell_start: int64 [cell + 1] into postings;
    postings: int64 [n], row positions; held_start: int64 [row + 1], and held_class, held_count: int32, the classes
    that each row holds and how often (entities: mentions; otherwise one class, once).
    """

    split: str
    classes: list[str]
    tasks: list[str]
    cell_class: Ints
    cell_task: Ints
    cell_start: Ints
    postings: Ints
    held_start: Ints
    held_class: Ints
    held_count: Ints

    def rows_of(self, cls: int, task: int | None = None) -> Ints:
        """Row positions of the examples of class `cls` (of task `task`, or of all tasks): a view, not a copy."""
        first, last = np.searchsorted(self.cell_class, [cls, cls + 1])
        if task is not None:
            first += np.searchsorted(self.cell_task[first:last], task)
            if first >= last or self.cell_task[first] != task:
                return self.postings[:0]
            last = first + 1
        return self.postings[self.cell_start[first] : self.cell_start[last]]

    def held(self, row: int) -> dict[int, int]:
        """Class -> how often, of the example at `row`."""
        start, stop = self.held_start[row], self.held_start[row + 1]
        return dict(zip(self.held_class[start:stop].tolist(), self.held_count[start:stop].tolist(), strict=True))

    def class_sizes(self) -> Ints:
        """Examples of each class over all tasks: int64 [class]."""
        sizes = np.zeros(len(self.classes), dtype=np.int64)
        np.add.at(sizes, self.cell_class, np.diff(self.cell_start))
        return sizes
