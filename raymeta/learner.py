"""A meta-trained model in use: it adapts to a new task from a few examples, in this process and without Ray."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raymeta import __version__, checkpoint, export, yaml12
from raymeta.algorithms import Algorithm
from raymeta.card import card
from raymeta.checkpoint import Checkpoint
from raymeta.config import Run
from raymeta.episodes import Episode, Examples
from raymeta.errors import UserError, did_you_mean, first_line
from raymeta.heads import Head
from raymeta.layers import Params
from raymeta.model import Backbone, Network
from raymeta.plain import logits, whole
from raymeta.stages.evaluate import fitting, loaded, meta_parameters, read
from raymeta.tasks import Tasks
from raymeta.tasks._spans import Span, spans
from raymeta.tasks.entities import Entities
from raymeta.workers import Workers

_TEXTS_AT_ONCE = 64
_FORMAT = 1


@dataclass(frozen=True)
class Learner:
    """A meta-trained model, and how it adapts.

    inner_steps: as the model was evaluated, None: as the algorithm says; about: what a model card tells of it, as plain data:
    base_model, steps, settings, evaluation (of evaluation.json) or report (of a fine-tuned model).
    """

    network: Network = field(repr=False)
    tasks: Tasks
    algorithm: Algorithm
    params: Params = field(repr=False)
    tokenizer: Any = field(repr=False)
    inner_steps: int | None = None
    about: dict[str, Any] = field(default_factory=dict, repr=False)

    @classmethod
    def from_pretrained(cls, where: str | Path | Checkpoint, device: str | torch.device | None = None) -> Self:
        """The learner in a checkpoint, in a run's folder (its best one) or in an exported folder; of a fine-tuned or exported
        classifier, an `Adapted`. device: absent, a GPU where there is one.

        Raises UserError where there is no such thing.
        """
        at = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        found = _of_checkpoint(where, at) if isinstance(where, Checkpoint) else _found(where, at)
        if not isinstance(found, cls):
            raise UserError(
                f"{where} is not adapted to a task; load it with Learner.from_pretrained, and give examples to adapt()"
            )
        return found

    def adapt(self, /, *columns: Sequence[Any], inner_steps: int | None = None, **roles: Sequence[Any]) -> "Adapted":
        """The model adapted to the task of these examples: texts and labels (or what else the tasks' roles are, in their order
        or by name), as many of each; sentences with entities may be strings with [marks](type).

        Its classes are the labels, in the order in which they first appear. Raises UserError for examples that cannot be used.
        """
        rows = [self.tasks.typed(row) for row in _rows(self.tasks.roles, columns, roles)]
        _complete(rows[0], self.tasks.roles)
        encoded = self._encoded(rows)
        classes = tuple(dict.fromkeys(name for row in encoded for name in row["classes"]))
        self._check(classes)
        examples = _examples(self.tasks, encoded, classes)
        episode = Episode(0, "shown", classes, examples, _examples(self.tasks, encoded[:1], classes)).to(self._device)
        steps = self.inner_steps if inner_steps is None else inner_steps
        with torch.no_grad():
            inner = self.algorithm.bound(self.network, self.tasks, [episode], learn=False)
            fast = self.algorithm.adapt(inner, inner.opened(self.params, learn=False), steps=steps)
            params = whole(inner, fast, self.params)
        return _adapted(replace(self, params=params), classes, len(rows))

    def _check(self, classes: Sequence[str]) -> None:
        if not classes:
            raise UserError("adapt: the examples have no class; give some whose answer is one")
        outputs = self.tasks.outputs_for(len(classes))
        if outputs < 2:
            raise UserError(f"adapt: all examples are {classes[0]!r}; give examples of at least two classes")
        known = self.params.get("head.weight")
        if self.network.head.kind == "learned" and known is not None and outputs > len(known):
            raise UserError(
                f"adapt: the learned head has {len(known)} outputs, and {len(classes)} classes need {outputs}; give fewer "
                "classes, or meta-train with model.head prototype or zero, which take any number"
            )

    def _encoded(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        for i, row in enumerate(rows):
            fault = self.tasks.fault(row)
            if fault:
                raise UserError(f"example {i}: {fault}")
        found = self.tasks.encode(rows, self.tokenizer, self.network.backbone.max_length)
        for i, row in enumerate(found):
            if row.get("fault"):
                raise UserError(f"example {i}: {row['fault']}")
        return found

    @property
    def _device(self) -> torch.device:
        return self.params[self.network.embedding].device

    def save_pretrained(self, folder: str | Path) -> None:
        """Writes a plain Hugging Face folder, which transformers loads without raymeta and `from_pretrained` loads again.

        The card in it says how. Raises UserError where the folder holds something else.
        """
        folder = Path(folder).expanduser()
        known = folder.is_dir() and any(folder.iterdir()) and not (folder / "raymeta.json").is_file()
        if known or folder.is_file():
            raise UserError(f"{folder} is not empty, and holds no exported model; name a new folder")
        kind, loads = self._write(folder)
        classes, shown = (self.classes, self.shown) if isinstance(self, Adapted) else (None, 0)
        settings = {"name": "", "head": self.network.head, "pooling": self.network.pooling, "trust_remote_code": False}
        values = {
            "format": _FORMAT, "raymeta": __version__, "kind": kind, "model": self.network.backbone.model_copy(update=settings).model_dump(mode="json"),
            "tasks": self.tasks.model_dump(mode="json"), "algorithm": self.algorithm.model_dump(mode="json"), "inner_steps": self.inner_steps,
            "classes": classes, "shown": shown, "about": self.about,
        }  # fmt: skip
        (folder / "README.md").write_text(card(folder.name, kind, loads, self.about, classes, shown), encoding="utf-8")
        (folder / "raymeta.json").write_text(json.dumps(values, indent=1), encoding="utf-8")

    def _write(self, folder: Path) -> tuple[str, str]:
        """Writes weights and tokenizer; gives what follows `AutoModelFor`, or nothing, and the class that holds them."""
        return "", export.write_encoder(self.network, self.params, self.tokenizer, folder)

    def push_to_hub(self, repo: str, private: bool = False) -> str:
        """Exports to a repository of the Hugging Face hub, made if need be; gives its address. Needs a network, and the
        token that `hf auth login` keeps; raises UserError without."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError, HFValidationError, OfflineModeIsEnabled

        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            try:
                api = HfApi()
                address = api.create_repo(repo, private=private, exist_ok=True)
                api.upload_folder(repo_id=repo, folder_path=folder, commit_message="Exported by raymeta")
            except (OSError, HfHubHTTPError, HFValidationError, OfflineModeIsEnabled) as error:
                raise UserError(
                    f"push_to_hub: {repo!r} was not uploaded: {error}; check the name, the network and `hf auth whoami`, or "
                    "use save_pretrained"
                ) from error
        return str(address)


