"""One fine-tuning: passes over the training rows, early stopping by validation, the best weights, and what they score."""

import json
import os
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Literal

import torch

from raymeta import checkpoint, notice
from raymeta.checkpoint import Checkpoint
from raymeta.episodes import Ints
from raymeta.errors import UserError
from raymeta.finetuning import Finetune
from raymeta.finetuning.classifier import Classifier, parts
from raymeta.finetuning.target import Target, batch
from raymeta.layers import Params
from raymeta.outer import Outer, OuterLoop
from raymeta.supervised import Report
from raymeta.track import Track
from raymeta.workers import Workers

_HEAD_ROWS = 50
"""Of all training rows, those that hold each class of which class means are made."""
_AHEAD = 4
"""How many times as many texts are computed at once where there is no gradient."""


@dataclass(frozen=True)
class Fit:
    """Which fine-tuning: from what, on how many rows, which repeat; `trains` is False where all stays as it starts."""

    start: Literal["metatrain", "backbone"]
    shots: int | None = None
    rows: int | None = None
    repeat: int = 0
    trains: bool = True

    @property
    def size(self) -> str:
        """How many rows it has, for a table."""
        return f"{self.shots} a class" if self.shots else f"{self.rows} rows" if self.rows else "all rows"

    @property
    def name(self) -> str:
        """A name for its folder and its lines."""
        how = self.start if self.trains else f"{self.start}-prototype"
        return f"{how}-{self.size.replace(' ', '-')}-seed-{self.repeat}"


@dataclass(frozen=True)
class Job:
    """What all fine-tunings of a target share.

    folder: where the metrics go; save_every, keep: of checkpoints; state: plain data that each checkpoint holds.
    """

    settings: Finetune
    target: Target
    folder: Path
    seed: int
    save_every: int
    keep: int
    run_yaml: str
    state: dict[str, Any]
    workers: Workers


@dataclass
class Progress:
    """How far a fine-tuning is, as plain data: the best validation, how many since, and what each found.

    losses: the sum of the batches' losses since the last validation, and how many there were.
    """

    best: dict[str, Any] | None = None
    since_best: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    losses: tuple[float, int] = (0.0, 0)


def fitted(job: Job, fit: Fit, classifier: Classifier, params: Params, folder: Path, keep: bool) -> dict[str, Any]:
    """What a fine-tuning comes to, as plain data: read from `folder` where it is done, else done now, from its newest checkpoint.

    params: the encoder's, and of the head those that its start needs. keep: whether its checkpoints stay when it is done, and
    its reports are written as files. Every worker of the job gets the same.
    """
    path = folder / "fit.json"
    if job.workers.first:
        folder.mkdir(parents=True, exist_ok=True)
    newest = None if path.is_file() else checkpoint.newest(folder / "checkpoints", say=_silent)
    # the first worker's look counts: it may have written more by the time that others look
    done, step = job.workers.gathered((path.is_file(), newest.step if newest else None))[0]
    if done:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return found
    target = job.target
    rows = target.drawn(fit.shots, fit.rows, job.seed, fit.repeat)
    few = target.drawn(_HEAD_ROWS, None, job.seed, fit.repeat) if len(rows) == len(target.train) else rows
    params = {**params, **classifier.started(params, few, job.seed + fit.repeat)}
    progress, steps = Progress(), 0
    if fit.trains:
        start = None if step is None else checkpoint.load(folder / "checkpoints" / f"step_{step:06d}")
        params, progress, steps = _trained(job, fit, classifier, params, rows, folder, start)
    result: dict[str, Any] = {
        "fit": fit.name, "start": fit.start, "size": fit.size, "rows": len(rows), "repeat": fit.repeat, "steps": steps,
        "best": progress.best, "history": progress.history,
    }  # fmt: skip
    for split, there in (("validation", target.validation), ("test", target.test)):
        if len(there):
            report = measured(classifier, params, there, job.workers)
            result[split] = report.plain()
            if job.workers.first and keep:
                folder.mkdir(parents=True, exist_ok=True)
                report.write(folder, split)
    if job.workers.first:
        only = {"fit": fit.name, "split": "test"}
        found = {name: one["value"] for name, one in result["test"]["headline"].items()}
        best = progress.best or {"step": steps, "epoch": steps / _a_pass(job, rows)}
        Track(job.folder / "metrics.jsonl", -1, only).row(**only, step=best["step"], epoch=best["epoch"], **found)
        write(path, result)
        if not keep:
            shutil.rmtree(folder / "checkpoints", ignore_errors=True)
    return result


