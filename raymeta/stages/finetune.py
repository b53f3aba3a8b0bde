"""Fine-tuning on a target task: from the meta-trained model or the plain one, on all rows or a few, over the cluster's workers."""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raymeta import checkpoint
from raymeta.checkpoint import Checkpoint
from raymeta.cluster import connect, launch
from raymeta.config import Run
from raymeta.corpora import Corpus
from raymeta.errors import UserError
from raymeta.finetuning import Finetune
from raymeta.finetuning.classifier import Classifier, head_for
from raymeta.finetuning.compare import arms, compared
from raymeta.finetuning.fit import Fit, Job, fitted, write
from raymeta.finetuning.target import Target
from raymeta.layers import Params
from raymeta.metrics import Estimate, estimate_of_few
from raymeta.model import Network
from raymeta.prepare import prepare
from raymeta.stages.evaluate import fitting, loaded, meta_parameters
from raymeta.stages.metatrain import finished as metatrained
from raymeta.stages.pretrain import ready
from raymeta.tasks import Split, Tasks
from raymeta.track import Follow
from raymeta.workers import Workers

Read = dict[str, Any]


@dataclass(frozen=True)
class Result:
    """What a fine-tuning left: its folder, and what finetune.json (and comparison.json) say."""

    folder: Path
    found: Read
    comparison: Read | None

    @property
    def checkpoint(self) -> Checkpoint:
        """The first repeat's best parameters by validation; its state names the `classes` in label order."""
        return checkpoint.load(self.folder / "checkpoints" / f"step_{self.found['step']:06d}")

    def text(self) -> str:
        """What was measured, for a person."""
        repeats = len(self.found["repeats"])
        lines = [f"{self.found['target']}: {self.found['size']}, from {self.found['from']}"]
        for split in ("validation", "test"):
            if repeats > 1 and split in self.found:
                each = (f"{name} {Estimate(e['mean'], e['ci95'])}" for name, e in self.found[split].items())
                lines.append(f"{split}: {', '.join(each)}  (in %, mean ± 95 % interval over {repeats} repeats)")
        for split in ("validation", "test") if repeats == 1 else ():
            path = self.folder / f"{split}.txt"
            if path.is_file():
                report = path.read_text(encoding="utf-8").splitlines()
                lines.append(
                    f"{split}: " + "\n".join(report if split == "test" and len(report) < _LONG else report[:1])
                )
        if self.comparison:
            lines += ["", self.comparison["text"]]
        return "\n".join(lines)


_LONG = 60
"""Lines of a report that is not shown whole."""


def finished(run: Run, start: Checkpoint | None = None) -> list[Result] | None:
    """The results of a run whose fine-tuning is complete, one a target task, or None."""
    if run.finetune is None or (start is None and _needs_checkpoint(run.finetune) and metatrained(run) is None):
        return None
    sections, start = _asked(run, start)
    found = [_result(run, one, start) for one in sections]
    return [r for r in found if r is not None] if all(found) else None


def finetune(run: Run, start: Checkpoint | None = None) -> list[Result]:
    """Fine-tunes on each of the run's target tasks and measures what comes of it, going on where it was stopped.

    start: a checkpoint of the run's model, in place of what `finetune.start` says. Raises UserError for a mistake in the run.
    """
    ready(run)
    sections, start = _asked(run, start)
    results = []
    for one in sections:
        found = _result(run, one, start)
        if found is None:
            folder = _folder(run, one, start)
            with checkpoint.locked(folder):
                connect(run.cluster, run.root)
                _launch(run, one, start, folder)
            found = _result(run, one, start)
            if found is None:
                raise RuntimeError(f"fine-tuning ended before its last step; see {folder}")
        results.append(found)
    return results


def targets(run: Run, on_ray: bool = False, say: Callable[[str], None] = print) -> list[Target]:
    """The run's target tasks, their rows prepared; raises UserError for a mistake in what they are."""
    assert run.finetune is not None
    return [_target(run, one, on_ray, say) for one in _each(run.finetune)]


def _each(settings: Finetune) -> list[Finetune]:
    """The section for each of its target tasks."""
    return [settings.model_copy(update={"task": (task,)}) for task in settings.task] or [settings]


def _needs_checkpoint(settings: Finetune) -> bool:
    return settings.start == "metatrain" or settings.compare is not None


