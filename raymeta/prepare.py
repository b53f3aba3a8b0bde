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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raymeta import store
from raymeta.corpora import Corpus, Row, Shard
from raymeta.episodes import SPLITS
from raymeta.errors import UserError
from raymeta.model import Backbone
from raymeta.sorting import TEXT, TYPES, VERSION, Part, part_name, sort
from raymeta.store import Prepared
from raymeta.tasks import Tasks

_CHUNK = 2048
"""Rows that one task encodes."""


def prepare(
    corpus: Corpus,
    tasks: Tasks,
    backbone: Backbone,
    seed: int,
    root: Path,
    on_ray: bool,
    say: Callable[[str], None] = print,
    whole: bool = False,
) -> Prepared:
    """The corpus prepared under `root`, made now if it is not there yet.

    whole: where nothing says which rows train and which test, all are of the train split.

    Raises UserError where a file or column is missing, too many rows are bad, or no row is left.
    """
    shards, columns = check(corpus, tasks, whole)
    tokenizer = backbone.tokenizer()
    tasks.check(tokenizer)
    folder = root / _key(corpus, tasks, backbone, tokenizer, seed)
    if not (folder / "index.json").is_file():
        building = root / f".building-{folder.name}-{os.getpid()}"
        shutil.rmtree(building, ignore_errors=True)
        (building / "parts").mkdir(parents=True)
        try:
            work = _Encode(str(building / "parts"), tasks, backbone)
            read = Read(corpus, columns)
            found = mapped(read, work, shards, on_ray)
            sort(building, found, corpus, tasks.split, seed, [s.name for s in shards], tasks.bounds)
            shutil.rmtree(building / "parts")
            try:
                building.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process made the same meanwhile
                    raise
        finally:
            shutil.rmtree(building, ignore_errors=True)
    prepared = Prepared(folder)
    for line in _account(prepared):
        say(line)
    return prepared


def check(corpus: Corpus, tasks: Tasks, whole: bool = False) -> tuple[list[Shard], dict[str, str | int]]:
    """Shards and role -> column, once all is right that can be known before rows are read; else raises UserError."""
    shards, columns = corpus.check(tasks.reads(), tasks.split.column, tasks.optional)
    split = tasks.split
    stated = split.column or any(getattr(split, s) is not None for s in SPLITS) or any(s.split for s in shards)
    if not (stated or whole):
        raise UserError(
            "tasks.split: nothing says which rows train and which test; name a column "
            "(split: {column: split, train: train, test: test}), numbers of classes (split: {train: 30, test: 10}), or one file a split"
        )
    by_task = [
        ("tasks.classes_from: task", tasks.classes_from == "task"),
        ("tasks.split.of: task", split.of == "task" and not split.column),
        (f"tasks.kind: {tasks.kind}", tasks.generates),
    ]
    for setting in (s for s, needs in by_task if needs and "task" not in columns):
        raise UserError(f"{setting} needs to know each row's task; name its column (corpus.columns: {{task: domain}})")
    return shards, columns


def _key(corpus: Corpus, tasks: Tasks, backbone: Backbone, tokenizer: Any, seed: int) -> str:
    """A name that changes with anything that a prepared corpus depends on."""
    words = repr(sorted(tokenizer.get_vocab().items()))
    own = tasks.model_dump_json(exclude={"ways", "shots", "queries", "classes_from"})
    drawn = any(isinstance(getattr(tasks.split, s), int) for s in SPLITS)
    parts = [
        VERSION, corpus.kind, corpus.model_dump_json(), corpus.fingerprint(), own, tasks.fingerprint(), backbone.max_length,
        hashlib.sha256(words.encode()).hexdigest(), seed if drawn else None,
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


@dataclass(frozen=True)
class Chunk:
    """Rows of one shard, on their way to be encoded."""

    order: int
    number: int
    split: str | None
    rows: list[Row]


@dataclass(frozen=True)
class Read:
    """Cuts a shard into chunks."""

    corpus: Corpus
    columns: dict[str, str | int]

    def __call__(self, shard: Shard) -> Iterator[Chunk]:
        rows: list[Row] = []
        number = 0
        for row in self.corpus.read(shard, self.columns):
            rows.append(row)
            if len(rows) == _CHUNK:
                yield Chunk(shard.order, number, shard.split, rows)
                rows, number = [], number + 1
        if rows:
            yield Chunk(shard.order, number, shard.split, rows)


@lru_cache(maxsize=1)
def _tokenizer(backbone: Backbone) -> Any:
    return backbone.tokenizer()


@dataclass(frozen=True)
class _Encode:
    """Checks and tokenizes a chunk, and writes what is good to a file of its own."""

    folder: str
    tasks: Tasks
    backbone: Backbone

    def __call__(self, chunk: Chunk) -> Part:
        good, faults = [], []
        for row in chunk.rows:
            fault = row.fault or task_fault(row.values) or self.tasks.fault(row.values)
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
                    TEXT: _hash(found["ids"]),
                }
            )
        if kept:
            columns = {name: [row[name] for row in kept] for name in kept[0] if name != "cut"}
            table = pa.table(
                {name: pa.array(values, type=TYPES.get(name, pa.list_(pa.int32()))) for name, values in columns.items()}
            )
            store.write(table, Path(self.folder) / part_name(chunk.order, chunk.number))
        return Part(chunk.order, chunk.number, len(chunk.rows), len(kept), sum(r["cut"] for r in kept), sorted(faults))


