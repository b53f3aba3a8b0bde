"""From rows to a prepared corpus: read, check, set bad rows aside, tokenize once, sort by task, index by class.

Ray Data reads and encodes in parallel; each chunk of rows becomes one Arrow file whose name tells where it came from, so
that a task that runs twice changes nothing. Sorting goes by where rows came from, never by who finished first: the
prepared corpus, and with it every episode, is the same on any cluster. It is memory-mapped, and nothing loads it whole.
"""

import hashlib
import json
import os
import pickle
import shutil
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raymeta.corpora import Corpus, Row, Shard
from raymeta.episodes import SPLITS, Ints, Pool
from raymeta.errors import UserError, did_you_mean
from raymeta.model import Backbone
from raymeta.tasks import Split, Tasks

_VERSION = 2
_CHUNK = 2048
"""Rows that one task encodes."""
_FILE_ROWS = 1 << 16
"""Rows of one sorted file."""
_NAMED_FAULTS = 100_000
"""Bad rows that quarantine.jsonl names; the rest are counted."""


@dataclass(frozen=True)
class Prepared:
    """A prepared corpus in a folder: Arrow files sorted by (split, task, class), and arrays that index them."""

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
            for name, (values, offsets) in self._columns[row // _FILE_ROWS].items():
                at = row % _FILE_ROWS
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
        held = {n: np.load(self.folder / f"{n}.npy", mmap_mode="r") for n in ("held_start", "held_class", "held_count")}
        return Pool(split, self._names("classes"), self._names("tasks"), **arrays, **held)


def prepare(
    corpus: Corpus,
    tasks: Tasks,
    backbone: Backbone,
    seed: int,
    root: Path,
    on_ray: bool,
    say: Callable[[str], None] = print,
) -> Prepared:
    """The corpus prepared under `root`, made now if it is not there yet.

    Raises UserError where a file or column is missing, too many rows are bad, or no row is left.
    """
    shards, columns = corpus.check(tasks.roles, tasks.split.column)
    _check_split(corpus, tasks, shards)
    tokenizer = backbone.tokenizer()
    folder = root / _key(corpus, tasks, backbone, seed, tokenizer)
    if not (folder / "index.json").is_file():
        building = root / f".building-{folder.name}-{os.getpid()}"
        shutil.rmtree(building, ignore_errors=True)
        (building / "parts").mkdir(parents=True)
        try:
            work = _Encode(str(building / "parts"), tasks, backbone)
            read = _Read(corpus, columns)
            found = (
                _on_ray(read, work, shards) if on_ray else [work(chunk) for shard in shards for chunk in read(shard)]
            )
            _sort(building, found, corpus, tasks.split, seed, [s.name for s in shards])
            shutil.rmtree(building / "parts")
            if not folder.exists():
                building.rename(folder)
        finally:
            shutil.rmtree(building, ignore_errors=True)
    prepared = Prepared(folder)
    for line in _account(prepared):
        say(line)
    return prepared


def _check_split(corpus: Corpus, tasks: Tasks, shards: list[Shard]) -> None:
    split = tasks.split
    stated = split.column or any(getattr(split, s) is not None for s in SPLITS) or any(s.split for s in shards)
    if not stated:
        raise UserError(
            "tasks.split: nothing says which rows train and which test; name a column "
            "(split: {column: split, train: train, test: test}), numbers of classes (split: {train: 30, test: 10}), or one file a split"
        )
    if (tasks.classes_from == "task" or (split.of == "task" and not split.column)) and "task" not in corpus.columns:
        setting = "tasks.classes_from: task" if tasks.classes_from == "task" else "tasks.split.of: task"
        raise UserError(f"{setting} needs to know each row's task; name its column (corpus.columns: {{task: domain}})")


def _key(corpus: Corpus, tasks: Tasks, backbone: Backbone, seed: int, tokenizer: Any) -> str:
    """A name that changes with anything that a prepared corpus depends on."""
    drawn = any(isinstance(getattr(tasks.split, s), int) for s in SPLITS)
    parts = [
        _VERSION, corpus.kind, corpus.model_dump_json(), corpus.fingerprint(), tasks.kind, tasks.split.model_dump_json(),
        backbone.max_length, hashlib.sha256(repr(sorted(tokenizer.get_vocab().items())).encode()).hexdigest(), seed if drawn else None,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class _Chunk:
    """Rows of one shard, on their way to be encoded."""

    order: int
    number: int
    split: str | None
    rows: list[Row]


@dataclass(frozen=True)
class _Part:
    """What became of a chunk: how many rows were kept and cut, and (row number, reason) of those set aside."""

    order: int
    number: int
    rows: int
    kept: int
    cut: int
    faults: list[tuple[int, str]]


@dataclass(frozen=True)
class _Read:
    """Cuts a shard into chunks."""

    corpus: Corpus
    columns: dict[str, str | int]

    def __call__(self, shard: Shard) -> Iterator[_Chunk]:
        rows: list[Row] = []
        number = 0
        for row in self.corpus.read(shard, self.columns):
            rows.append(row)
            if len(rows) == _CHUNK:
                yield _Chunk(shard.order, number, shard.split, rows)
                rows, number = [], number + 1
        if rows:
            yield _Chunk(shard.order, number, shard.split, rows)


@lru_cache(maxsize=1)
def _tokenizer(backbone: Backbone) -> Any:
    return backbone.tokenizer()


@dataclass(frozen=True)
class _Encode:
    """Checks and tokenizes a chunk, and writes what is good to a file of its own."""

    folder: str
    tasks: Tasks
    backbone: Backbone

    def __call__(self, chunk: _Chunk) -> _Part:
        good, faults = [], []
        for row in chunk.rows:
            fault = row.fault or self._task_fault(row.values) or self.tasks.fault(row.values)
            if fault:
                faults.append((row.number, fault))
            else:
                good.append(row)
        encoded = (
            self.tasks.encode([r.values for r in good], _tokenizer(self.backbone), self.backbone.max_length)
            if good
            else []
        )
        kept = []
        for row, found in zip(good, encoded, strict=True):
            fault = found.pop("fault", None)
            if fault:
                faults.append((row.number, fault))
                continue
            origin = row.values.get("split") if "split" in row.values else chunk.split
            kept.append(
                {
                    **found,
                    "number": row.number,
                    "origin": None if origin is None else str(origin),
                    "task": str(row.values.get("task", "")),
                }
            )
        if kept:
            columns = {name: [row[name] for row in kept] for name in kept[0] if name != "cut"}
            table = pa.table(
                {
                    name: pa.array(values, type=_TYPES.get(name, pa.list_(pa.int32())))
                    for name, values in columns.items()
                }
            )
            _write(table, Path(self.folder) / _part_name(chunk.order, chunk.number))
        return _Part(chunk.order, chunk.number, len(chunk.rows), len(kept), sum(r["cut"] for r in kept), sorted(faults))

    @staticmethod
    def _task_fault(values: dict[str, Any]) -> str | None:
        if "task" in values and (values["task"] is None or not str(values["task"]).strip()):
            return "task is missing"
        return None


_TYPES = {"number": pa.int64(), "origin": pa.string(), "task": pa.string(), "classes": pa.list_(pa.string())}


def _part_name(order: int, number: int) -> str:
    return f"part-{order:06d}-{number:06d}.arrow"


def _write(table: pa.Table, path: Path) -> None:
    """An Arrow file, whole or not at all."""
    temporary = path.with_suffix(".tmp")
    table = table.combine_chunks()
    with pa.OSFile(str(temporary), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)
    temporary.replace(path)


def calm_ray_data() -> None:
    """Keeps Ray Data's own progress bars and notices off a run's console, and its blocks in order."""
    import logging

    import ray

    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False
    context.print_on_execution_start = False
    context.execution_options.preserve_order = True
    logging.getLogger("ray.data").setLevel(logging.WARNING)
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)


def _on_ray(read: _Read, work: _Encode, shards: list[Shard]) -> list[_Part]:
    """Chunks through Ray Data: shards are read in parallel, and their chunks encoded in parallel."""
    import ray
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    def chunks(shard: Shard) -> Iterator[pa.Table]:
        for chunk in read(shard):
            yield pa.table({"chunk": pa.array([pickle.dumps(chunk)], type=pa.large_binary())})

    class Chunks(Datasource):  # type: ignore[misc]
        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
            meta = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(lambda s=s: chunks(s), meta) for s in shards]

    def encoded(batch: pa.Table) -> pa.Table:
        parts = [work(pickle.loads(c)) for c in batch.column("chunk").to_pylist()]
        return pa.table({"part": pa.array([pickle.dumps(p) for p in parts], type=pa.binary())})

    calm_ray_data()
    try:
        data = ray.data.read_datasource(Chunks(), override_num_blocks=len(shards), num_cpus=0.5)
        data = data.map_batches(encoded, batch_size=1, batch_format="pyarrow", num_cpus=1)
        parts = [pickle.loads(row["part"]) for row in data.iter_rows()]
    except ray.exceptions.RayTaskError as error:
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, UserError):
            cause = getattr(cause, "cause", None) or cause.__cause__
        if cause is None:
            raise
        raise UserError(str(cause)) from error
    return sorted(parts, key=lambda p: (p.order, p.number))