def _a_pass(job: Job, rows: Ints) -> int:
    """Batches of a pass over the training rows."""
    return -(-len(rows) // job.settings.batch_size)


def _trained(
    job: Job, fit: Fit, classifier: Classifier, params: Params, rows: Ints, folder: Path, start: Checkpoint | None
) -> tuple[Params, Progress, int]:
    """The best parameters, how they were found, and in how many steps."""
    settings, target, workers = job.settings, job.target, job.workers
    a_pass = _a_pass(job, rows)
    steps = settings.steps or settings.epochs * a_pass
    outer = OuterLoop(
        Outer(
            steps=steps, lr=settings.lr, warmup_steps=round(settings.warmup * steps), schedule=settings.schedule,
            clip_norm=settings.clip_norm,
        ),
        {n: params[n] for n in classifier.moving(params)}, classifier.network.embedding, head_lr=settings.head_lr,
    )  # fmt: skip
    params = {**params, **outer.params}
    penalised = [n for n, p in outer.params.items() if settings.l2_on == "all" or p.dim() > 1]
    watched = target.watched(settings.validation_rows, job.seed)
    progress = Progress()
    if start:
        outer.restore(start.step, {n: p for n, p in start.params().items() if n in outer.params}, start.outer())
        progress = Progress(**start.state["progress"])
    track = Track(job.folder / "metrics.jsonl", outer.step, {"fit": fit.name}) if workers.first else None

    def validate() -> bool:
        """Notes what validation finds, and says whether it is the best so far."""
        loss, batches = progress.losses
        row: dict[str, Any] = {
            "step": outer.step,
            "epoch": outer.step / a_pass,
            "loss": loss / batches if batches else None,
        }
        improved = False
        if len(watched):
            metric = target.tasks.metric
            row |= target.tasks.score(*_answers(classifier, params, watched, workers), target.classes)
            improved = progress.best is None or row[metric] > progress.best[metric]
            if improved:
                progress.best, progress.since_best = {k: row[k] for k in ("step", "epoch", metric)}, 0
            else:
                progress.since_best += 1
        progress.history.append(row)
        progress.losses = (0.0, 0)
        if track:
            track.row(fit=fit.name, split="validation", best=improved, **row)
        return improved

    def stopped() -> bool:
        return outer.step >= steps or (settings.patience is not None and progress.since_best >= settings.patience)

    def snapshot() -> Callable[[], Checkpoint]:
        plain = {"best": progress.best, "metric": target.tasks.metric, "progress": progress.__dict__, **job.state}
        kept = {n: p for n, p in params.items() if n in classifier.network.base or n in outer.params}
        return checkpoint.snapshot(
            folder / "checkpoints", outer.step, kept, outer.state(), plain, job.run_yaml, job.keep
        )

    if start is None:
        validate()
        if workers.first:
            snapshot()()
    with notice.Saves(job.folder, workers.first, lambda: outer.step, snapshot, workers.leaving) as saves:
        while not stopped():
            began = time.perf_counter()
            step = outer.step + 1
            texts = batch(rows, settings.batch_size, step, job.seed, fit.repeat)
            a_batch = -(-settings.batch_size // settings.texts_at_once)
            for i, part in enumerate(parts(texts, settings.texts_at_once)):
                if i % workers.count == workers.rank:
                    found = classifier.gradient(params, part, job.seed + fit.repeat, step * a_batch + i)
                    outer.accumulate(found.grads, found.rows, found.weight, found.loss)
            workers.sum(outer.sums)
            penalty = outer.penalise(settings.l2, penalised) if settings.l2 else 0.0
            took = outer.update()
            if not isfinite(took.query_loss + took.grad_norm):
                raise UserError(
                    f"finetune.lr: the loss or its gradient is not finite at step {step} of {fit.name}; lower finetune.lr "
                    f"({settings.lr}), and start again: it goes on from its newest checkpoint"
                )
            progress.losses = (progress.losses[0] + took.query_loss, progress.losses[1] + 1)
            if track:
                track.row(
                    fit=fit.name, step=step, epoch=step / a_pass, loss=took.query_loss, penalty=penalty, grad_norm=took.grad_norm,
                    lr=took.lr, step_s=time.perf_counter() - began,
                )  # fmt: skip
            improved = (step % (settings.every or a_pass) == 0 or step == steps) and validate()
            saves.done(due=improved or step % job.save_every == 0 or stopped())
    workers.gathered(None)  # the first worker has written what all read now
    best = progress.best
    if best and best["step"] != outer.step:
        found_best = checkpoint.load(folder / "checkpoints" / f"step_{best['step']:06d}").params()
        params = {**params, **{n: p.to(classifier.device) for n, p in found_best.items()}}
    return params, progress, outer.step


def measured(classifier: Classifier, params: Params, rows: Ints, workers: Workers) -> Report:
    """The report of the answers to these rows; every worker answers its share, and gets the whole."""
    target = classifier.target
    return target.tasks.report(*_answers(classifier, params, rows, workers), target.classes)


def _answers(classifier: Classifier, params: Params, rows: Ints, workers: Workers) -> tuple[Any, Any]:
    """Scores of these rows' items, and the rows as examples."""
    mine = [
        (i, classifier.logits(params, part).cpu())
        for i, part in enumerate(parts(rows, _AHEAD * classifier.at_once))
        if i % workers.count == workers.rank
    ]
    found = sorted((pair for share in workers.gathered(mine) for pair in share), key=lambda pair: pair[0])
    return torch.cat([logits for _, logits in found]), classifier.target.examples(rows)


def write(path: Path, values: dict[str, Any]) -> None:
    """A JSON file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    temporary.write_text(json.dumps(values, indent=1), encoding="utf-8")
    temporary.replace(path)


def _silent(line: str) -> None:
    """For what was said before."""
