"""Meta-training: the outer loop over a stream of episodes, on every worker of the cluster."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from raymeta import checkpoint, notice, plots
from raymeta.checkpoint import Checkpoint
from raymeta.cluster import connect, launch
from raymeta.config import Run
from raymeta.episodes import Episode
from raymeta.errors import UserError
from raymeta.layers import Params
from raymeta.metrics import Estimate, estimates, mean_of
from raymeta.model import Network
from raymeta.outer import OuterLoop, OuterStep
from raymeta.parts import checked, held_out, left_out, prepared, training
from raymeta.stages.evaluate import loaded, meta_parameters, scores
from raymeta.stages.pretrain import ready
from raymeta.stream import Mixture, steps
from raymeta.track import Follow, Track, rows
from raymeta.workers import Workers


@dataclass(frozen=True)
class Result:
    """What meta-training left: the run's folder, and its best and last checkpoint."""

    folder: Path
    best: Checkpoint
    last: Checkpoint

    @property
    def checkpoint(self) -> Checkpoint:
        """The best checkpoint by validation (the last, where nothing was validated)."""
        return self.best

    def plot(self) -> Any:
        """The learning curve, as a matplotlib figure (the extra `report`)."""
        return plots.learning(rows(self.folder / "metrics.jsonl"), str(self.last.state["metric"]))


def finished(run: Run) -> Result | None:
    """The result of a run whose meta-training is complete, or None."""
    return _reached(run, run.outer.steps)


def _reached(run: Run, step: int) -> Result | None:
    """The result of a run that has come to `step`, or None."""
    root = run.folder / "checkpoints"
    last = checkpoint.newest(root)
    if last is None or last.step < step:
        return None
    return Result(run.folder, _best(root, last), last)


def _best(root: Path, last: Checkpoint) -> Checkpoint:
    best = last.state.get("best")
    if not best:
        return last
    try:
        return checkpoint.load(root / f"step_{best['step']:06d}")
    except UserError as error:
        print(f"{error}; the last checkpoint, of step {last.step}, is used in place of the best")
        return last


def metatrain(run: Run, until: int | None = None) -> Result:
    """Meta-trains the run's model, going on from its newest checkpoint; raises UserError for a mistake in the run.

    until: the outer step at which it pauses, saved (absent: after its last); called again, it goes on as if it had not.
    """
    until = min(run.outer.steps, until or run.outer.steps)
    done = _reached(run, until)
    if done:
        if until == run.outer.steps:
            print(f"meta-training is done: {done.last.folder}")
        return done
    ready(run)
    checked(run.parts)
    with checkpoint.locked(run.folder):
        connect(run.cluster, run.root)
        _launch(run, until)
    result = _reached(run, until)
    if result is None:
        raise RuntimeError(f"meta-training ended before step {until}; see {run.folder}")
    return result


def _launch(run: Run, until: int) -> None:
    folder, parts = run.folder, run.parts
    folders = prepared(parts, run.backbone, run.seed, run.root / "prepared", on_ray=not run.cluster.in_process)
    train = training(parts, folders, run.seed)
    sources = list(train.sources) if isinstance(train, Mixture) else [train]
    if run.validation.every:
        there = held_out(parts, folders, "validation", run.seed)
        for line in left_out(parts, there, "validation"):
            print(line)
        sources += [source for _, source in there]
    for source in sources:
        few = source.check().left_out
        if few:
            of = f" of {parts[source.part].name}" if len(parts) > 1 else ""
            print(
                f"{source.split}{of}: {len(few)} classes have too few examples for an episode and are not drawn: {', '.join(sorted(few)[:5])}"
            )
    (folder / "run.yaml").write_text(run.yaml(), encoding="utf-8")
    start = checkpoint.newest(folder / "checkpoints", say=_silent)
    if start:
        print(f"going on from step {start.step}")
    payload = asked(run, folders, start.step if start else 0, until)
    with Follow(folder / "metrics.jsonl", run.outer.steps, run.metric):
        launch(_train, payload, run.cluster, folder, run.exact)


def asked(run: Run, folders: list[str], start: int, until: int) -> dict[str, Any]:
    """What the workers are told: the run, its prepared corpora, and the steps to walk, from `start` to `until`."""
    return {
        "run": run.model_dump(mode="json"), "folder": str(run.folder), "prepared": folders, "start": start, "until": until,
    }  # fmt: skip


def _silent(line: str) -> None:
    """For what was said before."""


