"""Pre-training: a language model's own objective on plain text, before anything is meta-trained."""

import json
import math
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from raymeta import checkpoint, notice
from raymeta.checkpoint import Checkpoint
from raymeta.cluster import connect, launch
from raymeta.config import Run
from raymeta.episodes import generator
from raymeta.errors import UserError
from raymeta.outer import Outer, OuterLoop
from raymeta.parts import Part, checked, held_out, prepared, training
from raymeta.pretraining import Pretrain
from raymeta.pretraining.frames import framed
from raymeta.pretraining.losses import LanguageModel
from raymeta.pretraining.measures import measured, percent, step_line, validation_line
from raymeta.pretraining.models import configuration, saved, started
from raymeta.pretraining.rows import Row, Rows, from_table
from raymeta.pretraining.texts import Origin
from raymeta.pretraining.tokens import TokenStore, origins, tokenized
from raymeta.store import Prepared
from raymeta.stream import Mixture, numbered, share
from raymeta.track import Follow, Track
from raymeta.track import rows as rows_of
from raymeta.workers import Workers


@dataclass(frozen=True)
class Result:
    """What pre-training left: its folder, in which `model` is a plain Hugging Face folder, and what was measured."""

    folder: Path

    @property
    def model(self) -> Path:
        """The pre-trained model and its tokenizer, as save_pretrained writes them."""
        return self.folder / "model"

    @property
    def measured(self) -> dict[str, Any]:
        """What pretrain.json says: loss and perplexity of held-out text before and after, and how much was read."""
        found: dict[str, Any] = json.loads((self.folder / "pretrain.json").read_text(encoding="utf-8"))
        return found

    def text(self) -> str:
        """What was measured, for a person."""
        found = self.measured
        before, after = found["before"], found["after"]
        low, high = after["perplexity_ci95"] or (math.nan, math.nan)
        pairs = f"; pairs told apart {percent(after, 'nsp_accuracy')}" if "nsp_accuracy" in after else ""
        return (
            f"perplexity of held-out text: {before['perplexity']:.1f} before, {after['perplexity']:.1f} ({low:.1f} to {high:.1f}) after "
            f"{found['steps']} steps with {found['tokens'] / 1e6:.2f} M tokens ({after['rows']} rows, {after['tokens']} scored tokens; "
            f"right {percent(after, 'accuracy')}{pairs})\nmodel: {self.model}"
        )


def finished(run: Run) -> Result | None:
    """The result of a run whose pre-training is complete, or None."""
    folder = run.pretrained
    return Result(folder) if (folder / "pretrain.json").is_file() and (folder / "model").is_dir() else None


def ready(run: Run) -> None:
    """Raises UserError where a later stage is asked for and the model is not pre-trained yet."""
    if run.pretrain and finished(run) is None:
        raise UserError(
            f"pretrain: the run's model is not pre-trained to its end ({run.pretrained}); `raymeta run` or `raymeta pretrain` does that first"
        )


def pretrain(run: Run) -> Result:
    """Pre-trains the run's model, going on from its newest checkpoint; raises UserError for a mistake in the run."""
    assert run.pretrain is not None
    done = finished(run)
    if done:
        print(f"pre-training is done: {done.folder}")
        return done
    checked(run.parts)
    folder = run.pretrained
    with checkpoint.locked(folder):
        connect(run.cluster, run.root)
        store = _text(run, on_ray=not run.cluster.in_process)
        _look_ahead(run, store)
        (folder / "run.yaml").write_text(run.yaml(), encoding="utf-8")
        start = checkpoint.newest(folder / "checkpoints", say=_silent)
        if start:
            print(f"going on from step {start.step}")
            if start.state["text"] != store.folder.name:
                print("the text has changed since then; what is left is trained on the new one")
        payload = {
            "run": run.model_dump(mode="json"), "folder": str(folder), "text": str(store.folder), "start": start.step if start else 0,
        }  # fmt: skip
        metrics = folder / "metrics.jsonl"
        with Follow(metrics, run.pretrain.steps, "", of_step=step_line, of_validation=validation_line):
            launch(_train, payload, run.cluster, folder, run.exact)
    result = finished(run)
    if result is None:
        raise RuntimeError(f"pre-training ended before its last step; see {folder}")
    return result


