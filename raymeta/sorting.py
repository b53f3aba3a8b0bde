"""From encoded parts to a prepared corpus: rows sorted by where they came from, never by who finished first."""

import json
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raymeta import store
from raymeta.corpora import Corpus
from raymeta.episodes import SPLITS, Ints
from raymeta.errors import UserError
from raymeta.splits import assigned
from raymeta.tasks import Split

VERSION = 5
"""Of what a prepared corpus looks like on disk."""
_NAMED_FAULTS = 100_000
"""Bad rows that quarantine.jsonl names; the rest are counted."""


@dataclass(frozen=True)
class Part:
    """What became of a chunk: how many rows were kept and cut, and (row number, reason) of those set aside."""

    order: int
    number: int
    rows: int
    kept: int
    cut: int
    faults: list[tuple[int, str]]


TEXT = "text_hash"
"""A column of numbers that are the same where the tokens of two rows are."""

TYPES = {
    "number": pa.int64(),
    "origin": pa.string(),
    "task": pa.string(),
    "classes": pa.list_(pa.string()),
    TEXT: pa.int64(),
}

_KEY = "key"
"""A column that a task kind may give: of rows with the same, the first is used."""


def part_name(order: int, number: int) -> str:
    return f"part-{order:06d}-{number:06d}.arrow"


def sort(
    building: Path,
    parts: list[Part],
    corpus: Corpus,
    split: Split,
    seed: int,
    names: list[str],
    bounds: tuple[int, int] | None = None,
) -> None:
    """Writes the parts' rows sorted by (split, task, class, origin), and what indexes them; `index.json` goes last.

    bounds: of `Tasks.bounds`.
    """
    kept = sum(p.kept for p in parts)
    reasons = accepted(building / "quarantine.jsonl", parts, corpus.bad_rows, names)
    tables = [
        pa.ipc.open_file(pa.memory_map(str(building / "parts" / part_name(p.order, p.number)))).read_all()
        for p in parts
        if p.kept
    ]
    held: Ints
    classes, held, holders = codes(
        [t.column("classes").chunk(0).flatten() for t in tables], [t.column("classes").chunk(0) for t in tables]
    )
    tasks, task, _ = codes([t.column("task").chunk(0) for t in tables], None)
    origins, origin, _ = codes([t.column("origin").chunk(0) for t in tables], None)
    counts = np.concatenate([t.column("counts").chunk(0).flatten().to_numpy() for t in tables]).astype(np.int32)
    written, written_start = held, np.concatenate([[0], np.cumsum(holders)])
    repeated = _repeated(tables)
    if bounds is None:
        side = assigned(split, seed, classes, tasks, origins, held, written_start, task, origin)
        side[repeated] = -1
        of_posting = np.repeat(side, holders)
    else:
        holder = np.repeat(np.arange(kept), holders)
        sizes = np.bincount(held[~repeated[holder]], minlength=len(classes))
        inside = (bounds[0] <= sizes[held]) & (sizes[held] <= bounds[1]) & ~repeated[holder]
        if not inside.any():
            raise UserError(
                f"tasks.words: no word occurs in {bounds[0]} to {bounds[1]} of the {kept} texts (the most frequent one in "
                f"{sizes.max(initial=0)}); lower min_count, raise max_count, or give more text"
            )
        held, counts, holder = held[inside], counts[inside], holder[inside]
        holders = np.bincount(holder, minlength=kept)
        each = np.arange(len(held) + 1)
        of_posting = assigned(split, seed, classes, tasks, origins, held, each, task[holder], origin[holder])
        side = np.full(kept, -1, dtype=np.int8)
        np.maximum.at(side, holder, of_posting)
    held_start = np.concatenate([[0], np.cumsum(holders)])
    leading = np.full(kept, -1, dtype=np.int32)
    some_class = holders > 0
    leading[some_class] = held[held_start[:-1][some_class]]
    used = np.flatnonzero(side >= 0)
    order = used[np.lexsort((used, leading[used], task[used], side[used]))]
    _gather(building, tables, order, written, written_start)
    side, task = side[order], task[order]
    count = holders[order]
    at = np.concatenate([[0], np.cumsum(count)])
    starts = held_start[order]
    split_of, held = _ranges(of_posting, starts, count), _ranges(held, starts, count)
    np.save(building / "side.npy", side)
    np.save(building / "task.npy", task.astype(np.int32))
    np.save(building / "held_start.npy", at.astype(np.int64))
    np.save(building / "held_class.npy", held)
    np.save(building / "held_count.npy", _ranges(counts, starts, count))
    holder = np.repeat(np.arange(len(order)), count)
    splits = {}
    for i, name in enumerate(SPLITS):
        mine = split_of == i
        rows = np.flatnonzero(side == i) if bounds is None else np.unique(holder[mine])
        if len(rows):
            cells = _cells(building, name, holder[mine], held[mine], task)
            splits[name] = {"rows": len(rows), **cells, "tasks": len(np.unique(task[rows]))}
    for name, values in (("classes", classes), ("tasks", tasks)):
        store.write(pa.table({"name": pa.array(values, type=pa.string())}), building / f"{name}.arrow")
    summary = {
        "version": VERSION, "rows": len(order), "splits": splits, "set_aside": sum(p.rows for p in parts) - kept, "reasons": dict(reasons.most_common(20)),
        "cut": sum(p.cut for p in parts), "repeated": int(repeated.sum()),
        "in_no_split": kept - len(order) - int(repeated.sum()), "shared": _shared(building, splits),
        "leaked": _leaked(tables, order, side),
    }  # fmt: skip
    (building / "index.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")


