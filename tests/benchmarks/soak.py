"""A long run on two workers: memory, processes, the object store, and what Ray adds to a step of a second.

    python -m tests.benchmarks.soak [--minutes 30] [--workers 2]

A tiny model, whose tasks are made to take half a second each, is meta-trained until the time is over; the command is then stopped
by an interrupt. Memory is compared between the second and the last third of the time. The bare loop does one worker's share of the
same tasks without Ray.
"""

import argparse
import os
import re
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, median
from typing import Any

from raymeta.config import Run
from raymeta.stages.metatrain import metatrain
from raymeta.track import rows
from tests.benchmarks.memory import Sample, Sampled, family
from tests.conftest import save_tiny_bert
from tests.end_to_end.commands import ended, left_behind, start, written
from tests.end_to_end.conftest import small_run, workers
from tests.end_to_end.elastic import PACED
from tests.end_to_end.simulated import titles

_PACE_S = 0.5
_TASKS = 2
"""Tasks of a step for each worker, so that a step takes a second."""
_BARE_STEPS = 40


def run_of(folder: Path, name: str, steps: int, workers_: int, cluster: Any) -> dict[str, Any]:
    """The settings of a paced run."""
    settings = small_run(str(folder / "model"), str(folder / "results"))
    return settings | {
        "name": name,
        "algorithm": {**settings["algorithm"], "kind": PACED, "pace_s": _PACE_S},
        "outer": {"steps": steps, "tasks_per_step": _TASKS * workers_, "lr": 1e-4, "schedule": "constant"},
        "validation": {"every": 0},
        "save": {"every": 20},
        "cluster": cluster,
    }


def step_s(path: Path) -> list[float]:
    """Seconds of each step but the first ones, which wait for what starts up."""
    return [row["step_s"] for row in rows(path) if "step_s" in row][3:]


def limit_mib(root: int) -> float:
    """How much the object store of a command may hold."""
    there = titles()
    sizes = [re.search(r"--object_store_memory=(\d+)", there[pid][1]) for pid in family(root) if pid in there]
    return next(int(found[1]) / 2**20 for found in sizes if found)


def change(before: Sequence[float], after: Sequence[float]) -> float:
    """How much more, in percent, the mean is after than before."""
    return 100 * (mean(after) / mean(before) - 1)


def thirds(samples: list[Sample]) -> tuple[list[Sample], list[Sample]]:
    """The samples of the second and of the last third."""
    size = len(samples) // 3
    return samples[size : 2 * size], samples[2 * size :]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30)
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rm", dir="/tmp") as name:
        folder = Path(name)
        (folder / "model").mkdir()
        (folder / "ray").mkdir()
        save_tiny_bert(folder / "model")
        bare_run = run_of(folder, "bare", _BARE_STEPS, 1, "local-debug")
        bare = mean(step_s(metatrain(Run.of(bare_run)).folder / "metrics.jsonl"))
        values = run_of(folder, "soak", 10_000_000, asked.workers, workers(asked.workers))
        file = Run.of(values).folder / "metrics.jsonl"
        environment = {"RAY_TMPDIR": f"{name}/ray", "RAYMETA_TEST": folder.name}
        process = start("metatrain", written(values, folder / "run.yaml"), environment=environment)
        while process.poll() is None and len(rows(file)) < 10:
            time.sleep(1)
        with Sampled(process.pid, every_s=5) as sampled:
            stop = time.monotonic() + 60 * asked.minutes
            while process.poll() is None and time.monotonic() < stop:
                time.sleep(1)
        limit = limit_mib(process.pid)
        os.kill(process.pid, signal.SIGINT)
        status, said = ended(process)
        left = left_behind(folder.name)
        taken = step_s(file)
    second, last = thirds(sampled.samples)
    memory = change([s.held for s in second], [s.held for s in last])
    store = max(s.shared for s in sampled.samples)
    over = 100 * (mean(taken) / bare - 1)
    print(
        f"{len(taken)} steps in {sampled.samples[-1].at_s / 60:.0f} minutes on {asked.workers} workers; exit status {status}"
    )
    print(
        f"memory: {mean(s.held for s in second):.0f} MiB in the second third, {mean(s.held for s in last):.0f} in the last: {memory:+.1f} %"
    )
    programs = {p for s in sampled.samples for p in s.programs}
    grown = {p: mean(s.programs.get(p, 0) for s in last) - mean(s.programs.get(p, 0) for s in second) for p in programs}
    most = sorted(grown, key=lambda p: -grown[p])[:4]
    print("  most of it in " + ", ".join(f"{p} ({grown[p]:+.0f} MiB)" for p in most))
    print(
        f"processes: {max(s.processes for s in second)} in the second third, {max(s.processes for s in last)} in the last; left behind: {len(left)}"
    )
    print(f"object store: at most {store:.0f} of {limit:.0f} MiB")
    print(
        f"a step: {mean(taken):.3f} s (median {median(taken):.3f}), in a bare loop {bare:.3f} s: {over:+.1f} % "
        f"({100 * (median(taken) / bare - 1):+.1f} %)"
    )
    if status != 128 + signal.SIGINT:
        print(said)
    sys.exit(status != 128 + signal.SIGINT or bool(left) or memory > 2 or store > limit)


if __name__ == "__main__":
    main()