def _silent(line: str) -> None:
    """For what was said before, or will be."""


# before training


def own_text(run: Run) -> list[Origin]:
    """What `own` stands for: the corpora whose rows the run trains on."""
    return [
        Origin(part.corpus, part.tasks, part.place.name or "corpus", part.place)
        for part in run.parts
        if part.weight > 0
    ]


def _text(run: Run, on_ray: bool, say: Callable[[str], None] = print) -> TokenStore:
    """The run's text as tokens, once all is right that can be known of objective, model and text; else raises UserError."""
    section = run.pretrain
    assert section is not None
    if section.tokenizer is None:  # so that a mistake is found before text is read
        tokenizer = run.model.tokenizer()
        framed(section, tokenizer, configuration(section, run.model, tokenizer))
    for line in _shared_files(run):
        say(line)
    store = tokenized(section, run.model, own_text(run), run.seed, run.root / "prepared", on_ray, say)
    tokenizer = store.backbone(run.model).tokenizer()
    framed(section, tokenizer, configuration(section, run.model, tokenizer))
    if section.objective == "mlm+nsp" and store.summary["train"]["documents"] < 2:
        raise UserError(
            "pretrain.objective: mlm+nsp takes second spans from other documents, and there is one document only; use mlm"
        )
    return store


def _shared_files(run: Run) -> Iterator[str]:
    """Says so where a corpus that is named for its text is also one whose classes the run validates or tests on."""
    assert run.pretrain is not None
    held = {
        shard.place: shard.name
        for part in run.parts
        for shard in part.corpus.shards()
        if shard.split != "train" or part.weight == 0
    }
    for origin in origins(run.pretrain, []):
        with origin.place.told():
            both = sorted({held[shard.place] for shard in origin.opened()[0] if shard.place in held})
        if both:
            yield (
                f"{origin.setting}: {', '.join(both)} is also read for tasks: text of classes that validate or test may be pre-trained on; "
                "`own` is the text of training rows alone"
            )


def _look_ahead(run: Run, store: TokenStore) -> None:
    """Prepares the labelled corpora that come next, so that what is wrong with them is said before anything is trained.

    Raises UserError too where the text of own rows holds a class that is held out.
    """
    parts = run.parts
    backbone = store.backbone(run.model)
    folders = prepared(parts, backbone, run.seed, run.root / "prepared", not run.cluster.in_process, say=_silent)
    train = training(parts, folders, run.seed)
    for source in train.sources if isinstance(train, Mixture) else (train,):
        source.check()
    if run.validation.every:
        for _, source in held_out(parts, folders, "validation", run.seed):
            source.check()
    _no_class_is_held_out(parts, folders, store)


def _no_class_is_held_out(parts: Sequence[Part], folders: Sequence[str], store: TokenStore) -> None:
    """Which classes train was decided on rows as they are; the tokenizer may since have set rows aside, and changed a drawn split."""
    read = [origin["classes"] for origin in store.summary["origins"] if origin["classes"] is not None]
    own = [(part, Prepared(Path(folder))) for part, folder in zip(parts, folders, strict=True) if part.weight > 0]
    for (part, made), classes in zip(own, read, strict=True) if read else ():
        for split in set(made.summary["splits"]) - {"train"}:
            pool = made.pool(split)
            held = {pool.classes[c] for c in np.unique(pool.cell_class)} & set(classes)
            train = made.pool("train")
            held -= {train.classes[c] for c in np.unique(train.cell_class)}
            if held:
                raise UserError(
                    f"pretrain.corpus: the text of own rows of {part.name} holds the class {min(held)!r}, which belongs to the {split} split; "
                    "list the classes of each split in tasks.split, or split by a column"
                )