def _asked(run: Run, start: Checkpoint | None) -> tuple[list[Finetune], Checkpoint | None]:
    """The section for each target task, and the checkpoint that is meta-trained, where one is needed."""
    settings = run.finetune
    if settings is None:
        raise UserError(
            f"finetune: run {run.name} has no such section, and so no target task; add one (finetune: {{task: ...}})"
        )
    if start is not None:
        settings = settings.model_copy(update={"start": "metatrain"})
    elif _needs_checkpoint(settings):
        done = metatrained(run)
        if done is None:
            raise UserError(
                f"finetune.start: {run.folder} is not meta-trained to its end; run `raymeta metatrain` first, name a checkpoint with "
                "--from, or set finetune.start to backbone"
                + (" and leave finetune.compare out" if settings.compare else "")
            )
        start = done.best
    return _each(settings), start


def _folder(run: Run, one: Finetune, start: Checkpoint | None) -> Path:
    matters = one.model_dump(mode="json", exclude={"seeds", "compare"})
    if matters["corpus"]:
        matters["corpus"].pop("bad_rows", None)
    sums = start.state["sha256"]["params.safetensors"] if start else None
    digits = hashlib.sha256(json.dumps([matters, sums], sort_keys=True).encode()).hexdigest()[:8]
    return run.folder / f"finetune-{digits}"


def _result(run: Run, one: Finetune, start: Checkpoint | None) -> Result | None:
    """The result of one target, where all that is asked for is there."""
    folder = _folder(run, one, start)
    found, comparison = _read(folder / "finetune.json"), _read(folder / "comparison.json")
    if found is None or len(found["repeats"]) != one.seeds:
        return None
    if one.compare is None:
        comparison = None
    elif comparison is None or comparison["asked"] != one.compare.model_dump(mode="json"):
        return None
    return Result(folder, found, comparison)


def _read(path: Path) -> Read | None:
    if not path.is_file():
        return None
    found: Read = json.loads(path.read_text(encoding="utf-8"))
    return found


def _held_out(one: Finetune) -> str | None:
    """The split of the run's own corpus whose rows are the target's; None where the section says which they are."""
    return "test" if one.corpus is None and one.split is None else None


def _source(run: Run, one: Finetune) -> tuple[Corpus, Tasks]:
    """Where the target's rows are read from, and what the target task is, with how its rows are divided."""
    if one.corpus is None and len(run.parts) > 1:
        names = ", ".join(part.name for part in run.parts)
        raise UserError(f"finetune.corpus: the run mixes several corpora ({names}); give the one of the target task")
    own = run.parts[0]
    tasks = one.tasks or (own.tasks if len(run.parts) == 1 else run.tasks)
    if tasks.generates:
        raise UserError(
            f"finetune.tasks: {tasks.kind} is answered by texts, and fine-tuning tells fixed classes apart; name another kind"
        )
    if tasks.bounds is not None:
        raise UserError(
            f"finetune.tasks: the classes of {tasks.kind} are made anew for each episode, and fine-tuning wants fixed ones; say what the "
            "target task is (finetune.tasks: {kind: classification})"
        )
    if tasks.fixed_outputs and head_for(one.head, run.model.head).reads_support:
        raise UserError(
            f"finetune.head: {one.head or run.model.head.kind} makes outputs of class means, and the outputs of {tasks.kind} are no "
            "classes; use learned or zero"
        )
    split = own.tasks.split if _held_out(one) else one.split or (one.tasks.split if one.tasks else Split())
    return one.corpus or own.corpus, Tasks.model_validate({**tasks.model_dump(), "split": split})


def _target(run: Run, one: Finetune, on_ray: bool, say: Callable[[str], None]) -> Target:
    corpus, tasks = _source(run, one)
    held_out = _held_out(one)
    prepared = prepare(
        corpus, tasks, run.backbone, run.seed, run.root / "prepared", on_ray=on_ray, say=lambda _: None, whole=held_out is None
    )  # fmt: skip
    target = Target.of(prepared.folder, tasks, one, run.seed, held_out)
    target.account(say)
    return target


