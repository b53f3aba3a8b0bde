"""Models that stages left or that were exported, wherever they lie: what a `Learner` is made of."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from raymeta import __version__, checkpoint, export, yaml12
from raymeta.algorithms import Algorithm
from raymeta.checkpoint import Checkpoint
from raymeta.config import Run
from raymeta.errors import UserError, did_you_mean, first_line
from raymeta.heads import Head
from raymeta.layers import Params
from raymeta.model import Backbone, Network
from raymeta.stages.evaluate import fitting, loaded, meta_parameters, read
from raymeta.tasks import Tasks
from raymeta.workers import Workers

FORMAT = 1
"""Of raymeta.json."""
_TOLD = {"seed", "model", "tasks", "algorithm", "outer", "pretrain", "finetune"}
"""The sections of a run that a card repeats."""


@dataclass(frozen=True)
class Kept:
    """A model, as `Learner` and `Adapted` explain; classes: empty where it is not adapted."""

    network: Network
    tasks: Tasks
    algorithm: Algorithm
    params: Params
    tokenizer: Any
    inner_steps: int | None
    about: dict[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] = ()
    shown: int = 0


def found(where: str | Path, device: torch.device, part: str | None) -> Kept:
    """The model in a checkpoint, in a run's folder (its best), in an exported folder or in a repository of the hub.

    Raises UserError where there is none.
    """
    folder = Path(where).expanduser()
    if not folder.exists() and str(where).count("/") == 1 and not str(where).startswith((".", "/", "~")):
        folder = _downloaded(str(where))
    if (folder / "raymeta.json").is_file():
        return _of_export(folder, device)
    if (folder / "state.json").is_file():
        return of_checkpoint(checkpoint.load(folder), device, part)
    if (folder / "checkpoints").is_dir():
        start = checkpoint.best(folder / "checkpoints")
        if start is None:
            raise UserError(f"{folder} has no checkpoint yet; run it first")
        return of_checkpoint(start, device, part)
    raise UserError(
        f"{folder} is no checkpoint, no run's folder and no folder that raymeta exported; give one, like results/NAME-HASH"
    )


def _downloaded(repo: str) -> Path:
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo))
    except Exception as error:  # the hub's client raises kinds of its own, and those of what it uses
        raise UserError(
            f"{repo!r} is no folder here, and was not found on the Hugging Face hub: {first_line(error)}; give a run's folder, a "
            "checkpoint, an exported folder, or a repository (with a network)"
        ) from error


def of_checkpoint(start: Checkpoint, device: torch.device, part: str | None = None) -> Kept:
    """What a stage left: the meta-trained model, or the fine-tuned one, whose state names the classes.

    part: of a run that mixes corpora, whose kind of task; None: the first one's.
    """
    run = Run.of(yaml12.read(start.folder / "run.yaml"))
    parts = {one.name: one.tasks for one in run.parts}
    if part is not None and part not in parts:
        raise UserError(f"part: the run has no part {part!r}{did_you_mean(part, parts)} (parts: {', '.join(parts)})")
    network = loaded(run, Workers(device=device))
    first = meta_parameters(run, network, Workers(device=device))
    about: dict[str, Any] = {
        "base_model": run.model.name, "steps": start.step, "settings": run.model_dump(mode="json", include=_TOLD, exclude_none=True),
    }  # fmt: skip
    place = start.folder.parent.parent
    classes = start.state.get("classes")
    if classes is None:
        tasks, params = parts[part or next(iter(parts))], fitting(start, first)
        known = read(place / "evaluation.json")
        if known and known["asked"]["sha256"] == start.state["sha256"]["params.safetensors"]:
            about["evaluation"] = {"settings": known["settings"]}
    else:
        tasks, params = Tasks.model_validate(start.state["tasks"]), start.params()
        network.head = Head.model_validate(start.state["head"])
        about["report"] = read(place / "test.json")
    params = {**first, **{n: p.to(device) for n, p in params.items()}}
    tokenizer = run.backbone.tokenizer()
    return Kept(network, tasks, run.algorithm, params, tokenizer, run.evaluate.inner_steps, about, tuple(classes or ()))


def _of_export(folder: Path, device: torch.device) -> Kept:
    values = json.loads((folder / "raymeta.json").read_text(encoding="utf-8"))
    if values["format"] != FORMAT:
        raise UserError(
            f"{folder} was exported by raymeta {values['raymeta']}, in a way that {__version__} does not read"
        )
    backbone = Backbone.model_validate({**values["model"], "name": str(folder)})
    tasks, classes = Tasks.model_validate(values["tasks"]), tuple(values["classes"] or ())
    outputs = tasks.outputs_for(len(classes) or tasks.ways[1])
    network, params = export.read(backbone, values["kind"], outputs, tasks.slots, folder)
    network.to(device)
    return Kept(
        network, tasks, Algorithm.model_validate(values["algorithm"]), {n: p.to(device) for n, p in params.items()},
        backbone.tokenizer(), values["inner_steps"], values["about"], classes, values["shown"],
    )  # fmt: skip
