"""The stream of episodes: numbers through Ray Data into each worker's batches.

Step t of a run is made of the episodes t*T ... t*T + T - 1, whoever draws them; worker r of W takes every W-th. So a run
that resumes needs to know its step and nothing else, and one, two or eight workers walk the same path.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from raymeta.episodes import Drawn, Episode, Pool, generator
from raymeta.errors import HERE, Place
from raymeta.prepare import calm_ray_data
from raymeta.store import Prepared
from raymeta.tasks import Choices, Tasks

_BLOCK_EPISODES = 32
_TASK_BLOCKS, _TASKS = 32, 1000
"""Blocks of a read task at least, and about how many such tasks there are at most: Ray Data looks through them all."""
_AHEAD_BYTES = 64 * 2**20
"""Episodes that a worker has drawn ahead, in the object store. Left to itself, Ray Data fills a gigabyte before a run's first
steps, while they wait for the CPU."""
_NAP_S, _NAPS = 0.005, 40
"""How long Ray Data's loop rests at least, and how often on end while episodes lie ready."""


@dataclass(frozen=True)
class Source:
    """Where episodes come from: a prepared corpus, a task kind, a split and a seed. Small, and the same anywhere.

    part: which of the run's corpora it is; place: how messages name that one.
    """

    folder: str
    tasks: Tasks
    split: str
    seed: int
    part: int = 0
    place: Place = HERE

    def drawn(self, number: int) -> Drawn:
        """Which examples make episode `number`."""
        _, pool, choices = _opened(self)
        with self.place.told():
            return self.tasks.draw(pool, self.seed, number, choices)

    def episode(self, number: int) -> Episode:
        """Episode `number`, a pure function of the source and the number."""
        prepared, _, _ = _opened(self)
        drawn = self.drawn(number)
        support, query = (
            self.tasks.examples(prepared.take(rows), rows, drawn.classes) for rows in (drawn.support, drawn.query)
        )
        return Episode(number, self.split, drawn.classes, support, query, self.part)

    def check(self) -> Choices:
        """The classes that can take part; raises UserError, before a worker starts, where they are too few."""
        with self.place.told():
            choices = _opened(self)[2]
        for number in range(3):
            self.drawn(number)
        return choices


@dataclass(frozen=True)
class Mixture:
    """Several sources of one split and seed: each number belongs to one of them, drawn by their weights."""

    sources: tuple[Source, ...]
    weights: tuple[float, ...]

    def source(self, number: int) -> Source:
        """Whose episode `number` is: a pure function of the seed, the split and the number."""
        first = self.sources[0]
        ends = list(accumulate(self.weights))
        drawn = generator(first.seed, f"part of {first.split}", number).random()
        return self.sources[int(np.searchsorted(ends, drawn * ends[-1], side="right"))]

    def episode(self, number: int) -> Episode:
        """Episode `number`: the one of this number of the source that it belongs to."""
        return self.source(number).episode(number)


@lru_cache(maxsize=16)
def _opened(source: Source) -> tuple[Prepared, Pool, Choices]:
    prepared = Prepared(Path(source.folder))
    pool = prepared.pool(source.split)
    return prepared, pool, source.tasks.choices(pool)


def share(first: int, count: int, rank: int, workers: int) -> range:
    """The numbers among first ... first + count - 1 that worker `rank` takes."""
    return range(first + rank, first + count, workers)


def steps(
    source: Source | Mixture,
    start: int,
    stop: int,
    tasks_per_step: int,
    rank: int = 0,
    workers: int = 1,
    on_ray: bool = False,
) -> Iterator[list[Episode]]:
    """For each step from `start` up to `stop` (counted from 0), this worker's episodes.

    With `on_ray`, Ray Data draws them ahead in another process, while this one computes.
    """
    if stop <= start:
        return
    if not on_ray:
        for step in range(start, stop):
            yield [source.episode(n) for n in share(step * tasks_per_step, tasks_per_step, rank, workers)]
        return
    for batch in numbered(partial(rows, source), start, stop, tasks_per_step, rank, workers):
        yield [Episode.from_row(row) for row in batch.to_pylist()]