def _train(payload: dict[str, Any], workers: Workers) -> None:
    """The outer loop, as every worker runs it."""
    run = Run.of(payload["run"])
    folder, until = Path(payload["folder"]), payload["until"]
    source = training(run.parts, payload["prepared"], run.seed)
    network = loaded(run, workers)
    params = meta_parameters(run, network, workers)
    moving = network.trainable()
    moved = {n: p for n, p in params.items() if n in moving or n not in network.base}
    outer = OuterLoop(run.outer, moved, network.embedding, len(run.parts))
    params |= outer.params
    start = checkpoint.agreed(folder / "checkpoints", workers.rank, workers.gathered)
    best = None
    if start:
        outer.restore(start.step, start.params(), start.outer())
        best = start.state.get("best")
        if workers.first and start.step != payload["start"]:
            print(f"the workers changed; {workers.count} go on from step {start.step}")
    track = Track(folder / "metrics.jsonl", outer.step) if workers.first else None
    stream = steps(source, outer.step, until, run.outer.tasks_per_step, workers.rank, workers.count, workers.on_ray)

    def snapshot() -> Callable[[], Checkpoint]:
        state = {"best": best, "metric": run.metric}
        return checkpoint.snapshot(
            folder / "checkpoints", outer.step, outer.params, outer.state(), state, run.yaml(), run.save.keep
        )

    began = time.perf_counter()
    with notice.Saves(folder, workers.first, lambda: outer.step, snapshot, workers.leaving) as saves:
        for episodes in stream:
            waited = time.perf_counter() - began
            not_counted: list[int] = []
            for together in _together(episodes, lambda mine: run.algorithm.at_once(network, mine)):
                not_counted += _learned(run, network, outer, params, together, workers)
            workers.sum(outer.sums)
            took = outer.update()
            if took.tasks < run.outer.tasks_per_step:
                not_counted = sorted(n for mine in workers.gathered(not_counted) for n in mine)
            seconds = time.perf_counter() - began
            if track:
                track.row(
                    step=outer.step, query_loss=took.query_loss, **_query_metrics(run, took), grad_norm=took.grad_norm,
                    lr=took.lr, tasks=took.tasks, tasks_per_s=took.tasks / seconds, step_s=seconds, wait_s=waited, **({"left_out": not_counted} if not_counted else {}),
                )  # fmt: skip
            last = outer.step == run.outer.steps
            improved = False
            if run.validation.every and (outer.step % run.validation.every == 0 or last):
                found_best = _validate(run, network, outer, params, payload["prepared"], workers, track, best)
                improved, best = found_best is not best, found_best
            saves.done(due=outer.step % run.save.every == 0 or improved or outer.step == until)
            began = time.perf_counter()


def _query_metrics(run: Run, took: OuterStep) -> dict[str, float]:
    """The mean metric of each part's tasks, by the name of its column in metrics.jsonl; without the parts that had none."""
    named = zip(run.parts, took.metrics, strict=True)
    mixed = len(run.parts) > 1
    return {
        f"query_{part.name}/{part.tasks.metric}" if mixed else f"query_{part.tasks.metric}": value
        for part, value in named
        if value is not None
    }


def _together(episodes: list[Episode], at_once: Callable[[list[Episode]], int]) -> Iterator[list[Episode]]:
    """The episodes in runs of at most `at_once` of a part's, each of one part: those of the first part first, in their order."""
    for _, of_part in groupby(sorted(episodes, key=lambda e: e.part), key=lambda e: e.part):
        mine = list(of_part)
        size = at_once(mine)
        for at in range(0, len(mine), size):
            yield mine[at : at + size]


def _learned(
    run: Run, network: Network, outer: OuterLoop, params: Params, episodes: list[Episode], workers: Workers
) -> list[int]:
    """Adds the episodes' meta-gradient to the step; gives the numbers of those left out, whose own is not finite.

    The episodes are of one part.
    """
    part = episodes[0].part
    tasks = run.parts[part].tasks
    inner = run.algorithm.bound(network, tasks, [e.to(workers.device) for e in episodes], run.seed)
    found = run.algorithm.meta_step(inner, params, outer.step + 1)
    scored = zip(found.outputs, episodes, strict=True)
    metric = sum(tasks.score(o.cpu(), e.query, e.classes)[tasks.metric] for o, e in scored)
    if outer.add(found, metric, part):
        return []
    if len(episodes) == 1:
        return [episodes[0].number]
    return [number for episode in episodes for number in _learned(run, network, outer, params, [episode], workers)]


def _validate(
    run: Run,
    network: Network,
    outer: OuterLoop,
    params: Params,
    folders: list[str],
    workers: Workers,
    track: Track | None,
    best: dict[str, Any] | None,
) -> dict[str, Any] | None:
    """Scores the validation episodes, and gives what is best now: {"step", metric} of this step or the one before."""
    began = time.perf_counter()
    means: dict[str, Estimate] = {}
    main = []
    for part, source in held_out(run.parts, folders, "validation", run.seed):
        found = estimates(
            scores(network, run.algorithm, params, source, run.validation.episodes, run.validation.inner_steps, workers)
        )
        main.append(found[part.tasks.metric])
        means |= {f"{part.name}/{n}": e for n, e in found.items()} if len(run.parts) > 1 else found
    if len(run.parts) > 1:
        means = {"mean": mean_of(main), **means}
    metric = run.metric
    if best is None or means[metric].mean > best[metric]:
        best = {"step": outer.step, metric: means[metric].mean, "ci95": means[metric].ci95}
    if track:
        numbers = {k: v for name, e in means.items() for k, v in ((name, e.mean), (f"{name}_ci95", e.ci95))}
        track.row(
            step=outer.step, split="validation", episodes=run.validation.episodes, best=best["step"] == outer.step, **numbers,
            validation_s=time.perf_counter() - began,
        )  # fmt: skip
    return best
