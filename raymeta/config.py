"""A run: its sections, how it is read from YAML and `key=value`, checked, named and saved."""

import hashlib
import json
import os
import re
from importlib.resources import files
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, Field, SerializeAsAny, ValidationError, field_validator, model_validator

from raymeta.algorithms import Algorithm
from raymeta.cluster import Profile, profile_values
from raymeta.component import Section
from raymeta.corpora import Corpus
from raymeta.errors import UserError, did_you_mean
from raymeta.model import Backbone
from raymeta.outer import Outer
from raymeta.tasks import Range, Tasks


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

    split: str = Field("test", pattern="^(train|validation|test)$")
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
    classes_from: str | None = Field(None, pattern="^(all|task)$")
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

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """What the run is called; its folder is `storage/name-<hash of its settings>`."""
    description: str = ""
    """One line for `raymeta ls recipes`."""
    seed: int = Field(0, ge=0, lt=2**63)
    """Seeds episodes, new weights and dropout."""
    model: Backbone
    """The pretrained encoder and its head."""
    corpus: SerializeAsAny[Corpus]
    """Where rows come from."""
    tasks: SerializeAsAny[Tasks]
    """What a task is."""
    algorithm: SerializeAsAny[Algorithm] = Field(default_factory=lambda: Algorithm.model_validate("maml"))
    """How a task is learned, and how learning is learned."""
    outer: Outer = Outer()
    """How meta-parameters move."""
    validation: Validation = Validation()
    """What training is judged by on its way."""
    evaluate: Evaluate = Evaluate()
    """What is measured at the end."""
    save: Save = Save()
    """Which checkpoints are kept."""
    storage: str = "results"
    """A folder for runs and prepared corpora; on a cluster of several machines, one that all of them see."""
    cluster: Profile = Field(default_factory=lambda: Profile.model_validate(profile_values("local")))
    """Where it runs: the name of a profile in clusters/, a path to one, or the profile itself."""

    @field_validator("cluster", mode="before")
    @classmethod
    def _named_profile(cls, value: Any) -> Any:
        return profile_values(value) if isinstance(value, str) else value

    @field_validator("storage")
    @classmethod
    def _a_folder(cls, value: str) -> str:
        if "://" in value:
            raise ValueError(
                f"{value!r} is a URI; give a folder that every machine of the cluster sees (mount the bucket or share)"
            )
        return value

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.outer.tasks_per_step < self.cluster.workers:
            raise ValueError(
                f"outer.tasks_per_step: {self.outer.tasks_per_step} tasks a step cannot be shared by {self.cluster.workers} workers; "
                f"raise it to at least {self.cluster.workers}, or lower cluster.workers"
            )
        return self

    @classmethod
    def load(cls, where: str, *overrides: str) -> Self:
        """The run in a YAML file or of a recipe's name, with `key.sub=value` overrides; raises UserError."""
        path = recipe_path(where)
        try:
            values = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        except UnicodeDecodeError as error:
            raise UserError(f"{path} is not UTF-8 text: {error}") from error
        except yaml.YAMLError as error:
            raise UserError(f"{path} is not YAML: {error}") from error
        if not isinstance(values, dict):
            raise UserError(f"{path} is not a mapping of settings")
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
            raise UserError("\n".join(_told(error))) from error

    def yaml(self) -> str:
        """Every setting, defaults included, as YAML that `load` reads."""
        return yaml.safe_dump(
            self.model_dump(mode="json"), sort_keys=False, allow_unicode=True, default_flow_style=None, width=120
        )

    def hash(self) -> str:
        """Eight hex digits that change with every setting that training depends on."""
        matters = self.model_dump(
            mode="json", include={"seed", "model", "corpus", "tasks", "algorithm", "outer", "validation"}
        )
        matters["corpus"].pop("bad_rows", None)
        return hashlib.sha256(json.dumps(matters, sort_keys=True).encode()).hexdigest()[:8]

    @property
    def root(self) -> Path:
        """The storage folder, expanded."""
        return Path(os.path.expandvars(self.storage)).expanduser().absolute()

    @property
    def folder(self) -> Path:
        """The run's own folder."""
        return self.root / f"{self.name}-{self.hash()}"

    def measured(self, shots: int | None) -> Tasks:
        """The task settings for evaluation at `shots` shots (None: as in training)."""
        given = {
            "ways": self.evaluate.ways,
            "shots": shots,
            "queries": self.evaluate.queries,
            "classes_from": self.evaluate.classes_from,
        }
        values = {**self.tasks.model_dump(), **{k: v for k, v in given.items() if v is not None}}
        return Tasks.model_validate(values)


def recipes() -> dict[str, Path]:
    """The shipped runs, by name."""
    folder = Path(str(files("raymeta"))) / "recipes"
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def recipe_path(where: str) -> Path:
    """The YAML file that a path or a recipe's name stands for; raises UserError."""
    path = Path(os.path.expandvars(where)).expanduser()
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


class _Loader(yaml.SafeLoader):
    """YAML 1.2 floats: 3e-4 is a number."""


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)$"),
    list("-+0123456789."),
)


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key:
        raise UserError(f"{override!r} is not an override; write key.sub=value")
    try:
        value = yaml.load(text, _Loader)
    except yaml.YAMLError as error:
        raise UserError(f"{key}: {text!r} is not a YAML value: {error}") from error
    *above, last = key.split(".")
    place = values
    for part in above:
        inner = place.get(part)
        if isinstance(inner, str) and part != "cluster":
            inner = {"kind": inner}
        elif isinstance(inner, str):
            inner = profile_values(inner)
        elif inner is None:
            inner = {}
        if not isinstance(inner, dict):
            raise UserError(f"{key}: {part} is {inner!r}, which has no settings below it")
        place[part] = inner
        place = inner
    place[last] = value


def _told(error: ValidationError, prefix: tuple[str | int, ...] = ()) -> list[str]:
    """One line for each mistake: the setting's dotted name, and what is wrong with its value."""
    lines = []
    for mistake in error.errors():
        inner = mistake.get("ctx", {}).get("error")
        place = (*prefix, *(p for p in mistake["loc"] if not (isinstance(p, str) and ("[" in p or p in _UNION_NAMES))))
        if isinstance(inner, ValidationError):
            lines += _told(inner, place)
            continue
        name = ".".join(str(p) for p in place)
        message = str(inner) if inner is not None else mistake["msg"]
        if mistake["type"] == "missing":
            message = "is missing, and has no default"
        given = mistake.get("input")
        shown = mistake["type"] not in ("setting", "value_error", "missing") and not isinstance(
            given, (dict, BaseModel)
        )
        line = f"{name}: {message}" + (f" (given: {given!r})" if shown else "")
        line = line.removeprefix(": ")
        if line not in lines:
            lines.append(line)
    return lines


_UNION_NAMES = frozenset({"str", "int", "Last", "tuple", "is-instance"})