def accepted(path: Path, parts: list[Part], share: float, names: list[str], setting: str = "corpus") -> Counter[str]:
    """Adds the rows that were set aside to `path`, and counts the reasons.

    Raises UserError, which begins with `setting`, where no row is left or more than `share` of all was set aside.
    """
    total, kept = sum(p.rows for p in parts), sum(p.kept for p in parts)
    set_aside = total - kept
    reasons = _quarantine(path, parts, names)
    if total == 0:
        raise UserError(f"{setting}: there is no row in it")
    if kept == 0 or set_aside > share * total:
        some = "; ".join(f"{n} x {reason}" for reason, n in reasons.most_common(3))
        where = next((f"{names[p.order]} row {p.faults[0][0]}" for p in parts if p.faults), "")
        raise UserError(
            f"{setting}.bad_rows: {set_aside} of {total} rows cannot be used, more than the share {share} that is allowed: "
            f"{some} (first: {where}); mend the data, check {setting}.columns, or raise {setting}.bad_rows"
        )
    return reasons


def _quarantine(path: Path, parts: list[Part], names: list[str]) -> Counter[str]:
    """Writes file, row and reason of bad rows, and counts the reasons."""
    reasons: Counter[str] = Counter()
    with path.open("a", encoding="utf-8", errors="backslashreplace") as out:
        named = 0
        for part in parts:
            for number, reason in part.faults:
                reasons[reason if len(reason) < 60 else reason[:57] + "..."] += 1
                if named < _NAMED_FAULTS:
                    out.write(
                        json.dumps({"file": names[part.order], "row": number, "reason": reason}, ensure_ascii=False)
                        + "\n"
                    )
                named += 1
    return reasons


def codes(strings: list[pa.Array], lists: list[pa.Array] | None) -> tuple[list[str], npt.NDArray[np.int32], Ints]:
    """Sorted names, the code of each string, and (of lists) how many strings each list has."""
    names: set[str | None] = set()
    encoded = []
    for array in strings:
        dictionary = array.dictionary_encode()
        names.update(dictionary.dictionary.to_pylist())
        encoded.append(dictionary)
    ordered = sorted(n for n in names if n is not None)
    place = {n: i for i, n in enumerate(ordered)}
    coded = []
    for dictionary in encoded:
        lookup = np.array([place[n] for n in dictionary.dictionary.to_pylist()], dtype=np.int32)
        local = dictionary.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        coded.append(np.where(local >= 0, lookup[local] if len(lookup) else -1, -1).astype(np.int32))
    sizes = np.concatenate([a.value_lengths().to_numpy() for a in lists]) if lists else np.zeros(0, dtype=np.int64)
    return ordered, np.concatenate(coded), sizes.astype(np.int64)


def _ranges(values: Ints, starts: Ints, counts: Ints) -> Ints:
    """`values[s : s + c]` for each start and count, end to end."""
    ends = np.cumsum(counts)
    inside = np.arange(int(ends[-1]) if len(ends) else 0) - np.repeat(ends - counts, counts)
    found: Ints = values[np.repeat(starts, counts) + inside]
    return found