@contextmanager
def looked_at(run: Run) -> Iterator[Run]:
    """The run as its later stages will find it, with its model as it is before pre-training where that is not done yet.

    Prints what is going to be pre-trained, and on what.
    """
    section = run.pretrain
    if section is None or finished(run):
        if section:
            print(f"pre-trained: {run.pretrained}")
        yield run
        return
    store = _text(run, on_ray=False)
    tokenizer = store.backbone(run.model).tokenizer()
    module, said = started(section, run.model, tokenizer, run.seed)
    frame = framed(section, tokenizer, module.config)
    model = LanguageModel(module, frame, section.precision)
    rows = Rows(str(store.folder), "train", frame, model.packs, run.seed)
    read = section.steps * section.batch_size
    print(f"to be pre-trained: {'; '.join(said)}; {section.objective} with {len(tokenizer)} pieces")
    print(
        f"rows to pre-train on: {len(rows)} of {section.length} tokens{'' if model.packs else ' at most, one text each'}; {section.steps} "
        f"steps of {section.batch_size} go through them {read / len(rows):.1f} times"
    )
    print(f"pre-training's folder is {run.pretrained}\n")
    with tempfile.TemporaryDirectory() as folder:
        saved(module, tokenizer, run.model, Path(folder) / "model")
        yield run.model_copy(
            update={"model": run.model.model_copy(update={"name": str(Path(folder) / "model")}), "pretrain": None}
        )


# training


def _train(payload: dict[str, Any], workers: Workers) -> None:
    """The steps, as every worker runs them."""
    run = Run.of(payload["run"])
    section = run.pretrain
    assert section is not None
    folder, store = Path(payload["folder"]), TokenStore(Path(payload["text"]))
    tokenizer = store.backbone(run.model).tokenizer()
    module, said = started(section, run.model, tokenizer, run.seed)
    module.to(workers.device)
    frame = framed(section, tokenizer, module.config)
    model = LanguageModel(module, frame, section.precision)
    train = Rows(str(store.folder), "train", frame, model.packs, run.seed)
    held = Rows(str(store.folder), "validation", frame, model.packs, run.seed)
    params = {n: p.detach() for n, p in module.named_parameters() if p.requires_grad}
    settings = Outer(
        steps=section.steps, lr=section.lr, weight_decay=section.weight_decay, beta2=section.beta2,
        warmup_steps=section.warmup_steps, schedule=section.schedule, clip_norm=section.clip_norm,
    )  # fmt: skip
    loop = OuterLoop(settings, params, "")
    loop.hold(module)
    metrics = folder / "metrics.jsonl"
    start = checkpoint.agreed(folder / "checkpoints", workers.rank, workers.gathered)
    tokens = 0
    if start:
        loop.restore(start.step, start.params(), start.outer())
        tokens = int(start.state["tokens"])
        if workers.first and start.step != payload["start"]:
            print(f"the workers changed; {workers.count} go on from step {start.step}")
    elif workers.first:
        metrics.unlink(missing_ok=True)
    track = Track(metrics, loop.step) if workers.first else None
    if not start:
        if track:
            packs = "" if model.packs else "; this model's rows hold one text each, padded"
            track.row(step=0, said=["; ".join(said) + packs], rows_a_pass=len(train))
        found = measured(model, held, section, workers)
        if track:
            track.row(step=0, split="validation", **found)

    def snapshot() -> Callable[[], Checkpoint]:
        state = {"best": None, "tokens": tokens, "text": store.folder.name}
        return checkpoint.snapshot(
            folder / "checkpoints", loop.step, loop.params, loop.state(), state, run.yaml(), run.save.keep
        )

    began = time.perf_counter()
    with notice.Saves(folder, workers.first, lambda: loop.step, snapshot, workers.leaving) as saves:
        for rows in _stream(train, loop.step, section, workers):
            waited = time.perf_counter() - began
            found = _step(model, loop, rows, section, run.seed, workers)
            tokens += found["tokens"]
            seconds = time.perf_counter() - began
            if track:
                track.row(
                    step=loop.step, **found, tokens_per_s=found["tokens"] / seconds, step_s=seconds, wait_s=waited
                )
            last = loop.step == section.steps
            if last or (section.validation_every and loop.step % section.validation_every == 0):
                measures = measured(model, held, section, workers)
                if track:
                    track.row(step=loop.step, split="validation", **measures)
            saves.done(due=last or loop.step % section.save_every == 0)
            began = time.perf_counter()
    if workers.first:
        saved(module, tokenizer, run.model, folder / "model")
        _conclude(folder, section, store, tokens, sum(p.numel() for p in params.values()))


