"""Population-based training under Ray Tune, generation by generation: all members walk to the next comparison, then some take over."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ray.tune.search import Searcher as TuneSearcher

from raymeta import population
from raymeta.errors import UserError
from raymeta.searchers import Searcher
from raymeta.space import Distribution, shown
from raymeta.sweep import Sweep
from raymeta.sweep_record import Record, Trial
from raymeta.tuner import Watch, asked, walked


def evolved(
    sweep: Sweep,
    settings: dict[str, Distribution],
    searcher: Searcher,
    record: Record,
    at_once: int,
    stop_at: float | None,
) -> None:
    """Trains the population, `at_once` members at a time, from wherever its record says that it is.

    Raises UserError where no member comes to anything.
    """
    steps = sweep.run.outer.steps
    for bound in population.boundaries(sweep.interval, steps):
        known = record.trials()
        missing = [n for n in range(sweep.trials) if n not in known or known[n].paused < bound]
        if missing:
            _took_over(sweep, known)
            until = None if bound == steps else bound
            watch = Watch(sweep, record, stop_at, until)
            walked(sweep, Members(sweep, searcher, missing, record, until), len(missing), watch, at_once)
            known = record.trials()
            if watch.late or len(known) < sweep.trials:
                return
        if bound == steps or any(t.paused > bound or _begun(t) == bound for t in known.values()):
            continue
        members = [known[n] for n in range(sweep.trials)]
        decided = population.moves(members, settings, bound, sweep.run.seed, sweep.minimize)
        for move in decided:
            move["folder"] = str(sweep.member(move["trial"], bound, move["settings"]).folder)
        record.add("round", step=bound, moves=decided)
        for move in decided:
            mine, theirs = known[move["trial"]], known[move["donor"]]
            old, new = ({p: shown(s[p]) for p in settings} for s in (theirs.settings, move["settings"]))
            words = ", ".join(f"{p.rpartition('.')[2]} {old[p]} -> {new[p]}" for p in settings if old[p] != new[p])
            print(
                f"trial {mine.number} ({_said(sweep, mine)}) takes over from trial {theirs.number} ({_said(sweep, theirs)}) at step {bound}: "
                f"{words or 'its settings'}"
            )


def _begun(trial: Trial) -> int:
    """The step at which a member's present run began."""
    return trial.schedule[-1][0]


def _said(sweep: Sweep, trial: Trial) -> str:
    return "failed" if trial.state == "failed" else sweep.judge.text(trial.now)


def _took_over(sweep: Sweep, known: dict[int, Trial]) -> None:
    """Makes the folders of runs that take over, where that was decided and is not yet done."""
    for trial in known.values():
        since = _begun(trial)
        if since and trial.paused == since:
            run = sweep.member(trial.number, since, trial.settings)
            population.took_over(Path(trial.donor), run, since)


class Members(TuneSearcher):  # type: ignore[misc]
    """Hands Ray Tune the members of a population that have yet to come to a step."""

    def __init__(
        self, sweep: Sweep, searcher: Searcher, numbers: Sequence[int], record: Record, until: int | None
    ) -> None:
        super().__init__(metric="value", mode="min" if sweep.minimize else "max")
        self._sweep, self._searcher, self._numbers, self._record = sweep, searcher, list(numbers), record
        self._until, self._known = until, record.trials()

    def suggest(self, trial_id: str) -> Any:
        while self._numbers:
            number = self._numbers.pop(0)
            known = self._known.get(number)
            point = known.settings if known else self._searcher.point(number)
            if point is None:
                raise UserError(
                    f"trials: the space has {len(self._searcher.points)} points, and a population of {self._sweep.trials} needs as many; "
                    f"lower --trials to {len(self._searcher.points)}"
                )
            since, step = (_begun(known), known.paused) if known else (0, 0)
            start = {"trial": number, "point": number, "settings": point}
            start["cluster"] = (self._sweep.clusters or ("as the run says",))[0]
            try:
                run = self._sweep.member(number, since, point)
            except UserError as error:  # settings that do not go together, each of them good by itself
                self._record.add("starts", **start, folder="")
                self._record.add("failed", trial=number, message=str(error))
                continue
            self._record.add("starts", **start, folder=str(run.folder))
            if not known:
                words = ", ".join(f"{path.rpartition('.')[2]} {shown(value)}" for path, value in point.items())
                print(f"trial {number} starts: {words}")
            return asked(self._sweep, number, run, self._until, step)
        return TuneSearcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Nothing: the record says what became of it."""

    def save(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""
