"""What a run learns from: one corpus and its tasks, or several of them mixed by weight."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import (
    Discriminator,
    Field,
    SerializeAsAny,
    SerializerFunctionWrapHandler,
    Tag,
    field_validator,
    model_serializer,
    model_validator,
)

from raymeta.component import Section
from raymeta.corpora import Corpus
from raymeta.errors import HERE, Place
from raymeta.model import Backbone
from raymeta.prepare import check, prepare
from raymeta.store import Prepared
from raymeta.stream import Mixture, Source
from raymeta.tasks import Tasks


class Entry(Section):
    """One of several corpora: the corpus's own settings, and beside them how it takes part."""

    corpus: SerializeAsAny[Corpus]
    """Where its rows come from; in YAML, the corpus's settings stand beside those below."""
    tasks: SerializeAsAny[Tasks] | None = None
    """What a task of this corpus is; absent: the run's `tasks`."""
    weight: float = Field(1.0, ge=0)
    """How often an episode of training comes from this corpus, beside the others' weights; 0: it is only validated and
    evaluated on."""
    called: str | None = None
    """What tables and metrics call it; absent: its kind of task, numbered where several entries have the same."""

    @model_validator(mode="before")
    @classmethod
    def _side_by_side(cls, value: Any) -> Any:
        if isinstance(value, str):
            value = {"kind": value}
        if not isinstance(value, dict) or isinstance(value.get("corpus"), Corpus):
            return value
        own = {k: v for k, v in value.items() if k in cls.model_fields and k != "corpus"}
        return {"corpus": Corpus.model_validate({k: v for k, v in value.items() if k not in own}), **own}

    @model_serializer(mode="wrap")
    def _beside_the_corpus(self, handler: SerializerFunctionWrapHandler) -> dict[str, Any]:
        values: dict[str, Any] = handler(self)
        corpus = values.pop("corpus", {})
        return {**corpus, **{k: v for k, v in values.items() if v is not None}}

    @field_validator("called")
    @classmethod
    def _names_a_column(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", value):
            raise ValueError(f"{value!r} cannot name a column; use letters, digits, dots, dashes and underscores")
        return value


def _one_or_several(value: Any) -> str:
    return "corpus[]" if isinstance(value, (list, tuple)) else "corpus[one]"


Corpora = Annotated[
    Annotated[SerializeAsAny[Corpus], Tag("corpus[one]")]
    | Annotated[tuple[Entry, ...], Field(min_length=1), Tag("corpus[]")],
    Discriminator(_one_or_several),
]
"""One corpus, or a list of entries."""


@dataclass(frozen=True)
class Part:
    """A corpus and its tasks, as one of those that a run mixes. place: how messages name it."""

    name: str
    corpus: Corpus
    tasks: Tasks
    weight: float
    place: Place


def parts_of(corpus: Corpus | tuple[Entry, ...], tasks: Tasks) -> tuple[Part, ...]:
    """The parts of a run, in order; those of one corpus are one."""
    if isinstance(corpus, Corpus):
        return (Part(tasks.kind, corpus, tasks, 1.0, HERE),)
    kinds = [(entry.tasks or tasks).kind for entry in corpus]
    found = []
    for i, entry in enumerate(corpus):
        name = entry.called or (kinds[i] if kinds.count(kinds[i]) == 1 else f"{kinds[i]}-{i}")
        place = Place(f"corpus[{i}]", ("corpus", "tasks") if entry.tasks else ("corpus",))
        found.append(Part(name, entry.corpus, entry.tasks or tasks, entry.weight, place))
    return tuple(found)


def checked(parts: Sequence[Part]) -> None:
    """Raises UserError for what can be known of every part before its rows are read."""
    for part in parts:
        with part.place.told():
            check(part.corpus, part.tasks)


def prepared(
    parts: Sequence[Part],
    backbone: Backbone,
    seed: int,
    root: Path,
    on_ray: bool,
    say: Callable[[str], None] = print,
) -> list[str]:
    """The folder of each part's prepared corpus under `root`, made now where it is not there yet; raises UserError."""
    folders = []
    for part in parts:
        name = part.name

        def say_of(line: str, name: str = name) -> None:
            say(f"{name}: {line}" if len(parts) > 1 else line)

        with part.place.told():
            found = prepare(part.corpus, part.tasks, backbone, seed, root, on_ray=on_ray, say=say_of)
        folders.append(str(found.folder))
    return folders


def training(parts: Sequence[Part], folders: Sequence[str], seed: int) -> Source | Mixture:
    """Where episodes of training come from: the parts whose weight is not 0."""
    taken = [i for i, part in enumerate(parts) if part.weight > 0]
    sources = tuple(_source(parts, folders, i, "train", seed, parts[i].tasks) for i in taken)
    return sources[0] if len(taken) == 1 else Mixture(sources, tuple(parts[i].weight for i in taken))


def held_out(
    parts: Sequence[Part],
    folders: Sequence[str],
    split: str,
    seed: int,
    tasks: Callable[[Part], Tasks] = lambda part: part.tasks,
) -> list[tuple[Part, Source]]:
    """Each part that has the split, and where its episodes come from; raises UserError where none has it.

    tasks: what a task of a part is there, where it is not as in training.
    """
    sources = [_source(parts, folders, i, split, seed, tasks(part)) for i, part in enumerate(parts)]
    there = [split in Prepared(Path(folder)).summary["splits"] for folder in folders]
    if not any(there):
        sources[0].check()  # says which splits there are
    return [(part, source) for part, source, has in zip(parts, sources, there, strict=True) if has]


def left_out(parts: Sequence[Part], there: Sequence[tuple[Part, Source]], split: str) -> list[str]:
    """A line that names the parts which have no rows of the split, where there are some."""
    names = [part.name for part in parts if part.name not in {other.name for other, _ in there}]
    return (
        [f"{split}: no rows of {', '.join(names)}; measured on {', '.join(p.name for p, _ in there)}"] if names else []
    )


def _source(parts: Sequence[Part], folders: Sequence[str], i: int, split: str, seed: int, tasks: Tasks) -> Source:
    return Source(folders[i], tasks, split, seed, i, parts[i].place)
