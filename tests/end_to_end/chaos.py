"""Kills a process of a run at a random moment, time and again: every run must end as the undisturbed one does.

    python -m tests.end_to_end.chaos [--runs 20] [--seed 0] [--victims worker controller data raylet driver cluster] [--workers 2]

Simulated nodes of one CPU, one more of them than workers. In each run one process is ended with SIGKILL: a training worker, Ray Train's
controller, the worker of Ray Data that draws episodes, the raylet of a node, the driver, or the whole cluster. The run goes
on by itself; where its command ended, the same command is given again. Prints a table, and ends with status 1 unless each
run has, bit for bit, the undisturbed run's parameters, and its metrics without a gap or a repeat.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from raymeta.config import Run
from raymeta.parts import prepared
from raymeta.stages.metatrain import Result, finished, metatrain
from raymeta.track import rows
from tests.conftest import save_tiny_bert
from tests.end_to_end.commands import start, written
from tests.end_to_end.conftest import small_run, workers
from tests.end_to_end.outcome import metrics, same_bytes
from tests.end_to_end.simulated import ROLES, Nodes, words

VICTIMS = (*ROLES, "raylet", "driver", "cluster")
_TRIES = 3
_PATIENCE_S = 1500


@dataclass(frozen=True)
class Outcome:
    """What became of a run. by_itself: the command that was disturbed ended well; tries: commands that it took."""

    seed: int
    victim: str
    at: str
    tries: int
    seconds: float
    same_parameters: bool
    same_metrics: bool
    said: str

    @property
    def well(self) -> bool:
        """Whether nothing was lost."""
        return self.same_parameters and self.same_metrics

    def row(self) -> str:
        """A line of the table."""
        ended = "by itself" if self.tries == 1 else f"command {self.tries}"
        verdicts = [("identical" if good else "DIFFER") for good in (self.same_parameters, self.same_metrics)]
        return (
            f"{self.seed:>6}  {self.victim:<10}  {self.at:<14}  {ended:<10}  {self.seconds:>5.0f}  {verdicts[0]:<10}  {verdicts[1]:<9}"
            + (f"  {self.said}" if not self.well else "")
        )


HEADER = f"{'seed':>6}  {'killed':<10}  {'at':<14}  {'went on':<10}  {'s':>5}  {'parameters':<10}  metrics"


class Chaos:
    """Runs on a simulated cluster that are disturbed, and what they are to end as."""

    def __init__(
        self, folder: Path, cluster: Nodes, settings: dict[str, Any], undisturbed: Result | None = None
    ) -> None:
        """folder: for the files of commands; undisturbed: what the settings come to, absent: found out now."""
        self.folder, self.cluster, self.settings = folder, cluster, settings
        self._commands = ThreadPoolExecutor()
        self._started: list[subprocess.Popen[str]] = []
        run = Run.of(settings)
        prepared(run.parts, run.backbone, run.seed, run.root / "prepared", on_ray=False, say=lambda _: None)
        self.took_s = 60.0
        if undisturbed is None:
            began = time.monotonic()
            first = self._run("undisturbed")
            if settings["cluster"]["workers"] == 1:  # the same bits as without Ray
                undisturbed = metatrain(Run.of({**first, "cluster": "local-debug"}))
            else:
                status, said = self._command(first)[1].result(_PATIENCE_S)
                if status:
                    raise RuntimeError(f"the undisturbed run failed: {said}")
                undisturbed = finished(Run.of(first))
                self.took_s = time.monotonic() - began
        assert undisturbed is not None
        self.undisturbed = undisturbed
        self.steps = undisturbed.last.step

    def _run(self, name: str) -> dict[str, Any]:
        return {**self.settings, "name": name}

    def _command(self, run: dict[str, Any]) -> "tuple[subprocess.Popen[str], Future[tuple[int, str]]]":
        """Starts a run; the future gives its exit status and what it said."""
        process = start(
            "metatrain", written(run, self.folder / f"{run['name']}.yaml"), environment=self.cluster.environment
        )
        self._started.append(process)

        def done() -> tuple[int, str]:
            said, _ = process.communicate(timeout=_PATIENCE_S)
            return process.returncode, said

        return process, self._commands.submit(done)

    def disturbed(self, seed: int, victim: str) -> Outcome:
        """A run whose `victim` is killed at a moment drawn by the seed."""
        drawn = random.Random(f"{seed} {victim}")
        run = self._run(f"disturbed-{seed}-{victim}")
        file = Run.of(run).folder / "metrics.jsonl"
        # a quarter of the moments are before the first step, the rest in or between two steps
        early = drawn.random() < 0.25
        step, part, pick = drawn.randrange(1, self.steps), drawn.random(), drawn.random()
        began = time.monotonic()
        process, future = self._command(run)
        if early:
            at = f"{part * self.took_s / 2:.1f} s"
            self._until(lambda: time.monotonic() - began > part * self.took_s / 2, future)
        else:
            at = f"step {step} + {part:.2f}"
            self._until(lambda: any(row["step"] >= step for row in rows(file)), future)
            done = rows(file)
            time.sleep(part * float(done[-1].get("step_s", 0)) if done else 0)
        self._until(lambda: bool(self._targets(victim, process)), future)
        found = self._targets(victim, process)
        if not found:
            at += " (none)"
        else:
            for pid in found if victim == "cluster" else [found[int(pick * len(found))]]:
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
        status, said = future.result(_PATIENCE_S)
        tries = 1
        while status and tries < _TRIES:
            self._mended(victim)
            status, said = self._command(run)[1].result(_PATIENCE_S)
            tries += 1
        seconds = time.monotonic() - began
        self._mended(victim)
        result = finished(Run.of(run))
        same = result is not None and same_bytes(self.undisturbed, result)
        alike = metrics(Run.of(run).folder) == metrics(self.undisturbed.folder)
        if not (same and alike):
            print(said)
        return Outcome(seed, victim, at, tries, seconds, same, alike, words(said))

    @staticmethod
    def _until(holds: Any, future: "Future[tuple[int, str]]") -> None:
        while not holds() and not future.done():
            time.sleep(0.02)

    def _targets(self, victim: str, process: "subprocess.Popen[str]") -> list[int]:
        if victim == "driver":
            return [process.pid]
        if victim == "raylet":
            return self.cluster.busy_raylets()
        if victim == "cluster":
            return self.cluster.daemons()
        return self.cluster.running(victim)

    def _mended(self, victim: str) -> None:
        if victim == "cluster":
            self.cluster.renew()
        elif victim == "raylet":
            self.cluster.mend()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._started:
            if process.poll() is None:
                process.kill()
        self._commands.shutdown()

    def leaked(self, within_s: float = 60) -> list[str]:
        """What of the runs is still there when it has had time to end."""
        stop = time.monotonic() + within_s
        while (found := [f"{role} {pid}" for role in ROLES for pid in self.cluster.running(role)]) and (
            time.monotonic() < stop
        ):
            time.sleep(0.5)
        return found


def settings(folder: Path, count: int) -> dict[str, Any]:
    """`count` workers, 60 steps, a checkpoint every 3 and a validation every 20 steps, and failures enough."""
    (folder / "model").mkdir()
    return small_run(save_tiny_bert(folder / "model"), str(folder / "results")) | {
        "outer": {"steps": 60, "tasks_per_step": 4, "lr": 1e-3},
        "save": {"every": 3},
        "validation": {"every": 20, "episodes": 4},
        "cluster": workers(count),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0, help="of the first run; the others have those that follow")
    parser.add_argument("--victims", nargs="+", choices=VICTIMS, default=list(VICTIMS))
    parser.add_argument("--workers", type=int, default=2)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="rm", dir="/tmp") as name:
        os.environ["RAY_TMPDIR"] = f"{name}/ray"
        Path(name, "ray").mkdir()
        run = settings(Path(name), asked.workers)
        with Nodes(asked.workers + 1) as cluster, Chaos(Path(name), cluster, run) as chaos:
            print(f"undisturbed: {chaos.steps} steps, {chaos.took_s:.0f} s\n{HEADER}", flush=True)
            outcomes = []
            for number in range(asked.runs):
                outcomes.append(chaos.disturbed(asked.seed + number, asked.victims[number % len(asked.victims)]))
                print(outcomes[-1].row(), flush=True)
            leaked = chaos.leaked()
    well = sum(outcome.well for outcome in outcomes)
    print(f"{well} of {len(outcomes)} runs lost nothing; left behind: {', '.join(leaked) or 'no process'}")
    sys.exit(well < len(outcomes) or bool(leaked))


if __name__ == "__main__":
    main()
