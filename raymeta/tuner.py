"""A sweep's trials under Ray Tune: what is tried next, what each comes to, when to stop."""

import logging
import os
import time
from collections.abc import Sequence
from typing import Any

from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher as TuneSearcher

from raymeta.config import Run
from raymeta.errors import UserError
from raymeta.searchers import Searcher
from raymeta.space import shown
from raymeta.sweep import Sweep
from raymeta.sweep_record import ENDED, Record, Trial, table
from raymeta.trial import Walk, by_itself, log_file

_REDUCTION = 3
_HOPELESS = 3
_TABLE_S = 30.0

Todo = tuple[int, int, str]
"""A trial's number, its point's, and its cluster."""


def searched(
    sweep: Sweep, searcher: Searcher, todo: Sequence[Todo], record: Record, at_once: int, stop_at: float | None
) -> None:
    """Runs the trials `todo`, `at_once` at a time, until they have ended or it is time; what comes of them is recorded."""
    before = [t for t in record.trials().values() if t.state in ENDED]
    watch = Watch(sweep, record, stop_at)
    walked(sweep, Queue(sweep, searcher, todo, record), len(todo), watch, at_once, _scheduler(sweep, before))


def walked(
    sweep: Sweep,
    queue: TuneSearcher,
    count: int,
    watch: "Watch",
    at_once: int,
    scheduler: TrialScheduler | None = None,
) -> None:
    """Runs the `count` trials that `queue` gives, under `watch`; raises UserError where nothing comes of the first."""
    os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
    os.environ.setdefault("TUNE_DISABLE_STRICT_METRIC_CHECKING", "1")
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # the command line has its own
    os.environ.setdefault("TUNE_FORCE_TRIAL_CLEANUP_S", "10")
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # the new one says much, however quiet it is asked to be
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)
    tuner = tune.Tuner(
        Walk,
        tune_config=tune.TuneConfig(
            search_alg=queue,
            scheduler=scheduler or FIFOScheduler(),
            num_samples=count,
            max_concurrent_trials=at_once,
            reuse_actors=_reusable(sweep),
            trial_name_creator=_name,
            trial_dirname_creator=_name,
        ),
        run_config=tune.RunConfig(
            name=time.strftime("%Y%m%d-%H%M%S"),
            storage_path=str(sweep.folder / "ray"),
            callbacks=[watch],
            stop=Stop(watch),
            failure_config=tune.FailureConfig(max_failures=sweep.run.cluster.max_failures),
            checkpoint_config=tune.CheckpointConfig(checkpoint_at_end=False),  # a run has its own
            verbose=0,
        ),
    )
    tuner.fit()
    if watch.hopeless:
        raise UserError(
            f"the first {_HOPELESS} runs failed, and none came to anything; the last said: {watch.hopeless}"
        )


def _reusable(sweep: Sweep) -> bool:
    """Whether a trial's process can go on with the next trial: all have one environment, and compute in their own process."""
    profiles = list(sweep.profiles(sweep.space.of(sweep.run, sweep.space_name)))
    return all(by_itself(p) and p.environment == profiles[0].environment for p in profiles)


def _name(trial: Any) -> str:
    return f"trial-{trial.config['trial']:03d}"


def _scheduler(sweep: Sweep, before: Sequence[Trial]) -> TrialScheduler:
    """The scheduler, which has seen the trials `before`."""
    if sweep.scheduler == "none":
        return FIFOScheduler()
    steps = sweep.judge.steps(sweep.run)
    grace = min(steps, sweep.grace_steps or sweep.judge.first_step(sweep.run))
    asha = ASHAScheduler(
        time_attr="step", metric="value", mode="min" if sweep.minimize else "max",
        max_t=steps + 1, grace_period=grace, reduction_factor=_REDUCTION,
    )  # fmt: skip
    for trial in before:
        seen = _Seen(f"before-{trial.number}")
        asha.on_trial_add(None, seen)
        for step, value in trial.path:
            asha.on_trial_result(None, seen, {"step": step, "value": value})
    return asha


class _Seen:
    """Stands for a trial of an earlier process; its id is all that ASHA asks of one."""

    def __init__(self, trial_id: str) -> None:
        self.trial_id = trial_id