def rows(source: Source | Mixture, numbers: list[int]) -> pa.Table:
    """Episodes as a table, a row each; all tables of a source have the same columns."""
    found = [source.episode(n).to_row() for n in numbers]
    return pa.table({name: pa.array([row.get(name) for row in found], type=kind) for name, kind in _columns(source)})


@lru_cache(maxsize=16)
def _columns(source: Source | Mixture) -> tuple[tuple[str, pa.DataType], ...]:
    """Name and type of what the rows of a source hold; a row of another source of a mixture lacks some."""
    columns: dict[str, pa.DataType] = {}
    for each in source.sources if isinstance(source, Mixture) else (source,):
        row = each.episode(0).to_row()
        columns |= {name: pa.array([value]).type for name, value in row.items()}
    return tuple({**columns, "classes": pa.list_(pa.string())}.items())


def numbered(
    table: Callable[[list[int]], pa.Table],
    start: int,
    stop: int,
    per_step: int,
    rank: int,
    workers: int,
    row_bytes: int = 16_000,
) -> Iterator[pa.Table]:
    """For each step from `start` up to `stop`, the rows that `table` makes of this worker's share of its numbers.

    They come through a Ray dataset, whose blocks another process makes when they are due. row_bytes: about how large a row is.
    """
    import ray
    from ray.data.block import BlockMetadata
    from ray.data.datasource import Datasource, ReadTask

    each = len(share(0, per_step, rank, workers))
    block = max(1, _BLOCK_EPISODES // each)  # steps a block
    task = block * max(_TASK_BLOCKS, (stop - start) // (block * _TASKS))  # steps a read task

    def blocks(first: int, last: int) -> Iterator[pa.Table]:
        for at in range(first, last, block):
            due = range(at, min(at + block, last))
            yield table([n for step in due for n in share(step * per_step, per_step, rank, workers)])

    class Numbered(Datasource):  # type: ignore[misc]
        def estimate_inmemory_data_size(self) -> int | None:
            return None

        def get_read_tasks(self, parallelism: int, *_: Any, **__: Any) -> list[Any]:
            tasks = []
            for at in range(start, stop, task):
                last = min(at + task, stop)
                meta = BlockMetadata(
                    num_rows=(last - at) * each,
                    size_bytes=(last - at) * each * row_bytes,
                    input_files=None,
                    exec_stats=None,
                )
                tasks.append(ReadTask(lambda a=at, b=last: blocks(a, b), meta))
            return tasks

    source_of_blocks = Numbered()
    calm_ray_data()
    data = ray.data.read_datasource(
        source_of_blocks, num_cpus=0, concurrency=1, override_num_blocks=len(source_of_blocks.get_read_tasks(1))
    )
    options = data.context.execution_options  # this dataset's own
    options.resource_limits = options.resource_limits.copy(object_store_memory=_AHEAD_BYTES)
    data.context.custom_execution_callback_classes.append(_unhurried())
    yield from data.iter_batches(batch_size=each, batch_format="pyarrow", prefetch_batches=4, drop_last=False)


@lru_cache(maxsize=1)
def _unhurried() -> type:
    """What makes Ray Data's loop wait for who takes the episodes.

    The loop runs in a thread of the worker. As long as it has drawn all that it may, it waits for nothing, and would take a core
    and the interpreter's lock from the training that it waits for.
    """
    from ray.data._internal.execution.execution_callback import ExecutionCallback

    class Unhurried(ExecutionCallback):  # type: ignore[misc]
        def on_execution_step(self, executor: Any) -> None:
            _, output = executor._output_node
            for _ in range(_NAPS):
                time.sleep(_NAP_S)
                if executor._shutdown or not len(output.output_queue):
                    return

    return Unhurried