def _launch(run: Run, one: Finetune, start: Checkpoint | None, folder: Path) -> None:
    target = _target(run, one, not run.cluster.in_process, print)
    shares = -(-one.batch_size // one.texts_at_once)
    if shares < run.cluster.fewest:
        print(
            f"finetune.texts_at_once: a batch of {one.batch_size} rows makes {shares} part(s) of {one.texts_at_once}, so "
            f"{run.cluster.fewest - shares} of {run.cluster.fewest} workers have nothing to do; "
            f"lower it to {max(one.batch_size // run.cluster.fewest, 1)}"
        )
    (folder / "run.yaml").write_text(run.yaml(), encoding="utf-8")
    payload = {
        "run": run.model_dump(mode="json"), "finetune": one.model_dump(mode="json"), "folder": str(folder), "prepared": target.folder,
        "start": str(start.folder) if start else None,
    }  # fmt: skip
    with _Follow(folder / "metrics.jsonl", target.tasks.metric, frozenset(fit.name for fit in _fits(one))):
        launch(_finetune, payload, run.cluster, folder, run.exact)


class _Follow(Follow):
    """Tells of each validation of what was asked for, and of the end of each arm of a comparison."""

    def __init__(self, path: Path, metric: str, told: frozenset[str]) -> None:
        super().__init__(path, 0, metric)
        self._told = told

    def _tell(self, row: dict[str, Any]) -> None:
        split = row.get("split")
        if split is None or (split == "validation" and row["fit"] not in self._told):
            return
        words = [f"{row['fit']}: epoch {row['epoch']:.3g}"]
        if row.get("loss") is not None:
            words.append(f"loss {row['loss']:.3f}")
        if self.metric in row:
            words.append(f"{split} {self.metric} {100 * row[self.metric]:.1f} %")
        self.say(", ".join(words) + (" (best so far)" if row.get("best") else ""))


def _fits(one: Finetune) -> list[Fit]:
    """The repeats that are asked for."""
    return [Fit(one.start, one.shots, one.rows, repeat) for repeat in range(one.seeds)]


def _finetune(payload: dict[str, Any], workers: Workers) -> None:
    """All repeats and all arms of the comparison, as every worker runs them."""
    run, one, folder = Run.of(payload["run"]), Finetune.model_validate(payload["finetune"]), Path(payload["folder"])
    target = Target.of(Path(payload["prepared"]), _source(run, one)[1], one, run.seed, _held_out(one))
    network, starts = _models(run, one, payload["start"], workers)
    own_head = network.head
    classifier, nearest = (
        Classifier(network, target, head_for(kind, own_head), one.texts_at_once, workers.device)
        for kind in (one.head, "prototype")
    )
    state = {
        "classes": list(target.classes), "target": target.name, "tasks": target.tasks.model_dump(mode="json"),
        "head": classifier.head.model_dump(mode="json"), "pooling": network.pooling,
    }  # fmt: skip
    job = Job(one, target, folder, run.seed, run.save.every, run.save.keep, run.yaml(), state, workers)

    def done(fit: Fit) -> Read:
        first = fit == _fits(one)[0]
        place = folder if first else folder / "fits" / fit.name
        return fitted(job, fit, classifier if fit.trains else nearest, starts[fit.start], place, keep=first)

    repeats = [done(fit) for fit in _fits(one)]
    if workers.first:
        where = payload["start"] if one.start == "metatrain" else run.backbone.name
        write(folder / "finetune.json", _summary(job, where, repeats))
    if one.compare:
        found = compared(
            {arm: [done(fit) for fit in fits] for arm, fits in arms(one.compare, target.tasks).items()}, target
        )
        if workers.first:
            asked = one.compare.model_dump(mode="json")
            (folder / "comparison.txt").write_text(found["text"], encoding="utf-8")
            write(folder / "comparison.json", {"asked": asked, **found})


def _models(run: Run, one: Finetune, start: str | None, workers: Workers) -> tuple[Network, dict[str, Params]]:
    """The network, and its parameters by where fine-tuning starts."""
    changes: dict[str, Any] = {}
    if one.dropout is not None:
        changes["model"] = run.model.model_copy(update={"dropout": one.dropout})
    if one.train is not None:
        changes["outer"] = run.outer.model_copy(update={"train": one.train})
    run = run.model_copy(update=changes)
    network = loaded(run, workers)
    plain = meta_parameters(run, network, workers)
    starts = {"backbone": plain}
    if start:
        found = fitting(checkpoint.load(Path(start)), plain)
        starts["metatrain"] = {**plain, **{n: p.to(workers.device) for n, p in found.items()}}
    return network, starts


def _summary(job: Job, where: str, repeats: Sequence[Read]) -> Read:
    """What finetune.json says; `history` and `best` are the first repeat's, whose model is kept."""
    first = repeats[0]
    found: Read = {
        "target": job.target.name, "classes": list(job.target.classes), "start": first["start"], "from": where, "size": first["size"],
        "rows": first["rows"], "step": first["best"]["step"] if first["best"] else first["steps"], "best": first["best"],
        "history": first["history"], "metric": job.target.tasks.metric,
    }  # fmt: skip
    for split in ("validation", "test"):
        if split in first:
            names = first[split]["headline"]
            estimates = {n: estimate_of_few([r[split]["headline"][n]["value"] for r in repeats]) for n in names}
            found[split] = {
                n: {"mean": e.mean, "ci95": e.ci95 if len(repeats) > 1 else None} for n, e in estimates.items()
            }
    keys = ("repeat", "rows", "steps", "best")
    found["repeats"] = [
        {**{k: r[k] for k in keys}, **{s: r[s]["headline"] for s in ("validation", "test") if s in r}} for r in repeats
    ]
    return found