def _stream(train: Rows, start: int, section: Pretrain, workers: Workers) -> Iterator[list[Row]]:
    """For each step from `start` on, this worker's rows."""
    if workers.on_ray:
        size = 24 * section.length
        tables = numbered(train.table, start, section.steps, section.batch_size, workers.rank, workers.count, size)
        yield from map(from_table, tables)
        return
    for step in range(start, section.steps):
        yield [train.row(n) for n in share(step * section.batch_size, section.batch_size, workers.rank, workers.count)]


def _step(
    model: LanguageModel, loop: OuterLoop, rows: list[Row], section: Pretrain, seed: int, workers: Workers
) -> dict[str, Any]:
    """One optimizer step with the mean loss over all workers' scored tokens (and pairs); what it was, for metrics.jsonl."""
    pairs = section.objective == "mlm+nsp"
    mine = [_scored(row) for row in rows]
    counts = torch.tensor([sum(of) for of in zip(*mine, strict=True)], dtype=torch.float64, device=workers.device)
    workers.sum(counts)
    scored, paired, read = counts.tolist()
    said = torch.zeros(4, dtype=torch.float64, device=workers.device)
    loss = 0.0
    model.module.train()
    for i, at in enumerate(range(0, len(rows), section.at_once)):
        if section.dropout:
            torch.manual_seed(
                int(generator(seed, f"pretrain dropout {workers.rank}/{workers.count} {i}", loop.step).integers(2**62))
            )
        found = model.sums(rows[at : at + section.at_once])
        total = found.loss.sum() / max(scored, 1) + found.pair_loss.sum() / max(paired, 1)
        total.backward()
        loss += float(total.detach())
        said += torch.stack(
            [t.detach().sum() for t in (found.loss, found.hits, found.pair_loss, found.pair_hits)]
        ).double()
    loop.counted(int(workers.first), loss)
    workers.sum(loop.sums)
    workers.sum(said)
    if not bool(loop.sums.isfinite().all()):
        raise UserError(
            f"pretrain.lr: at step {loop.step + 1} the loss or its gradient is not finite; lower it, or raise pretrain.warmup_steps, and "
            "start again: the run goes on from its newest checkpoint"
        )
    took = loop.update()
    token_loss, hits, pair_loss, pair_hits = said.tolist()
    row = {"loss": took.query_loss, "accuracy": hits / max(scored, 1)}
    if pairs:
        row |= {
            "mlm_loss": token_loss / max(scored, 1),
            "nsp_loss": pair_loss / max(paired, 1),
            "nsp_accuracy": pair_hits / max(paired, 1),
        }
    return {**row, "grad_norm": took.grad_norm, "lr": took.lr, "tokens": int(read)}


def _scored(row: Row) -> tuple[int, int, int]:
    """Scored tokens, pairs and tokens of a row."""
    answer = len(row.get("answer", ()))
    pairs = int((row["follows"] >= 0).sum()) if "follows" in row else 0
    return answer or len(row.get("places", ())), pairs, len(row["ids"]) + answer


def _conclude(folder: Path, section: Pretrain, store: TokenStore, tokens: int, parameters: int) -> None:
    """Writes pretrain.json, from which a finished pre-training is known."""
    measured = [
        {k: v for k, v in row.items() if k not in ("step", "split")}
        for row in rows_of(folder / "metrics.jsonl")
        if row.get("split") == "validation"
    ]
    found = {
        "objective": section.objective, "steps": section.steps, "tokens": tokens, "parameters": parameters,
        "text": {name: store.summary[name] for name in ("train", "validation", "vocabulary", "origins")},
        "before": measured[0], "after": measured[-1],
    }  # fmt: skip
    temporary = folder / ".pretrain.json"
    temporary.write_text(json.dumps(found, indent=1), encoding="utf-8")
    temporary.replace(folder / "pretrain.json")