def _sort(building: Path, parts: list[_Part], corpus: Corpus, split: Split, seed: int, names: list[str]) -> None:
    """Writes the parts' rows sorted by (split, task, class, origin), and what indexes them; `index.json` goes last."""
    total, kept = sum(p.rows for p in parts), sum(p.kept for p in parts)
    set_aside = total - kept
    reasons = _quarantine(building / "quarantine.jsonl", parts, names)
    if total == 0:
        raise UserError("corpus: there is no row in it")
    if kept == 0 or set_aside > corpus.bad_rows * total:
        some = "; ".join(f"{n} x {reason}" for reason, n in reasons.most_common(3))
        where = next((f"{names[p.order]} row {p.faults[0][0]}" for p in parts if p.faults), "")
        raise UserError(
            f"corpus.bad_rows: {set_aside} of {total} rows cannot be used, more than the share {corpus.bad_rows} that is allowed: "
            f"{some} (first: {where}); mend the data, check corpus.columns, or raise corpus.bad_rows"
        )
    tables = [
        pa.ipc.open_file(pa.memory_map(str(building / "parts" / _part_name(p.order, p.number)))).read_all()
        for p in parts
        if p.kept
    ]
    held: Ints
    classes, held, holders = _codes(
        [t.column("classes").chunk(0).flatten() for t in tables], [t.column("classes").chunk(0) for t in tables]
    )
    tasks, task, _ = _codes([t.column("task").chunk(0) for t in tables], None)
    origins, origin, _ = _codes([t.column("origin").chunk(0) for t in tables], None)
    held_start = np.concatenate([[0], np.cumsum(holders)])
    leading = np.full(kept, -1, dtype=np.int32)
    some_class = holders > 0
    leading[some_class] = held[held_start[:-1][some_class]]
    side = _assigned(split, seed, classes, tasks, origins, held, held_start, task, origin)
    used = np.flatnonzero(side >= 0)
    order = used[np.lexsort((used, leading[used], task[used], side[used]))]
    _gather(building, tables, order, held, held_start)
    side, task = side[order], task[order]
    count = holders[order]
    at = np.concatenate([[0], np.cumsum(count)])
    held = _ranges(held, held_start[order], count)
    counts = np.concatenate([t.column("counts").chunk(0).flatten().to_numpy() for t in tables]).astype(np.int32)
    np.save(building / "held_start.npy", at.astype(np.int64))
    np.save(building / "held_class.npy", held)
    np.save(building / "held_count.npy", _ranges(counts, held_start[order], count))
    splits = {}
    for i, name in enumerate(SPLITS):
        rows = np.flatnonzero(side == i)
        if len(rows):
            cells = _cells(building, name, rows, count, at, held, task)
            splits[name] = {"rows": len(rows), **cells}
    for name, values in (("classes", classes), ("tasks", tasks)):
        _write(pa.table({"name": pa.array(values, type=pa.string())}), building / f"{name}.arrow")
    summary = {
        "version": _VERSION, "rows": len(order), "splits": splits, "set_aside": set_aside, "reasons": dict(reasons.most_common(20)),
        "cut": sum(p.cut for p in parts), "in_no_split": kept - len(order), "shared": _shared(building, splits),
    }  # fmt: skip
    (building / "index.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")


