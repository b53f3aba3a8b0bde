"""What a large corpus costs: rates of preparing and streaming, memory in all, and the time to the first step.

    python -m tests.benchmarks.scale [RUN] [key=value ...] [--rows 10000 5000000] [--tasks 200000] [--episodes 4000] [--here]

Each corpus is generated (Parquet, short rows), and prepared and streamed on a Ray of its own (with --here, in one process without
Ray), in processes of their own; memory is that of all of them and of the object store together. Of mapped files, the kernel takes
pages back when it needs them.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from raymeta.cluster import Profile, connect
from raymeta.config import Run
from raymeta.prepare import prepare
from raymeta.stream import Source
from tests.benchmarks.memory import Sampled
from tests.benchmarks.stream import rate_here, rate_on_ray

_LIMIT_MIB = 4096
_ROWS_A_GROUP = 50_000
_TEXT = (
    "play some jazz please book a table for two tonight where is the next train to town how much did it cost me last week turn off "
    "all lights set an alarm weather friday morning send money home what time do they open my order has not come yet thanks"
)
_WORDS = sorted(set(_TEXT.split()))


def written(path: Path, rows: int, tasks: int, classes: int) -> None:
    """Writes a corpus of `rows` rows of eight words: `classes` classes, or, in each of `tasks` tasks, two of its own."""
    rng = np.random.default_rng(0)
    words = pa.array(_WORDS)
    schema = pa.schema([("text", pa.string()), ("label", pa.string()), ("task", pa.string())])
    with pq.ParquetWriter(path, schema) as out:
        for first in range(0, rows, _ROWS_A_GROUP):
            number = np.arange(first, min(first + _ROWS_A_GROUP, rows))
            drawn = [words.take(pa.array(rng.integers(len(words), size=len(number)))) for _ in range(8)]
            text = pc.binary_join_element_wise(*drawn, " ")
            task = number % tasks
            label = task * 2 + number // tasks % 2 if tasks > 1 else number % classes
            names = [
                pc.binary_join_element_wise(kind, pa.array(of).cast(pa.string()), "")
                for kind, of in (("c", label), ("t", task))
            ]
            out.write_table(pa.table([text, *names], schema=schema))


def run_of(base: Run, path: Path, tasks: int) -> Run:
    """A run on the corpus at `path`, with the model of `base`."""
    one_task = (
        {"classes_from": "task", "ways": 2, "split": {"of": "task", "test": 100}}
        if tasks > 1
        else {"ways": 5, "split": {"test": 20}}
    )
    return Run.of(
        {
            "name": "scale",
            "model": {"name": base.model.name},
            "corpus": {"kind": "files", "path": str(path), "columns": {"task": "task"}},
            "tasks": {"kind": "classification", "shots": 2, "queries": 2, **one_task},
            "storage": str(path.parent),
        }
    )  # fmt: skip


def measured(base: Run, path: Path, tasks: int, episodes: int, part: str, here: bool) -> dict[str, float]:
    """One part, in this process: seconds to prepare the corpus, or those to its first step and the rate after it."""
    run = run_of(base, path, tasks)
    if not here:
        connect(Profile(workers=1))
    began = time.perf_counter()
    made = prepare(run.corpus, run.tasks, run.model, run.seed, path.parent / "prepared", not here, say=lambda _: None)
    prepared_s = time.perf_counter() - began
    if part == "prepare":
        return {"prepared_s": prepared_s}
    source = Source(str(made.folder), run.tasks, "train", run.seed)
    source.check()
    looked_s = time.perf_counter() - began
    if here:
        first = time.perf_counter()
        source.episode(0)
        first_s = time.perf_counter() - first
        rate = rate_here(source, episodes)
    else:
        rate, first_s = rate_on_ray(source, episodes, 4)
    return {"first_step_s": looked_s + first_s, "episodes_per_s": rate}


def in_its_own(words: list[str]) -> tuple[dict[str, float], Sampled]:
    """What a process that measures one part says, and the memory that it and its Ray took."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.benchmarks.scale", *words], stdout=subprocess.PIPE, text=True
    )
    with Sampled(process.pid) as sampled:
        said, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"{' '.join(words)} failed: {said}")
    found: dict[str, float] = json.loads(said.splitlines()[-1])
    return found, sampled


def told(name: str, rows: int, prepared: tuple[Any, Sampled], streamed: tuple[Any, Sampled]) -> str:
    """The lines of one corpus."""
    seconds, rate = prepared[0]["prepared_s"], streamed[0]
    lines = [f"{name}: prepared in {seconds:.0f} s, {rows / seconds:.0f} rows/s; "
             f"first step after {rate['first_step_s']:.1f} s, then {rate['episodes_per_s']:.0f} episodes/s"]  # fmt: skip
    for part, (_, sampled) in (("preparing", prepared), ("streaming", streamed)):
        peak = sampled.peak
        verdict = "within" if peak.held <= _LIMIT_MIB else "MORE THAN"
        lines.append(
            f"  {part}: at most {peak.held:.0f} MiB in {peak.processes} processes ({peak.own:.0f} their own, {peak.shared:.0f} in the "
            f"object store), {verdict} {_LIMIT_MIB} MiB; {max(s.files for s in sampled.samples):.0f} MiB of mapped files"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", nargs="*", default=["quickstart"])
    parser.add_argument("--rows", type=int, nargs="*", default=[10_000, 5_000_000])
    parser.add_argument("--tasks", type=int, nargs="*", default=[200_000], help="of ten rows each")
    parser.add_argument("--episodes", type=int, default=4000)
    parser.add_argument("--here", action="store_true", help="without Ray")
    parser.add_argument("--part", nargs=3, metavar=("PATH", "TASKS", "PART"), help=argparse.SUPPRESS)
    asked = parser.parse_args()
    run = Run.load(*asked.run)
    if asked.part:
        path, tasks, part = asked.part
        print(json.dumps(measured(run, Path(path), int(tasks), asked.episodes, part, asked.here)))
        return
    here = ["--here"] if asked.here else []
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    corpora = [(f"{rows} rows", rows, 1) for rows in asked.rows] + [(f"{n} tasks", 10 * n, n) for n in asked.tasks]
    for name, rows, tasks in corpora:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "rows.parquet"
            written(path, rows, tasks, classes=100)
            both = [
                in_its_own(
                    [*asked.run, *here, "--episodes", str(asked.episodes), "--part", str(path), str(tasks), part]
                )
                for part in ("prepare", "stream")
            ]
            print(told(name, rows, *both), flush=True)


if __name__ == "__main__":
    main()