def _gather(building: Path, tables: list[pa.Table], order: Ints, held: Ints, held_start: Ints) -> None:
    """Writes the rows in `order` to sorted files, a run of them at a time."""
    sizes = np.array([t.num_rows for t in tables])
    begins = np.concatenate([[0], np.cumsum(sizes)])
    lists = [n for n in tables[0].column_names if n not in (*TYPES, _KEY)]
    for start in range(0, len(order), store.FILE_ROWS):
        rows = order[start : start + store.FILE_ROWS]
        owner = np.searchsorted(begins, rows, side="right") - 1
        local = rows - begins[owner]
        columns: dict[str, pa.Array] = {}
        for name in lists:
            pieces = []
            lengths = np.zeros(len(rows), dtype=np.int64)
            places = []
            for part in np.unique(owner):
                mine = np.flatnonzero(owner == part)
                column = tables[part].column(name).chunk(0)
                offsets = column.offsets.to_numpy()
                count = offsets[local[mine] + 1] - offsets[local[mine]]
                lengths[mine] = count
                pieces.append(_ranges(column.values.to_numpy(), offsets[local[mine]], count))
                places.append(mine)
            ends = np.cumsum(lengths)
            out = np.zeros(int(ends[-1]), dtype=np.int32)
            for mine, piece in zip(places, pieces, strict=True):
                count = lengths[mine]
                stops = np.cumsum(count)
                inside = np.arange(len(piece)) - np.repeat(stops - count, count)
                out[np.repeat(ends[mine] - count, count) + inside] = piece
            columns[name] = pa.ListArray.from_arrays(
                pa.array(np.concatenate([[0], ends]), type=pa.int32()), pa.array(out)
            )
        count = held_start[rows + 1] - held_start[rows]
        offsets = pa.array(np.concatenate([[0], np.cumsum(count)]), type=pa.int32())
        columns["classes"] = pa.ListArray.from_arrays(offsets, pa.array(_ranges(held, held_start[rows], count)))
        store.write(pa.table(columns), building / f"rows-{start // store.FILE_ROWS:06d}.arrow")


def _cells(building: Path, name: str, holder: Ints, cls: Ints, task: Ints) -> dict[str, int]:
    """Writes the postings of one split, class `cls` in row `holder`, by (class, task); gives its number of classes."""
    owner = task[holder]
    order = np.lexsort((holder, owner, cls))
    holder, cls, owner = holder[order], cls[order], owner[order]
    new = (
        np.concatenate([[True], (cls[1:] != cls[:-1]) | (owner[1:] != owner[:-1])])
        if len(cls)
        else np.zeros(0, dtype=bool)
    )
    starts = np.flatnonzero(new)
    np.save(building / f"{name}.cell_class.npy", cls[starts].astype(np.int32))
    np.save(building / f"{name}.cell_task.npy", owner[starts].astype(np.int32))
    np.save(building / f"{name}.cell_start.npy", np.concatenate([starts, [len(cls)]]).astype(np.int64))
    np.save(building / f"{name}.postings.npy", holder.astype(np.int64))
    return {"classes": len(np.unique(cls))}


def _repeated(tables: list[pa.Table]) -> npt.NDArray[np.bool_]:
    """Which rows have the `key` of a row before them; none, where the task kind gives no keys."""
    if _KEY not in tables[0].column_names:
        return np.zeros(sum(t.num_rows for t in tables), dtype=bool)
    keys = np.concatenate([t.column(_KEY).chunk(0).flatten().to_numpy().reshape(t.num_rows, -1) for t in tables])
    _, first = np.unique(keys, axis=0, return_index=True)
    repeated = np.ones(len(keys), dtype=bool)
    repeated[first] = False
    return repeated


def _shared(building: Path, splits: dict[str, Any]) -> dict[str, int]:
    """How many classes of the validation and test splits are in the train split as well."""
    classes = {name: set(np.load(building / f"{name}.cell_class.npy").tolist()) for name in splits}
    train = classes.pop("train", set())
    return {name: len(there & train) for name, there in classes.items() if there & train}


def _leaked(tables: list[pa.Table], order: Ints, side: Ints) -> dict[str, int]:
    """How many rows of the validation and test splits have the very text of a row of the train split; side: of `order`."""
    if TEXT not in tables[0].column_names:
        return {}
    texts = np.concatenate([t.column(TEXT).chunk(0).to_numpy() for t in tables])[order]
    train = np.unique(texts[side == SPLITS.index("train")])
    found = {name: int(np.isin(texts[side == i], train).sum()) for i, name in enumerate(SPLITS) if name != "train"}
    return {name: count for name, count in found.items() if count}
