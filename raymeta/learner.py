"""A meta-trained model in use: it adapts to a new task from a few examples, in this process and without Ray."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raymeta import __version__, export
from raymeta.algorithms import Algorithm
from raymeta.card import card
from raymeta.checkpoint import Checkpoint
from raymeta.episodes import Episode, Examples
from raymeta.errors import UserError, did_you_mean
from raymeta.layers import Params
from raymeta.loading import FORMAT, found, of_checkpoint
from raymeta.model import Network
from raymeta.plain import logits, whole
from raymeta.tasks import Tasks
from raymeta.tasks._spans import Span, spans
from raymeta.tasks._text_to_text import Generation
from raymeta.tasks.entities import Entities
from raymeta.writing import Sampling, written

_TEXTS_AT_ONCE = 64


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
    def from_pretrained(
        cls, where: str | Path | Checkpoint, device: str | torch.device | None = None, part: str | None = None
    ) -> Self:
        """The learner in a checkpoint, in a run's folder (its best one) or in an exported folder; of a fine-tuned or exported
        classifier, an `Adapted`. device: absent, a GPU where there is one. part: of a run that mixes corpora, whose kind of
        task; absent: the first one's.

        Raises UserError where there is no such thing.
        """
        at = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        kept = of_checkpoint(where, at, part) if isinstance(where, Checkpoint) else found(where, at, part)
        values = {name: getattr(kept, name) for name in Learner.__dataclass_fields__}
        one = Adapted(**values, classes=kept.classes, shown=kept.shown) if kept.classes else Learner(**values)
        if not isinstance(one, cls):
            raise UserError(
                f"{where} is not adapted to a task; load it with Learner.from_pretrained, and give examples to adapt()"
            )
        return one

    def adapt(self, /, *columns: Sequence[Any], inner_steps: int | None = None, **roles: Sequence[Any]) -> "Adapted":
        """The model adapted to the task of these examples: texts and labels (or what else the tasks' roles are, in their order
        or by name), as many of each; sentences with entities may be strings with [marks](type). Where answers are texts:
        sources and targets, and by name `task`, if the template names it.

        Its classes are the labels, in the order in which they first appear. Raises UserError for examples that cannot be used.
        """
        names = self.tasks.reads()
        rows = [self.tasks.typed(row) for row in _rows(names, self._optional, columns, roles)]
        _complete(rows[0], names)
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
        values = {name: getattr(self, name) for name in Learner.__dataclass_fields__}
        return Adapted(**{**values, "params": params}, classes=classes, shown=len(rows))

    @property
    def _optional(self) -> tuple[str, ...]:
        """The roles that may be left out."""
        return (*self.tasks.optional, *(("task",) if self.tasks.generates else ()))

    def _check(self, classes: Sequence[str]) -> None:
        if self.tasks.generates:
            return
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
            "format": FORMAT, "raymeta": __version__, "kind": kind, "model": self.network.backbone.model_copy(update=settings).model_dump(mode="json"),
            "tasks": self.tasks.model_dump(mode="json"), "algorithm": self.algorithm.model_dump(mode="json"), "inner_steps": self.inner_steps,
            "classes": classes, "shown": shown, "about": self.about,
        }  # fmt: skip
        prompt = self.tasks.prompt(self.tokenizer) if isinstance(self.tasks, Generation) else ""
        told = card(folder.name, kind, loads, self.about, classes, shown, prompt)
        (folder / "README.md").write_text(told, encoding="utf-8")
        (folder / "raymeta.json").write_text(json.dumps(values, indent=1), encoding="utf-8")

    def _write(self, folder: Path) -> tuple[str, str]:
        """Writes weights and tokenizer; gives what follows `AutoModelFor`, or nothing, and the class that holds them."""
        if self.tasks.generates:
            longest = self.tasks.max_target_length if isinstance(self.tasks, Generation) else None
            return export.write_writer(self.network, self.params, self.tokenizer, longest, folder)
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
        """The answer to each text: a label, or what else this kind of task answers; of sentences, given as
        words or as strings, a BIO tag for each word; where answers are texts, what `write` writes."""
        if isinstance(self.tasks, Generation):
            return self.write(*columns, sampling=None, **roles)
        return [
            answer
            for scores, examples, rows in self._scored(columns, roles)
            for answer in self.tasks.answers(scores, examples, self.classes, rows)
        ]

    def write(self, /, *columns: Sequence[Any], sampling: Sampling | None = None, **roles: Sequence[Any]) -> list[str]:
        """The text that the model writes for each source, of the likeliest tokens or, with `sampling`, of drawn ones.

        A role `task` that the template names is that of the examples, if it is not given."""
        if not isinstance(self.tasks, Generation):
            raise UserError(f"write: the answers of {self.tasks.kind} are no texts that a model writes; use predict()")
        texts: list[str] = []
        end, limit = self.tasks.end(self.tokenizer), self.tasks.max_target_length
        for asked, _ in self._asked(columns, roles):
            answers = written(self.network, self.params, asked, end, limit, sampling)
            texts += self.tokenizer.batch_decode(answers, skip_special_tokens=True)
        return texts

    def predict_proba(self, /, *columns: Sequence[Any], **roles: Sequence[Any]) -> Any:
        """The probability of each output (`output_names` names them): an array [text, output], or where a text has several
        items, a list of arrays [item, output]."""
        if self.tasks.fixed_outputs or self.tasks.generates:
            raise UserError(
                f"probabilities are of classes, and the outputs of {self.tasks.kind} are none: use predict()"
            )
        found: list[npt.NDArray[np.float64]] = []
        for scores, examples, _ in self._scored(columns, roles):
            sizes = self.tasks.items(examples)
            found += [p.numpy() for p in torch.split(scores.double().softmax(-1), sizes)]
        one_each = type(self.tasks).items is Tasks.items
        return np.concatenate(found) if one_each else found

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
        if (
            not kind
        ):  # a language model; or transformers has no class for such answers: the encoder, and the head beside it
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
        if self.tasks.generates:
            raise UserError(f"{self.tasks.kind} has no classes to score; what the model writes, write() gives")
        for asked, part in self._asked(columns, roles):
            shown = _examples(self.tasks, self._encoded(part[:1]), self.classes)
            found = logits(
                self.network, self.tasks, self.params, asked.to(self._device), self.classes, shown.to(self._device)
            )
            yield found.cpu(), asked, part

    def _asked(
        self, columns: Sequence[Sequence[Any]], roles: dict[str, Sequence[Any]]
    ) -> Iterator[tuple[Examples, list[dict[str, Any]]]]:
        """What is asked, as examples and rows, some texts at a time."""
        names = self.tasks.reads()[:-1]
        given = _rows(names, self._optional, columns, roles)
        _complete(given[0], names)
        rows = [self.tasks.asked(row, self.classes) for row in given]
        for start in range(0, len(rows), _TEXTS_AT_ONCE):
            part = rows[start : start + _TEXTS_AT_ONCE]
            yield _examples(self.tasks, self._encoded(part), self.classes), part


def _rows(
    names: tuple[str, ...], optional: tuple[str, ...], columns: Sequence[Sequence[Any]], roles: dict[str, Sequence[Any]]
) -> list[dict[str, Any]]:
    """Rows of columns that are given in the order of `names`, or by name; `optional` ones only by name."""
    order = ", ".join(names)
    known = (*names, *optional)
    if len(columns) > len(names):
        raise UserError(f"{len(columns)} lists were given, but there are {len(names)} roles: {order}")
    given = dict(zip(names, columns, strict=False))
    for name, column in roles.items():
        if name not in known:
            raise UserError(f"no role {name!r}{did_you_mean(name, known)} (roles: {', '.join(known)})")
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
