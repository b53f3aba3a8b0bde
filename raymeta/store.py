"""A prepared corpus on disk: Arrow files sorted by (split, task, class), and arrays that index them, all memory-mapped."""

import json
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raymeta.episodes import SPLITS, Ints, Pool
from raymeta.errors import UserError

FILE_ROWS = 1 << 16
"""Rows of one sorted file."""


@dataclass(frozen=True)
class Prepared:
    """A prepared corpus in a folder."""

    folder: Path

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Rows, classes and tasks of each split; rows set aside, cut and in no split."""
        found: dict[str, Any] = json.loads((self.folder / "index.json").read_text(encoding="utf-8"))
        return found

    @cached_property
    def _columns(self) -> list[dict[str, tuple[Ints, Ints]]]:
        """For each sorted file: column -> (values, offsets), views of the mapped file."""
        files = []
        for path in sorted(self.folder.glob("rows-*.arrow")):
            table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
            columns = {}
            for name in table.column_names:
                column = table.column(name).chunk(0)
                if pa.types.is_list(column.type):
                    columns[name] = (column.values.to_numpy(), column.offsets.to_numpy())
                else:
                    columns[name] = (column.to_numpy(), np.arange(len(column) + 1))
            files.append(columns)
        return files

    def take(self, rows: Ints) -> dict[str, list[Any]]:
        """The rows at these positions: column -> one array a row; `classes` as names."""
        table: dict[str, list[Any]] = {}
        for row in rows.tolist():
            for name, (values, offsets) in self._columns[row // FILE_ROWS].items():
                at = row % FILE_ROWS
                table.setdefault(name, []).append(values[offsets[at] : offsets[at + 1]])
        names = self._names("classes")
        table["classes"] = [[names[c] for c in held] for held in table["classes"]]
        return table

    @lru_cache  # noqa: B019 - one for each open corpus, which lives as long as the process
    def _names(self, of: str) -> list[str]:
        found: list[str] = (
            pa.ipc.open_file(pa.memory_map(str(self.folder / f"{of}.arrow"))).read_all().column(0).to_pylist()
        )
        return found

    def rows(self, split: str, task: str | None = None) -> Ints:
        """Positions of the rows of a split (those of one task), in order."""
        mine = self._mapped("side") == SPLITS.index(split)
        if task is not None:
            mine &= self._mapped("task") == self.tasks.index(task)
        return np.flatnonzero(mine)

    @property
    def tasks(self) -> list[str]:
        """The names of all tasks."""
        return self._names("tasks")

    @property
    def classes(self) -> list[str]:
        """The names of all classes."""
        return self._names("classes")

    def held(self, rows: Ints) -> tuple[Ints, Ints]:
        """The classes (by their places in `classes`) that rows hold: which of `rows`, and which class, pair by pair."""
        start = self._mapped("held_start")
        count = start[rows + 1] - start[rows]
        ends = np.cumsum(count)
        inside = np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - count, count)
        return np.repeat(np.arange(len(rows)), count), self._mapped("held_class")[
            np.repeat(start[rows], count) + inside
        ]

    @lru_cache  # noqa: B019 - as below
    def _mapped(self, name: str) -> Ints:
        found: Ints = np.load(self.folder / f"{name}.npy", mmap_mode="r")
        return found

    def pool(self, split: str) -> Pool:
        """What episodes of `split` are drawn from; raises UserError where the split has no rows."""
        if split not in self.summary["splits"]:
            there = ", ".join(self.summary["splits"])
            raise UserError(
                f"tasks.split: no row belongs to the {split} split (splits with rows: {there or 'none'}); say in tasks.split what it holds"
                + (", or set validation.every to 0" if split == "validation" else "")
            )
        arrays = {
            n: np.load(self.folder / f"{split}.{n}.npy", mmap_mode="r")
            for n in ("cell_class", "cell_task", "cell_start", "postings")
        }
        held = {n: self._mapped(n) for n in ("held_start", "held_class", "held_count")}
        return Pool(split, self._names("classes"), self._names("tasks"), **arrays, **held)


def write(table: pa.Table, path: Path) -> None:
    """An Arrow file, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    table = table.combine_chunks()
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    temporary.replace(path)
