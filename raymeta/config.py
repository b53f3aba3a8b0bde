"""A run: its sections, how it is read from YAML and `key=value`, checked, named and saved."""

import hashlib
import json
import re
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import (
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    ValidationError,
    field_validator,
    model_serializer,
    model_validator,
)
from pydantic_core import PydanticCustomError

from raymeta import yaml12
from raymeta.algorithms import Algorithm
from raymeta.cluster import Profile, profile_values
from raymeta.component import Section
from raymeta.errors import UserError, did_you_mean, expanded, told
from raymeta.finetuning import Finetune
from raymeta.model import Backbone
from raymeta.outer import Outer
from raymeta.parts import Corpora, Entry, Part, parts_of
from raymeta.pretraining import Pretrain
from raymeta.setfit import SetFit
from raymeta.tasks import Range, Tasks
from raymeta.tasks.classification import Classification


class Validation(Section):
    """How training looks at classes it does not train on, to keep the best checkpoint."""

    every: int = Field(100, ge=0)
    """Outer steps between validations; 0: none, and the last checkpoint counts as the best."""
    episodes: int = Field(100, ge=2)
    """Episodes of a validation: always the same ones."""
    inner_steps: int | None = Field(None, ge=0)
    """Inner steps in validation; absent: as in training."""


class Evaluate(Section):
    """How a finished model is measured on held-out classes."""

    split: Literal["train", "validation", "test"] = "test"
    """Whose episodes."""
    episodes: int = Field(600, ge=2)
    """Episodes: a fixed, seeded set."""
    ways: Range | None = None
    """Classes of an episode; absent: as in training."""
    shots: tuple[int, ...] | None = None
    """Support examples a class: one number, or several to be measured one after the other; absent: as in training."""
    queries: int | None = Field(None, ge=1)
    """Query examples a class; absent: as in training."""
    inner_steps: int | None = Field(None, ge=0)
    """Inner steps; absent: as in training."""
    setfit: SetFit | None = None
    """Measures SetFit beside the other rows, on classification tasks (with the extra `baselines`); absent: it is not."""
    classes_from: Literal["all", "task"] | None = None
    """Whether an episode's classes come from one task or from the whole split; absent: as in training."""

    @field_validator("shots", mode="before")
    @classmethod
    def _one_or_several(cls, value: Any) -> Any:
        return (value,) if isinstance(value, int) and not isinstance(value, bool) else value

    @field_validator("shots")
    @classmethod
    def _positive(cls, value: tuple[int, ...] | None) -> tuple[int, ...] | None:
        if value is not None and (not value or min(value) < 1):
            raise ValueError(f"give at least 1 example a class, not {list(value)}")
        return value


class Save(Section):
    """Which checkpoints are kept."""

    every: int = Field(100, ge=1)
    """Outer steps between checkpoints; one is also written at the last step and where validation is best."""
    keep: int = Field(2, ge=1)
    """Newest checkpoints kept, beside the best."""


