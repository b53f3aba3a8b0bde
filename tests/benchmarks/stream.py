"""How fast episodes are drawn, in this process and through Ray Data, and what memory that takes as the corpus grows.

    python -m tests.benchmarks.stream [RUN] [key=value ...] [--episodes 2000] [--rows 10000 300000]
    python -m tests.benchmarks.stream --metrics results/NAME/metrics.jsonl

The second form tells which share of its time a finished run spent waiting for episodes.
"""

import argparse
import json
import multiprocessing
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from raymeta.cluster import Profile, connect
from raymeta.config import Run
from raymeta.prepare import prepare
from raymeta.stream import Source, steps
from raymeta.track import rows

_WORDS = ["alpha", "bravo", "charlie", "delta", "echo", "foxtrot", "golf", "hotel", "india", "juliet", "kilo", "lima"]


def prepared(run: Run, root: Path) -> Source:
    """Where the train episodes of a run come from."""
    made = prepare(run.corpus, run.tasks, run.model, run.seed, root, on_ray=False, say=lambda _: None)
    return Source(str(made.folder), run.tasks, "train", run.seed)


def rate_here(source: Source, episodes: int) -> float:
    """Episodes a second of one core (process time, so that what else runs here does not count)."""
    source.episode(0)
    began = time.process_time()
    for number in range(episodes):
        source.episode(number)
    return episodes / (time.process_time() - began)


def rate_on_ray(source: Source, episodes: int, tasks_per_step: int) -> tuple[float, float]:
    """Episodes a second through Ray Data (one core draws, this one takes), and seconds until the first.

    The rate is that of the second half, so that what was drawn ahead while the stream began does not count.
    """
    began = time.perf_counter()
    half = episodes // tasks_per_step // 2
    stream = steps(source, 0, 2 * half, tasks_per_step, on_ray=True)
    next(stream)
    first_s = time.perf_counter() - began
    for _ in range(half - 1):
        next(stream)
    middle = time.perf_counter()
    taken = sum(len(found) for found in stream)
    return taken / (time.perf_counter() - middle), first_s


def sentences(count: int, rng: np.random.Generator) -> Iterator[str]:
    """Rows of a corpus of 100 classes, as JSON lines."""
    for number in range(count):
        words = rng.choice(_WORDS, size=8)
        yield json.dumps({"text": " ".join(words), "label": f"class {number % 100}"}) + "\n"


def grown(run: Run, count: int, folder: Path) -> Source:
    """A generated corpus of `count` short rows, prepared with the run's tokenizer."""
    path = folder / f"{count}.jsonl"
    path.write_text("".join(sentences(count, np.random.default_rng(0))), encoding="utf-8")
    return prepared(
        Run.of(
            {
                "name": "grown",
                "model": {"name": run.model.name},
                "corpus": {"kind": "files", "path": str(path)},
                "tasks": {"kind": "classification", "ways": 5, "shots": 5, "queries": 5, "split": {"train": 80, "test": 20}},
            }
        ),
        folder,
    )  # fmt: skip


def memory(source: Source, episodes: int) -> tuple[float, float, float]:
    """MiB that drawing adds to a process of its own: its own memory, pages of the mapped corpus; and episodes a second."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_drawn, (source, episodes))


def _drawn(source: Source, episodes: int) -> tuple[float, float, float]:
    before = _resident()
    rate = rate_here(source, episodes)
    own, mapped = (after - b for after, b in zip(_resident(), before, strict=True))
    return own, mapped, rate


def _resident() -> tuple[float, float]:
    found = dict(line.split(":") for line in Path("/proc/self/status").read_text().splitlines())
    return tuple(int(found[name].split()[0]) / 1024 for name in ("RssAnon", "RssFile"))  # type: ignore[return-value]


def waiting(path: Path) -> str:
    """The share of its time that a run spent waiting for episodes; its first step, which waits for the start, aside."""
    found = [row for row in rows(path) if "wait_s" in row][1:]
    if not found:
        return f"{path}: no steps after the first"
    waited, took = (sum(row[name] for row in found) for name in ("wait_s", "step_s"))
    return f"{path}: {len(found)} steps, {took:.0f} s, of which {waited:.2f} s waiting for episodes: {100 * waited / took:.2f} %"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="*", default=["quickstart"])
    parser.add_argument("--episodes", type=int, default=2000)
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 300_000])
    parser.add_argument("--metrics", type=Path, nargs="+")
    asked = parser.parse_args()
    if asked.metrics:
        for path in asked.metrics:
            print(waiting(path))
        return
    run = Run.load(*asked.run)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        source = prepared(run, folder)
        print(f"{run.name}: {rate_here(source, asked.episodes):.0f} episodes/s a core, drawn in this process")
        for count in asked.rows:
            own, mapped, rate = memory(grown(run, count, folder), asked.episodes)
            print(
                f"corpus of {count} rows: {rate:.0f} episodes/s a core, {own:.0f} MiB of the process's own, {mapped:.0f} MiB of mapped files"
            )
        connect(Profile())
        rate, first_s = rate_on_ray(source, 10 * asked.episodes, run.outer.tasks_per_step)
        print(f"{run.name}: {rate:.0f} episodes/s through Ray Data, the first after {first_s:.1f} s")


if __name__ == "__main__":
    main()