def _quarantine(path: Path, parts: list[_Part], names: list[str]) -> Counter[str]:
    """Writes file, row and reason of bad rows, and counts the reasons."""
    reasons: Counter[str] = Counter()
    with path.open("w", encoding="utf-8", errors="backslashreplace") as out:
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


def _codes(strings: list[pa.Array], lists: list[pa.Array] | None) -> tuple[list[str], npt.NDArray[np.int32], Ints]:
    """Sorted names, the code of each string, and (of lists) how many strings each list has."""
    names: set[str | None] = set()
    encoded = []
    for array in strings:
        dictionary = array.dictionary_encode()
        names.update(dictionary.dictionary.to_pylist())
        encoded.append(dictionary)
    ordered = sorted(n for n in names if n is not None)
    place = {n: i for i, n in enumerate(ordered)}
    codes = []
    for dictionary in encoded:
        lookup = np.array([place[n] for n in dictionary.dictionary.to_pylist()], dtype=np.int32)
        local = dictionary.indices.fill_null(-1).to_numpy(zero_copy_only=False)
        codes.append(np.where(local >= 0, lookup[local] if len(lookup) else -1, -1).astype(np.int32))
    sizes = np.concatenate([a.value_lengths().to_numpy() for a in lists]) if lists else np.zeros(0, dtype=np.int64)
    return ordered, np.concatenate(codes), sizes.astype(np.int64)