class Queue(TuneSearcher):  # type: ignore[misc]
    """Hands Ray Tune the trials in order, each with the searcher's point."""

    def __init__(self, sweep: Sweep, searcher: Searcher, todo: Sequence[Todo], record: Record) -> None:
        super().__init__(metric="value", mode="min" if sweep.minimize else "max")
        self._sweep, self._searcher, self._todo, self._record = sweep, searcher, list(todo), record
        self._points: dict[str, int] = {}

    def suggest(self, trial_id: str) -> Any:
        while self._todo:
            number, at, cluster = self._todo.pop(0)
            point = self._searcher.point(at)
            if point is None:
                print(f"the space has {len(self._searcher.points)} points, and all are tried")
                self._todo.clear()
                break
            start = {"trial": number, "point": at, "settings": point, "cluster": cluster or "as the run says"}
            try:
                run = self._sweep.run_of(point, cluster)
            except UserError as error:  # settings that do not go together, each of them good by itself
                self._record.add("starts", **start, folder="")
                self._record.add("failed", trial=number, message=str(error))
                self._searcher.tell(at, None)
                continue
            self._record.add("starts", **start, folder=str(run.folder))
            self._points[trial_id] = at
            words = ", ".join(f"{path.rpartition('.')[2]} {shown(value)}" for path, value in point.items())
            print(f"trial {number} starts: {words}{f' on {cluster}' if cluster else ''}")
            return asked(self._sweep, number, run)
        return TuneSearcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        value = (result or {}).get("value")
        self._searcher.tell(self._points[trial_id], None if error else value)

    def save(self, checkpoint_path: str) -> None:
        """Nothing: trials.jsonl says where a sweep was."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""


def asked(sweep: Sweep, number: int, run: Run, until: int | None = None, told: int = 0) -> dict[str, Any]:
    """What `Walk` is asked: a trial's run, up to the step `until`, of which it has told up to the step `told`."""
    return {
        "trial": number, "run": run.model_dump(mode="json"), "objective": str(sweep.judge), "log": str(log_file(sweep.folder, number)),
        "until": until, "told": told,
    }  # fmt: skip


class Watch(tune.Callback):  # type: ignore[misc]
    """Records and prints what becomes of the trials; those that come to the step `until` pause there."""

    def __init__(self, sweep: Sweep, record: Record, stop_at: float | None, until: int | None = None) -> None:
        self._sweep, self._record, self._stop_at, self._until = sweep, record, stop_at, until
        self._printed = time.monotonic()
        self._failed, self._any_value = 0, False
        self.hopeless = ""

    @property
    def late(self) -> bool:
        """Whether the sweep's time is over."""
        return self._stop_at is not None and time.monotonic() >= self._stop_at

    def on_trial_result(
        self, iteration: int, trials: list[Any], trial: Any, result: dict[str, Any], **info: Any
    ) -> None:
        if "value" not in result:
            return
        self._any_value = True
        row = {name: result.get(name) for name in ("step", "value", "ci95", "now", "worker_s", "tasks_per_s")}
        self._record.add("row", trial=trial.config["trial"], **row)
        if not result.get("finished"):
            print(f"trial {trial.config['trial']} step {row['step']}: {self._value(row)}")

    def on_trial_complete(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        number, last = trial.config["trial"], trial.last_result or {}
        if "failed" in last:
            self._fail(number, last["failed"])
        elif last.get("finished") and self._until is not None:
            self._record.add("paused", trial=number)
            print(f"trial {number} waits at step {last['step']}: {self._value(last)}")
        elif last.get("finished"):
            self._record.add("finished", trial=number)
            print(f"trial {number} finished: {self._value(last)}")
        elif self.late or self.hopeless:
            print(f"trial {number} is left at step {last.get('step', 0)}; --resume goes on with it")
        else:
            self._record.add("stopped", trial=number)
            print(f"trial {number} stopped at step {last['step']}: {self._value(last)}")
        self._table()

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        error = trial.get_error()
        self._fail(trial.config["trial"], str(error).strip().splitlines()[-1] if str(error).strip() else repr(error))

    def on_experiment_end(self, trials: list[Any], **info: Any) -> None:
        known = self._record.trials()
        for trial in trials:  # Ray Tune gives up some without a word
            if trial.status == "ERROR" and known[trial.config["trial"]].state == "running":
                self.on_trial_error(0, trials, trial)

    def _fail(self, number: int, message: str) -> None:
        self._record.add("failed", trial=number, message=message)
        print(f"trial {number} failed: {message} (see {log_file(self._sweep.folder, number)})")
        self._failed += 1
        if self._failed >= _HOPELESS and not self._any_value:
            self.hopeless = message

    def _value(self, row: dict[str, Any]) -> str:
        judge = self._sweep.judge
        return f"{judge.column} {judge.text(row['value'], row['ci95'])}"

    def _table(self) -> None:
        trials = list(self._record.trials().values())
        if time.monotonic() - self._printed < _TABLE_S or all(t.state != "running" for t in trials):
            return
        self._printed = time.monotonic()
        print(table(trials, self._sweep.judge, self._sweep.minimize, limit=6))


class Stop(tune.Stopper):  # type: ignore[misc]
    """Ends a sweep when its time is over, or when nothing comes of it."""

    def __init__(self, watch: Watch) -> None:
        self._watch = watch

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        return self._watch.late or bool(self._watch.hopeless)
