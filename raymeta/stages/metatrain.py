"""Meta-training: the outer loop over a stream of episodes, on every worker of the cluster."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymeta import checkpoint
from raymeta.checkpoint import Checkpoint
from raymeta.cluster import connect, launch
from raymeta.config import Run
from raymeta.episodes import Episode
from raymeta.errors import UserError
from raymeta.layers import Params
from raymeta.metrics import estimates
from raymeta.model import Network
from raymeta.outer import OuterLoop
from raymeta.prepare import check, prepare
from raymeta.stages.evaluate import loaded, meta_parameters, scores
from raymeta.stream import Source, steps
from raymeta.track import Follow, Track
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


def finished(run: Run) -> Result | None:
    """The result of a run whose meta-training is complete, or None."""
    root = run.folder / "checkpoints"
    last = checkpoint.newest(root)
    if last is None or last.step < run.outer.steps:
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


def metatrain(run: Run) -> Result:
    """Meta-trains the run's model, going on from its newest checkpoint; raises UserError for a mistake in the run."""
    done = finished(run)
    if done:
        print(f"meta-training is done: {done.last.folder}")
        return done
    check(run.corpus, run.tasks)
    with checkpoint.locked(run.folder):
        connect(run.cluster)
        _launch(run, run.folder)
    result = finished(run)
    if result is None:
        raise RuntimeError(f"meta-training ended before its last step; see {run.folder}")
    return result


def _launch(run: Run, folder: Path) -> None:
    prepared = prepare(
        run.corpus, run.tasks, run.backbone, run.seed, run.root / "prepared", on_ray=not run.cluster.in_process
    )
    for split in ("train", "validation") if run.validation.every else ("train",):
        left_out = Source(str(prepared.folder), run.tasks, split, run.seed).check().left_out
        if left_out:
            print(
                f"{split}: {len(left_out)} classes have too few examples for an episode and are not drawn: {', '.join(sorted(left_out)[:5])}"
            )
    (folder / "run.yaml").write_text(run.yaml(), encoding="utf-8")
    start = checkpoint.newest(folder / "checkpoints", say=_silent)
    if start:
        print(f"going on from step {start.step}")
    payload = {
        "run": run.model_dump(mode="json"), "folder": str(folder), "prepared": str(prepared.folder), "start": start.step if start else 0,
    }  # fmt: skip
    with Follow(folder / "metrics.jsonl", run.outer.steps, run.tasks.metric):
        launch(_train, payload, run.cluster, folder)


def _silent(line: str) -> None:
    """For what was said before."""


def _train(payload: dict[str, Any], workers: Workers) -> None:
    """The outer loop, as every worker runs it."""
    run = Run.of(payload["run"])
    folder = Path(payload["folder"])
    source = Source(payload["prepared"], run.tasks, "train", run.seed)
    network = loaded(run, workers)
    params = meta_parameters(run, network, workers)
    moving = network.trainable()
    outer = OuterLoop(
        run.outer, {n: p for n, p in params.items() if n in moving or n not in network.base}, network.embedding
    )
    params |= outer.params
    start = checkpoint.newest(folder / "checkpoints", say=_silent)
    best = None
    if start:
        outer.restore(start.step, start.params(), start.outer())
        best = start.state.get("best")
        if workers.first and start.step != payload["start"]:
            print(f"workers were lost; going on from step {start.step}")
    track = Track(folder / "metrics.jsonl", outer.step) if workers.first else None
    stream = steps(
        source, outer.step, run.outer.steps, run.outer.tasks_per_step, workers.rank, workers.count, workers.on_ray
    )
    at_once = run.algorithm.at_once(network)
    began = time.perf_counter()
    for episodes in stream:
        waited = time.perf_counter() - began
        left_out: list[int] = []
        for at in range(0, len(episodes), at_once):
            left_out += _learned(run, network, outer, params, episodes[at : at + at_once], workers)
        workers.sum(outer.sums)
        took = outer.update()
        if took.tasks < run.outer.tasks_per_step:
            left_out = sorted(n for part in workers.gathered(left_out) for n in part)
        seconds = time.perf_counter() - began
        if track:
            track.row(
                step=outer.step, query_loss=took.query_loss, **{f"query_{run.tasks.metric}": took.metric}, grad_norm=took.grad_norm,
                lr=took.lr, tasks=took.tasks, tasks_per_s=took.tasks / seconds, step_s=seconds, wait_s=waited, **({"left_out": left_out} if left_out else {}),
            )  # fmt: skip
        last = outer.step == run.outer.steps
        improved = False
        if run.validation.every and (outer.step % run.validation.every == 0 or last):
            found_best = _validate(run, network, outer, params, payload["prepared"], workers, track, best)
            improved, best = found_best is not best, found_best
        if workers.first and (outer.step % run.save.every == 0 or improved or last):
            state = {"best": best, "metric": run.tasks.metric}
            checkpoint.save(
                folder / "checkpoints", outer.step, outer.params, outer.state(), state, run.yaml(), run.save.keep
            )
        began = time.perf_counter()


def _learned(
    run: Run, network: Network, outer: OuterLoop, params: Params, episodes: list[Episode], workers: Workers
) -> list[int]:
    """Adds the episodes' meta-gradient to the step; gives the numbers of those left out, whose own is not finite."""
    inner = run.algorithm.bound(network, run.tasks, [e.to(workers.device) for e in episodes], run.seed)
    found = run.algorithm.meta_step(inner, params, outer.step + 1)
    scored = zip(found.outputs, episodes, strict=True)
    metric = sum(run.tasks.score(o.cpu(), e.query, e.classes)[run.tasks.metric] for o, e in scored)
    if outer.add(found, metric):
        return []
    if len(episodes) == 1:
        return [episodes[0].number]
    return [number for episode in episodes for number in _learned(run, network, outer, params, [episode], workers)]


def _validate(
    run: Run,
    network: Network,
    outer: OuterLoop,
    params: Params,
    prepared: str,
    workers: Workers,
    track: Track | None,
    best: dict[str, Any] | None,
) -> dict[str, Any] | None:
    """Scores the validation episodes, and gives what is best now: {"step", metric} of this step or the one before."""
    source = Source(prepared, run.tasks, "validation", run.seed)
    found = scores(network, run.algorithm, params, source, run.validation.episodes, run.validation.inner_steps, workers)
    metric = run.tasks.metric
    means = estimates(found)
    if best is None or means[metric].mean > best[metric]:
        best = {"step": outer.step, metric: means[metric].mean, "ci95": means[metric].ci95}
    if track:
        numbers = {k: v for name, e in means.items() for k, v in ((name, e.mean), (f"{name}_ci95", e.ci95))}
        track.row(step=outer.step, split="validation", episodes=len(found), best=best["step"] == outer.step, **numbers)
    return best