@dataclass(frozen=True)
class Adapted(Learner):
    """A model adapted to one task. classes: in the order of the outputs; shown: from how many examples."""

    classes: tuple[str, ...] = ()
    shown: int = 0

    def logits(self, /, *columns: Sequence[Any], **roles: Sequence[Any]) -> Tensor:
        """Scores of the items (texts, or words of sentences, end to end), [item, output]."""
        return torch.cat([found for found, _, _ in self._scored(columns, roles)])

    def predict(self, /, *columns: Sequence[Any], **roles: Sequence[Any]) -> list[Any]:
        """The answer to each text: a label; or of sentences, given as words or as strings, a BIO tag for each word."""
        return [
            answer
            for scores, examples, rows in self._scored(columns, roles)
            for answer in self.tasks.answers(scores, examples, self.classes, rows)
        ]

    def predict_proba(self, /, *columns: Sequence[Any], **roles: Sequence[Any]) -> Any:
        """The probability of each output (`output_names` names them): an array [text, output], or where a text has several
        items, a list of arrays [item, output]."""
        found: list[npt.NDArray[np.float64]] = []
        one = True
        for scores, examples, _ in self._scored(columns, roles):
            sizes = self.tasks.items(examples)
            one = one and not isinstance(self.tasks, Entities)
            found += [p.numpy() for p in torch.split(scores.double().softmax(-1), sizes)]
        return np.concatenate(found) if one else found

    def spans(self, sentences: Sequence[str] | Sequence[Sequence[str]]) -> list[list[Span]]:
        """The entities of each sentence, with their type, text and place."""
        if not isinstance(self.tasks, Entities):
            raise UserError(f"spans are of entities; this model answers tasks of kind {self.tasks.kind}: use predict()")
        return [spans(given, tags) for given, tags in zip(sentences, self.predict(sentences), strict=True)]

    @property
    def output_names(self) -> list[str]:
        """What each output says: the classes, or the tags of entities."""
        return self.tasks.output_names(self.classes)

    def _write(self, folder: Path) -> tuple[str, str]:
        kind = self.tasks.auto_class
        if not kind:  # transformers has no class for such answers: the encoder, and the head beside it
            return super()._write(folder)
        names = self.output_names
        return kind, export.write_classifier(
            self.network, self.params, self.tokenizer, kind, names, self._samples(), folder
        )

    def _samples(self) -> list[export.Sample]:
        """A few texts of random tokens, and their scores."""
        random = torch.Generator().manual_seed(0)
        ids = torch.randint(len(self.tokenizer), (4, 6), generator=random)
        texts = [self.tokenizer.decode(some, skip_special_tokens=True) + " a" for some in ids]
        found = []
        for text in texts:
            for scores, examples, _ in self._scored([[text]], {}):
                picks = self.tasks.picks(examples, self.network.pooling)
                places = picks.token if self.tasks.auto_class == "TokenClassification" else None
                found.append(export.Sample(examples.ids, places, scores))
        return found

    def _scored(
        self, columns: Sequence[Sequence[Any]], roles: dict[str, Sequence[Any]]
    ) -> Iterator[tuple[Tensor, Examples, list[dict[str, Any]]]]:
        """Scores, examples and rows, some texts at a time."""
        names = self.tasks.roles[:-1]
        given = _rows(names, columns, roles)
        _complete(given[0], names)
        rows = [self.tasks.asked(row, self.classes) for row in given]
        for start in range(0, len(rows), _TEXTS_AT_ONCE):
            part = rows[start : start + _TEXTS_AT_ONCE]
            encoded = self._encoded(part)
            asked, shown = (_examples(self.tasks, some, self.classes) for some in (encoded, encoded[:1]))
            found = logits(
                self.network, self.tasks, self.params, asked.to(self._device), self.classes, shown.to(self._device)
            )
            yield found.cpu(), asked, part