class Run(Section):
    """Everything that a run needs to know."""

    name: str
    """What the run is called; its folder is `storage/name-<hash of its settings>`."""
    description: str = ""
    """One line for `raymeta ls recipes`."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seeds episodes, new weights and dropout."""
    model: Backbone
    """The pretrained encoder and its head."""
    corpus: Corpora
    """Where rows come from: a corpus, or a list of several, each with `weight` and, if it likes, `tasks` beside its own
    settings."""
    tasks: SerializeAsAny[Tasks]
    """What a task is; with a list of corpora, for those that have no tasks of their own."""
    algorithm: SerializeAsAny[Algorithm] = Field(default_factory=lambda: Algorithm.model_validate({}))
    """How a task is learned, and how learning is learned."""
    pretrain: Pretrain | None = None
    """How the model is first trained on plain text; absent: it is not."""
    outer: Outer = Outer()
    """How meta-parameters move."""
    finetune: Finetune | None = None
    """How the meta-trained model is trained on one task with fixed labels; absent: it is not."""
    validation: Validation = Validation()
    """What training is judged by on its way."""
    evaluate: Evaluate = Evaluate()
    """What is measured at the end."""
    save: Save = Save()
    """Which checkpoints are kept."""
    storage: str = "results"
    """A folder for runs and prepared corpora; on a cluster of several machines, one that all of them see."""
    deterministic: bool | None = None
    """Bit-identical results for the same seed, machine and number of workers, by operations that always sum in the same order;
    absent: on CPUs, where it costs nothing, and not on GPUs, where some operations are slower so, and some have no such form."""
    cluster: Profile = Field(default_factory=lambda: Profile.model_validate(profile_values("local")))
    """Where it runs: the name of a profile in clusters/, a path to one, or the profile itself."""

    @model_validator(mode="before")
    @classmethod
    def _stored_where_the_cluster_says(cls, values: Any) -> Any:
        if not isinstance(values, dict) or "storage" in values:
            return values
        cluster = values.get("cluster")
        cluster = profile_values(cluster) if isinstance(cluster, str) else cluster
        storage = cluster.get("storage") if isinstance(cluster, dict) else None
        return {**values, "storage": storage} if storage else values

    @field_validator("cluster", mode="before")
    @classmethod
    def _named_profile(cls, value: Any) -> Any:
        return profile_values(value) if isinstance(value, str) else value

    @field_validator("name")
    @classmethod
    def _names_a_folder(cls, value: str) -> str:
        if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
            raise ValueError(f"{value!r} cannot name a folder; use letters, digits, dots, dashes and underscores")
        return value

    @field_validator("storage")
    @classmethod
    def _a_folder(cls, value: str) -> str:
        if "://" in value:
            raise ValueError(
                f"{value!r} is a URI; give a folder that every machine of the cluster sees (mount the bucket or share)"
            )
        return value

    @model_validator(mode="before")
    @classmethod
    def _tasks_of_entries(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("corpus"), (list, tuple)):
            return value
        own = [
            e.tasks if isinstance(e, Entry) else e.get("tasks") if isinstance(e, dict) else None
            for e in value["corpus"]
        ]
        if own and all(own):
            if "tasks" in value:
                raise ValueError("tasks: every entry of corpus has tasks of its own, so this is not read; leave it out")
            return {**value, "tasks": own[0]}
        if "tasks" not in value and any(own):
            raise ValueError(
                f"corpus[{own.index(None)}].tasks: is missing, and the run has no tasks either; give one of them"
            )
        return value

    @model_validator(mode="before")
    @classmethod
    def _learned_head_for_fixed_outputs(cls, value: Any) -> Any:
        if not isinstance(value, dict) or not isinstance(value.get("model"), dict) or "head" in value["model"]:
            return value
        corpus = value.get("corpus")
        entries = corpus if isinstance(corpus, list | tuple) else [{}]
        each = [(entry.get("tasks") if isinstance(entry, dict) else None) or value.get("tasks") for entry in entries]
        if not each or not all(map(_has_fixed_outputs, each)):
            return value
        return {**value, "model": {**value["model"], "head": "learned"}}

    @model_serializer(mode="wrap")
    def _without_tasks_that_are_not_read(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        if isinstance(self.corpus, tuple) and all(entry.tasks for entry in self.corpus):
            values.pop("tasks", None)
        return values

    @model_validator(mode="after")
    def _mixes(self) -> Self:
        parts = self.parts
        names = [part.name for part in parts]
        for name in names:
            if names.count(name) > 1 or name == "mean":
                twice = "names the mean over the parts" if name == "mean" else "is the name of two entries"
                raise ValueError(f"corpus: {name!r} {twice}; call one otherwise (called: {name}-2)")
        if not any(part.weight for part in parts):
            raise ValueError("corpus: every weight is 0, so there is nothing to train on; raise one")
        writing = {part.tasks.generates: part.tasks.kind for part in parts}
        if len(writing) > 1:
            raise ValueError(
                f"corpus: {writing[True]} is answered by texts that the model writes, {writing[False]} by classes; one model cannot do "
                "both, so make a run of each"
            )
        for part in parts:
            if part.tasks.fixed_outputs and self.model.head.reads_support:
                raise ValueError(
                    f"model.head: {self.model.head.kind} makes outputs of class means, and the outputs of {part.tasks.kind} are no classes; "
                    "use learned or zero"
                )
        answers = {(part.tasks.kind, part.tasks.outputs_for(2), part.tasks.slots): part.name for part in parts}
        if len(answers) > 1 and self.model.head.kind == "learned":
            raise ValueError(
                f"model.head: learned outputs cannot serve tasks of several kinds ({', '.join(answers.values())}); use prototype or zero, "
                "which are made anew for each episode"
            )
        return self

    @model_validator(mode="after")
    def _setfit_classifies(self) -> Self:
        kinds = [part.tasks.kind for part in self.parts if not isinstance(part.tasks, Classification)]
        if self.evaluate.setfit and len(kinds) == len(self.parts):
            raise ValueError(f"evaluate.setfit: SetFit classifies texts, and tasks.kind is {kinds[0]}; leave it out")
        return self

    @model_validator(mode="after")
    def _starts_from_something(self) -> Self:
        new = self.pretrain.architecture if self.pretrain else None
        if not self.model.name and new is None:
            raise ValueError("model.name: is missing; give a checkpoint, or a new model by pretrain.architecture")
        if self.pretrain and not self.model.name and self.pretrain.tokenizer is None:
            raise ValueError(
                "pretrain.tokenizer: is missing, and there is no model.name whose tokenizer a new model could use; give one of the two"
            )
        if new and new.max_positions < self.model.max_length:
            raise ValueError(
                f"model.max_length: texts of {self.model.max_length} tokens do not fit the {new.max_positions} positions of the new model; "
                "lower it, or raise pretrain.architecture.max_positions"
            )
        return self

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.outer.tasks_per_step < self.cluster.most:
            raise ValueError(
                f"outer.tasks_per_step: {self.outer.tasks_per_step} tasks a step cannot be shared by {self.cluster.most} workers; "
                f"raise it to at least {self.cluster.most}, or lower cluster.workers"
            )
        self.model.suited(any(part.tasks.generates for part in self.parts))
        return self

    @classmethod
    def load(cls, where: str, *overrides: str) -> Self:
        """The run in a YAML file or of a recipe's name, with `key.sub=value` overrides; raises UserError."""
        path = recipe_path(where)
        values = yaml12.read(path)
        values.setdefault("name", path.stem)
        for override in overrides:
            _override(values, override)
        return cls.of(values)

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """The run with these settings; raises UserError that names every setting that is wrong."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UserError("\n".join(told(error))) from error

    def changed(self, changes: dict[str, Any]) -> Self:
        """This run with other values for some settings, named by their dotted paths; raises UserError."""
        values = self.model_dump(mode="json")
        for key, value in changes.items():
            _put(values, key, value)
        return self.of(values)

    def yaml(self) -> str:
        """Every setting, defaults included, as YAML that `load` reads."""
        return yaml12.dump(self.model_dump(mode="json"))

    def hash(self) -> str:
        """Eight hex digits that change with every setting that training depends on."""
        matters = self.model_dump(
            mode="json", include={"seed", "model", "corpus", "tasks", "algorithm", "outer", "validation"}
        )
        for corpus in _each(matters["corpus"]):
            corpus.pop("bad_rows", None)
        if self.pretrain:
            matters["pretrained"] = self.pretrained.name
        return _eight_digits(matters)

    @property
    def pretrained(self) -> Path:
        """The folder of the pre-trained model, shared by all runs of this name that start from the same pre-training."""
        assert self.pretrain is not None
        section = self.pretrain.model_dump(mode="json")
        for corpus in section["corpus"]:
            if isinstance(corpus, dict):
                corpus.pop("bad_rows", None)
        start = self.model.model_dump(mode="json", include={"name", "trust_remote_code"})
        matters: dict[str, Any] = {"seed": self.seed, "model": start, "pretrain": section}
        if "own" in self.pretrain.corpus:
            matters |= self.model_dump(mode="json", include={"corpus", "tasks"})
            for corpus in _each(matters["corpus"]):
                for mixed in ("bad_rows", "weight", "called"):
                    corpus.pop(mixed, None)
            for owner in (matters, *_each(matters["corpus"])):
                for drawn in ("ways", "shots", "queries", "classes_from"):
                    (owner.get("tasks") or {}).pop(drawn, None)
        return self.root / "pretrained" / f"{self.name}-{_eight_digits(matters)}"

    @property
    def backbone(self) -> Backbone:
        """The model that every stage after pre-training starts from."""
        if self.pretrain is None:
            return self.model
        return self.model.model_copy(update={"name": str(self.pretrained / "model")})

    @property
    def root(self) -> Path:
        """The storage folder, expanded."""
        return Path(expanded(self.storage, "storage")).absolute()

    @property
    def folder(self) -> Path:
        """The run's own folder."""
        return self.root / f"{self.name}-{self.hash()}"

    @property
    def parts(self) -> tuple[Part, ...]:
        """The corpora that the run learns from, each with its tasks: one, or several that are mixed."""
        return parts_of(self.corpus, self.tasks)

    @property
    def exact(self) -> bool:
        """Whether operations are to sum in the same order each time."""
        return not self.cluster.gpu if self.deterministic is None else self.deterministic

    @property
    def metric(self) -> str:
        """The metric that decides which checkpoint is best: the tasks' own, or the mean of the parts'."""
        return self.parts[0].tasks.metric if len(self.parts) == 1 else "mean"

    def measured(self, shots: int | None, tasks: Tasks | None = None) -> Tasks:
        """The task settings (of a part, else the run's) for evaluation at `shots` shots (None: as in training)."""
        given = {
            "ways": self.evaluate.ways,
            "shots": shots,
            "queries": self.evaluate.queries,
            "classes_from": self.evaluate.classes_from,
        }
        values = {**(tasks or self.tasks).model_dump(), **{k: v for k, v in given.items() if v is not None}}
        return Tasks.model_validate(values)


def _eight_digits(of: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()[:8]


def recipes() -> dict[str, Path]:
    """The shipped runs, by name."""
    folder = Path(str(files("raymeta"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def recipe_path(where: str) -> Path:
    """The YAML file that a path or a recipe's name stands for; raises UserError."""
    path = Path(expanded(where, "RUN"))
    if path.is_dir() and (path / "run.yaml").is_file():
        return path / "run.yaml"
    if path.is_file():
        return path
    known = recipes()
    if where in known:
        return known[where]
    raise UserError(
        f"no run {where!r}: neither a file nor a recipe{did_you_mean(where, known)} (recipes: {', '.join(known)})"
    )


def _each(corpus: Any) -> list[dict[str, Any]]:
    """The settings of each of a run's corpora."""
    return corpus if isinstance(corpus, list) else [corpus]


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not all(key.split(".")):
        raise UserError(f"{override!r} is not an override; write key.sub=value")
    try:
        value = yaml12.parse(text)
    except ValueError as error:
        raise UserError(f"{key}: {text!r} is not a YAML value: {error}; put quotes around text") from error
    _put(values, key, value)


def _put(values: dict[str, Any], key: str, value: Any) -> None:
    *above, last = key.split(".")
    place: Any = values
    for part in above:
        at: Any = _index(key, part, place) if isinstance(place, list) else part
        inner = place[at] if isinstance(place, list) else place.get(part)
        if isinstance(inner, str) and part != "cluster":
            inner = {"kind": inner}
        elif isinstance(inner, str):
            inner = profile_values(inner)
        elif inner is None:
            inner = {}
        if not isinstance(inner, (dict, list)):
            raise UserError(f"{key}: {part} is {inner!r}, which has no settings below it")
        place[at] = inner
        place = inner
    place[_index(key, last, place) if isinstance(place, list) else last] = value


def _index(key: str, part: str, entries: list[Any]) -> int:
    if not part.isdecimal() or int(part) >= len(entries):
        raise UserError(f"{key}: {part!r} is no place in this list; write a number from 0 to {len(entries) - 1}")
    return int(part)


def _has_fixed_outputs(tasks: Any) -> bool:
    """Whether tasks, as a run writes them, have outputs that are no classes; what is no kind is told elsewhere."""
    kind = tasks.get("kind") if isinstance(tasks, dict) else tasks
    try:
        member = Tasks.member(kind) if isinstance(kind, str) else type(tasks)
    except PydanticCustomError:
        return False
    return bool(getattr(member, "fixed_outputs", False))