def _assigned(
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
    """The split of each row: 0 train, 1 validation, 2 test, -1 none (so too where its classes belong to different ones)."""
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
        return side
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
    lists = [n for n in tables[0].column_names if n not in _TYPES]
    for start in range(0, len(order), _FILE_ROWS):
        rows = order[start : start + _FILE_ROWS]
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
        _write(pa.table(columns), building / f"rows-{start // _FILE_ROWS:06d}.arrow")


def _cells(building: Path, name: str, rows: Ints, count: Ints, at: Ints, held: Ints, task: Ints) -> dict[str, int]:
    """Writes the postings of one split, by (class, task); gives its numbers of classes and tasks."""
    holder = np.repeat(rows, count[rows])
    cls = _ranges(held, at[rows], count[rows])
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
    return {"classes": len(np.unique(cls)), "tasks": len(np.unique(task[rows]))}


def _shared(building: Path, splits: dict[str, Any]) -> dict[str, int]:
    """How many classes of the validation and test splits are in the train split as well."""
    classes = {name: set(np.load(building / f"{name}.cell_class.npy").tolist()) for name in splits}
    train = classes.pop("train", set())
    return {name: len(there & train) for name, there in classes.items() if there & train}


def _account(prepared: Prepared) -> list[str]:
    """What a user should know of a prepared corpus, a line each."""
    summary = prepared.summary
    lines = [
        "corpus: "
        + ", ".join(
            f"{name} {s['rows']} rows, {s['classes']} classes, {s['tasks']} tasks"
            for name, s in summary["splits"].items()
        )
    ]
    for name, shared in summary["shared"].items():
        lines.append(
            f"{shared} of the {summary['splits'][name]['classes']} classes of the {name} split are also in the train split"
        )
    if summary["set_aside"]:
        reasons = ", ".join(f"{n} x {reason}" for reason, n in list(summary["reasons"].items())[:3])
        lines.append(
            f"{summary['set_aside']} bad rows were set aside ({reasons}); they are named in {prepared.folder / 'quarantine.jsonl'}"
        )
    if summary["cut"]:
        lines.append(f"{summary['cut']} texts were cut at model.max_length tokens")
    if summary["in_no_split"]:
        lines.append(f"{summary['in_no_split']} rows belong to no split and are not used")
    return lines