def _rows(
    names: tuple[str, ...], columns: Sequence[Sequence[Any]], roles: dict[str, Sequence[Any]]
) -> list[dict[str, Any]]:
    """Rows of columns that are given in the order of `names`, or by name."""
    order = ", ".join(names)
    if len(columns) > len(names):
        raise UserError(f"{len(columns)} lists were given, but there are {len(names)} roles: {order}")
    given = dict(zip(names, columns, strict=False))
    for name, column in roles.items():
        if name not in names:
            raise UserError(f"no role {name!r}{did_you_mean(name, names)} (roles: {order})")
        if name in given:
            raise UserError(f"{name} is given twice")
        given[name] = column
    if not given:
        raise UserError(f"give a list of each role: {order}")
    for name, column in given.items():
        if isinstance(column, (str, bytes, dict, set)) or not hasattr(column, "__len__"):
            raise UserError(f"{name}: give a list, one entry for each text, not {type(column).__name__}")
    sizes = {name: len(column) for name, column in given.items()}
    if len(set(sizes.values())) > 1:
        raise UserError(f"the lists differ in length: {', '.join(f'{n} {size}' for n, size in sizes.items())}")
    if not next(iter(sizes.values())):
        raise UserError(f"no text was given; give at least one ({order})")
    return [dict(zip(given, values, strict=True)) for values in zip(*given.values(), strict=True)]


def _complete(row: dict[str, Any], names: Sequence[str]) -> None:
    missing = [name for name in names if name not in row]
    if missing:
        raise UserError(f"no {missing[0]} was given; give a list of each of {', '.join(names)}")


