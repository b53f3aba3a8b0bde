"""One run of a sweep, as Ray Tune sees it: its stages in a thread, and what it has come to, step by step.

A run with one worker is walked by the trial's own process, which holds the worker's resources. One with several starts
Ray Train's workers, which hold theirs, and the trial itself none: a sweep starts only as many at once as have room.
"""

import ctypes
import os
import sys
import threading
import time
import traceback
from pathlib import Path
from typing import Any

import torch
from ray import tune

from raymeta.checkpoint import Locked
from raymeta.cluster import Profile
from raymeta.config import Run
from raymeta.errors import UserError, first_line
from raymeta.objective import Objective, Reading, cost
from raymeta.pipeline import run_to

_LOOK_S = 0.2
_END_S, _RESET_S = 10.0, 300.0
"""How long a stage's thread may take to end: when its process goes, and when another trial waits for it."""
_MEMORY = 64 * 2**20  # Ray Tune wants something to be asked for


class Walk(tune.Trainable):  # type: ignore[misc]
    """Runs the stages up to the objective's, from wherever the run's own checkpoints let it go on."""

    @classmethod
    def default_resource_request(cls, config: dict[str, Any]) -> tune.PlacementGroupFactory:
        """What the trial's process holds."""
        profile = Run.of(config["run"]).cluster
        return tune.PlacementGroupFactory([profile.bundle if by_itself(profile) else {"memory": _MEMORY}])

    def setup(self, config: dict[str, Any]) -> None:
        """config: {"run": settings, "objective": its text, "log": a file for what the run says, "until": a step of the
        objective's stage at which the trial pauses, or None, "told": the step up to which it has told}."""
        os.environ.update(Run.of(config["run"]).cluster.environment)
        self._begin(config)

    def reset_config(self, new_config: dict[str, Any]) -> bool:
        """Goes on with another trial, which saves it a process. Ray Tune would lose a trial that is answered with False."""
        self.cleanup(_RESET_S)
        if self._thread.is_alive():
            raise RuntimeError(f"the trial before is still at work {_RESET_S} s after it was stopped")
        self._begin(new_config)
        return True

    def _begin(self, config: dict[str, Any]) -> None:
        log = open(config["log"], "a", buffering=1, encoding="utf-8")  # noqa: SIM115  # until the next trial's
        sys.stdout = sys.stderr = log
        self._asked = Run.of(config["run"])
        self._run = hosted(self._asked)
        if self._run.cluster.in_process:
            torch.set_num_threads(max(1, int(self._run.cluster.cpus_per_worker)))
        self._objective = Objective.of(config["objective"], self._run)
        self._until = config["until"]
        self._told = config["told"]
        self._end: Reading | None = None
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._walk, daemon=True)
        self._thread.start()

    def step(self) -> dict[str, Any]:
        """The next row: the run at a later step; the last one has `done`, and `finished` or what went wrong."""
        while True:
            alive = self._thread.is_alive()
            try:
                news = [r for r in self._readings() if r.step > self._told]
            except UserError as error:
                return {"failed": str(error), "done": True}
            if not alive:
                return self._last(news)
            # the last row waits until the stage has ended: a scheduler that stops it there would lose the checkpoint
            if news and news[0].step < (self._until or self._objective.steps(self._run)):
                self._told = news[0].step
                return self._row(news[0])
            time.sleep(_LOOK_S)

    def cleanup(self, within_s: float = _END_S) -> None:
        """Ends the stage's thread, if it computes here: a process that goes while torch runs aborts."""
        if self._thread.is_alive() and self._run.cluster.in_process:
            thread = ctypes.c_ulong(self._thread.ident or 0)
            ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(KeyboardInterrupt))
            self._thread.join(within_s)

    def _readings(self) -> list[Reading]:
        return self._objective.readings(self._run) if self._objective.along_the_way else []

    def _last(self, news: list[Reading]) -> dict[str, Any]:
        if isinstance(self._error, UserError):
            return {"failed": str(self._error), "done": True}
        if self._error is not None:  # the same would come of it again; a process that is lost is another thing
            traceback.print_exception(self._error)
            return {"failed": f"{type(self._error).__name__}: {first_line(self._error)}", "done": True}
        reading = self._end or (news or self._readings())[-1]
        return {**self._row(reading), "finished": True, "done": True}

    def _row(self, reading: Reading) -> dict[str, Any]:
        spent = cost(self._asked, self._objective.stage)
        return {
            "step": reading.step, "value": reading.value, "ci95": reading.ci95, "now": reading.now, "worker_s": spent.worker_s, "tasks_per_s": spent.tasks_per_s,
        }  # fmt: skip

    def _walk(self) -> None:
        try:
            while True:
                try:
                    evaluation = run_to(self._run, self._objective.stage, self._until)
                    break
                except Locked:  # a trial that shares the stage is at it, or this one's process before it is going
                    time.sleep(1)
            self._end = self._objective.at_the_end(self._run, evaluation)
        except BaseException as error:
            self._error = error


def hosted(run: Run) -> Run:
    """The run as its trial's process runs it: by itself where there is one worker, else by workers of its own."""
    if by_itself(run.cluster) and not run.cluster.in_process:
        return run.changed({"cluster.in_process": True})
    return run


def by_itself(profile: Profile) -> bool:
    """Whether a trial's own process is the run's only worker, so that Ray Train need not start one."""
    return profile.in_process or profile.most == 1


def log_file(folder: Path, number: int) -> Path:
    """Where trial `number` of the sweep in `folder` writes what it says."""
    return folder / "logs" / f"trial-{number:03d}.txt"