def _hash(ids: Sequence[int]) -> int:
    """A number that texts of the same tokens share."""
    digest = hashlib.blake2b(np.asarray(ids, dtype=np.int32).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little", signed=True)


def task_fault(values: dict[str, Any]) -> str | None:
    """Why a row's task cannot be used, where its column is read."""
    if "task" in values and (values["task"] is None or not str(values["task"]).strip()):
        return "task is missing"
    return None


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


def mapped(
    read: Callable[[Any], Iterator[Any]], work: Callable[[Any], Part], shards: Sequence[Any], on_ray: bool
) -> list[Part]:
    """What `work` makes of each chunk that `read` cuts a shard into, in order.

    With `on_ray`, Ray Data reads shards in parallel, and works on their chunks in parallel.
    """
    if not on_ray:
        return [work(chunk) for shard in shards for chunk in read(shard)]
    import ray
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    def chunks(shard: Any) -> Iterator[pa.Table]:
        try:
            for chunk in read(shard):
                yield pa.table({"chunk": pa.array([pickle.dumps(chunk)], type=pa.large_binary())})
        except UserError as error:  # as a value: Ray would print the trace of what a task raises
            yield pa.table({"chunk": pa.array([pickle.dumps(error)], type=pa.large_binary())})

    class Chunks(Datasource):  # type: ignore[misc]
        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
            meta = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
            return [ReadTask(lambda s=s: chunks(s), meta) for s in shards]

    def encoded(batch: pa.Table) -> pa.Table:
        chunks = [pickle.loads(c) for c in batch.column("chunk").to_pylist()]
        parts = [chunk if isinstance(chunk, UserError) else work(chunk) for chunk in chunks]
        return pa.table({"part": pa.array([pickle.dumps(p) for p in parts], type=pa.binary())})

    calm_ray_data()
    data = ray.data.read_datasource(Chunks(), override_num_blocks=len(shards), num_cpus=0.5)
    data = data.map_batches(encoded, batch_size=1, batch_format="pyarrow", num_cpus=1)
    parts = [pickle.loads(row["part"]) for row in data.iter_rows()]
    for part in parts:
        if isinstance(part, UserError):
            raise part
    return sorted(parts, key=lambda p: (p.order, p.number))


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
    for name, leaked in summary["leaked"].items():
        lines.append(
            f"{leaked} of the {summary['splits'][name]['rows']} rows of the {name} split have the very text of a row of the train split"
        )
    if summary["set_aside"]:
        reasons = ", ".join(f"{n} x {reason}" for reason, n in list(summary["reasons"].items())[:3])
        lines.append(
            f"{summary['set_aside']} bad rows were set aside ({reasons}); they are named in {prepared.folder / 'quarantine.jsonl'}"
        )
    if summary["cut"]:
        lines.append(f"{summary['cut']} texts were cut at model.max_length tokens")
    if summary.get("repeated"):
        lines.append(f"{summary['repeated']} rows repeat the text of another and are not used")
    if summary["in_no_split"]:
        lines.append(f"{summary['in_no_split']} rows belong to no split and are not used")
    return lines