def _examples(tasks: Tasks, encoded: Sequence[dict[str, Any]], classes: Sequence[str]) -> Examples:
    table = {name: [row[name] for row in encoded] for name in encoded[0]}
    return tasks.examples(table, np.arange(len(encoded)), classes)


# finding it


def _found(where: str | Path, device: torch.device) -> Learner:
    """The learner in a folder, or in a repository of the hub."""
    folder = Path(where).expanduser()
    if not folder.exists() and str(where).count("/") == 1 and not str(where).startswith((".", "/", "~")):
        folder = _downloaded(str(where))
    if (folder / "raymeta.json").is_file():
        return _of_export(folder, device)
    if (folder / "state.json").is_file():
        return _of_checkpoint(checkpoint.load(folder), device)
    if (folder / "checkpoints").is_dir():
        last = checkpoint.newest(folder / "checkpoints")
        if last is None:
            raise UserError(f"{folder} has no checkpoint yet; run it first")
        best = last.state.get("best")
        return _of_checkpoint(
            checkpoint.load(last.folder.parent / f"step_{best['step']:06d}") if best else last, device
        )
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


def _of_checkpoint(start: Checkpoint, device: torch.device) -> Learner:
    """What a stage left: the meta-trained model, or the fine-tuned one, whose state names the classes."""
    run = Run.of(yaml12.read(start.folder / "run.yaml"))
    network = loaded(run, Workers(device=device))
    first = meta_parameters(run, network, Workers(device=device))
    place = start.folder.parent.parent
    about: dict[str, Any] = {
        "base_model": run.model.name, "steps": start.step, "settings": run.model_dump(mode="json", include=_TOLD, exclude_none=True),
    }  # fmt: skip
    learner = Learner(
        network, run.tasks, run.algorithm, first, run.backbone.tokenizer(), run.evaluate.inner_steps, about
    )
    classes = start.state.get("classes")
    if classes is None:
        found = read(place / "evaluation.json")
        if found and found["asked"]["sha256"] == start.state["sha256"]["params.safetensors"]:
            about["evaluation"] = {"settings": found["settings"]}
        return replace(learner, params={**first, **{n: p.to(device) for n, p in fitting(start, first).items()}})
    network.head = Head.model_validate(start.state["head"])
    if (place / "test.json").is_file():
        about["report"] = json.loads((place / "test.json").read_text(encoding="utf-8"))
    params = {**first, **{n: p.to(device) for n, p in start.params().items()}}
    tasks = Tasks.model_validate(start.state["tasks"])
    return _adapted(replace(learner, tasks=tasks, params=params), tuple(classes), 0)


_TOLD = {"seed", "model", "tasks", "algorithm", "outer", "pretrain", "finetune"}
"""The sections of a run that a card repeats."""


def _of_export(folder: Path, device: torch.device) -> Learner:
    values = json.loads((folder / "raymeta.json").read_text(encoding="utf-8"))
    if values["format"] != _FORMAT:
        raise UserError(
            f"{folder} was exported by raymeta {values['raymeta']}, in a way that {__version__} does not read"
        )
    backbone = Backbone.model_validate({**values["model"], "name": str(folder)})
    tasks, classes = Tasks.model_validate(values["tasks"]), values["classes"]
    outputs = tasks.outputs_for(len(classes) if classes else tasks.ways[1])
    network, params = export.read(backbone, values["kind"], outputs, tasks.slots, folder)
    network.to(device)
    params = {n: p.to(device) for n, p in params.items()}
    algorithm = Algorithm.model_validate(values["algorithm"])
    found = Learner(network, tasks, algorithm, params, backbone.tokenizer(), values["inner_steps"], values["about"])
    return _adapted(found, tuple(classes), values["shown"]) if classes else found


def _adapted(learner: Learner, classes: tuple[str, ...], shown: int) -> "Adapted":
    return Adapted(
        **{name: getattr(learner, name) for name in Learner.__dataclass_fields__}, classes=classes, shown=shown
    )
