"""Text as tokens on disk: documents end to end, cut into tokens once, memory-mapped; one store for a text and a tokenizer.

Beside each token stands whether a word, or a sentence, begins with it.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raymeta import store
from raymeta.episodes import Ints
from raymeta.errors import Place, UserError
from raymeta.model import Backbone
from raymeta.prepare import mapped
from raymeta.pretraining import Pretrain
from raymeta.pretraining.texts import Origin, Sides, collect, rows_of
from raymeta.pretraining.vocabulary import trained
from raymeta.sorting import Part, accepted

VERSION = 1
"""Of what a store looks like on disk."""
WORD, SENTENCE = 1, 2
"""Bits of a token's flags: a word, a sentence begins here."""
SIDES = ("train", "validation")
Side = Literal["train", "validation"]

_ENDS = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]*[^\Wa-z_])|(?<=[。！？])|\n\s*")
"""Between two sentences: after a full stop or its like, before what does not begin in lower case; or at a line's end."""


@dataclass(frozen=True)
class Documents:
    """The documents of one side: tokens [token] and their flags [token], end to end; start [document + 1]."""

    tokens: Ints
    flags: npt.NDArray[np.uint8]
    start: Ints


@dataclass(frozen=True)
class TokenStore:
    """Text in a folder, as tokens of one tokenizer."""

    folder: Path

    @cached_property
    def summary(self) -> dict[str, Any]:
        """Documents and tokens of each side, and what each origin gave."""
        found: dict[str, Any] = json.loads((self.folder / "index.json").read_text(encoding="utf-8"))
        return found

    def documents(self, side: Side) -> Documents:
        """The documents of a side, memory-mapped."""
        return Documents(
            *(np.load(self.folder / f"{side}.{n}.npy", mmap_mode="r") for n in ("tokens", "flags", "start"))
        )

    def backbone(self, model: Backbone) -> Backbone:
        """`model` with the tokenizer that the text was cut with: a new one, if there is one in the store."""
        own = self.folder / "tokenizer"
        return model.model_copy(update={"name": str(own)}) if own.is_dir() else model


def origins(pretrain: Pretrain, own: Sequence[Origin]) -> list[Origin]:
    """Where text is read from, in order; `own`: what `own` stands for."""
    found: list[Origin] = []
    for i, corpus in enumerate(pretrain.corpus):
        if isinstance(corpus, str):
            found += own
        else:
            setting = f"pretrain.corpus[{i}]" if len(pretrain.corpus) > 1 else "pretrain.corpus"
            found.append(Origin(corpus, None, setting, Place(setting)))
    return found


def tokenized(
    pretrain: Pretrain,
    model: Backbone,
    own: Sequence[Origin],
    seed: int,
    root: Path,
    on_ray: bool,
    say: Callable[[str], None] = print,
) -> TokenStore:
    """The text as tokens in a folder under `root`, made now if it is not there yet; raises UserError.

    own: the run's own corpora, which `pretrain.corpus` may name.
    """
    read = origins(pretrain, own)
    folder = root / f"text-{_key(pretrain, model, read, seed)}"
    if not (folder / "index.json").is_file():
        building = root / f".building-{folder.name}-{os.getpid()}"
        shutil.rmtree(building, ignore_errors=True)
        (building / "parts").mkdir(parents=True)
        try:
            _build(building, pretrain, model, read, seed, on_ray)
            try:
                building.rename(folder)
            except OSError:
                if not folder.is_dir():  # else another process made the same meanwhile
                    raise
        finally:
            shutil.rmtree(building, ignore_errors=True)
    made = TokenStore(folder)
    for line in _account(made):
        say(line)
    return made


def _key(pretrain: Pretrain, model: Backbone, read: list[Origin], seed: int) -> str:
    """A name that changes with anything that a store depends on."""
    if pretrain.tokenizer and pretrain.architecture:
        new = pretrain.architecture
        words: Any = [pretrain.tokenizer.model_dump(mode="json"), new.type, new.max_positions]
    else:
        words = hashlib.sha256(repr(sorted(model.tokenizer().get_vocab().items())).encode()).hexdigest()
    parts: list[Any] = [VERSION, words, pretrain.validation_share]
    for origin in read:
        with origin.place.told():
            parts += [origin.corpus.kind, origin.corpus.model_dump_json(), origin.corpus.fingerprint()]
        if origin.tasks:
            own = origin.tasks.model_dump_json(exclude={"ways", "shots", "queries", "classes_from"})
            parts += [
                own,
                origin.tasks.fingerprint(),
                seed if origin.by_class or origin.split.of == "task" else None,
            ]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _build(building: Path, pretrain: Pretrain, model: Backbone, read: list[Origin], seed: int, on_ray: bool) -> None:
    held = collect(building / "parts", read, seed, pretrain.validation_share, on_ray)
    if pretrain.tokenizer and pretrain.architecture:
        new = pretrain.architecture
        tokenizer = trained(pretrain.tokenizer, new.type, held.texts, new.max_positions)
        tokenizer.save_pretrained(building / "tokenizer")
        (building / "tokenizer" / "config.json").write_text(json.dumps({"model_type": new.type}), encoding="utf-8")
    model = TokenStore(building).backbone(model)
    work = _Tokenize(str(building / "parts"), model)
    pairs = [pair for pair in zip(held.parts, held.sides, strict=True) if (pair[1] >= 0).any()]
    parts = mapped(_itself, work, pairs, on_ray)
    accepted(building / "quarantine.jsonl", parts, 1.0, held.names, "pretrain.corpus")
    sizes = _merge(building, parts, len(model.tokenizer()))
    for name in SIDES:
        if not sizes[name]["tokens"]:
            raise UserError(f"pretrain.corpus: no {name} document has a token that the tokenizer knows; name more text")
    summary = {
        "version": VERSION,
        **sizes,
        "vocabulary": len(model.tokenizer()),
        "origins": [{"from": o.name, **f} for o, f in zip(read, held.found, strict=True)],
    }
    shutil.rmtree(building / "parts")
    (building / "index.json").write_text(json.dumps(summary, indent=1), encoding="utf-8")


def _itself(pair: tuple[Part, Sides]) -> Iterator[tuple[Part, Sides]]:
    yield pair


@lru_cache(maxsize=1)
def _fast(model: Backbone) -> Any:
    """The tokenizer's fast core, which takes the names of special tokens in a text for text."""
    tokenizer = model.tokenizer()
    if not tokenizer.is_fast:
        raise UserError(f"model.name: {model.name!r} has no fast tokenizer (tokenizer.json), which pre-training needs")
    core = tokenizer.backend_tokenizer
    core.no_truncation()
    core.no_padding()
    core.encode_special_tokens = True
    return core


@dataclass(frozen=True)
class _Tokenize:
    """Cuts a part's documents into tokens, and writes them to a file of its own."""

    folder: str
    model: Backbone

    def __call__(self, pair: tuple[Part, Sides]) -> Part:
        part, sides = pair
        taken = np.flatnonzero(sides >= 0)
        table = rows_of(Path(self.folder), part).take(pa.array(taken))
        texts = table["text"].to_pylist()
        columns: dict[str, list[Any]] = {"ids": [], "flags": [], "side": []}
        faults = []
        found = _fast(self.model).encode_batch(texts, add_special_tokens=False)
        for number, side, text, encoded in zip(table["number"].to_pylist(), sides[taken], texts, found, strict=True):
            if not encoded.ids:
                faults.append((number, "no token is in it"))
                continue
            columns["ids"].append(np.array(encoded.ids, dtype=np.uint32))
            columns["flags"].append(flags(text, encoded))
            columns["side"].append(int(side))
        if columns["ids"]:
            types = {"ids": pa.list_(pa.uint32()), "flags": pa.list_(pa.uint8()), "side": pa.int8()}
            store.write(pa.table({n: pa.array(v, type=types[n]) for n, v in columns.items()}), _path(self.folder, part))
        return Part(part.order, part.number, len(taken), len(columns["ids"]), 0, faults)


def flags(text: str, encoded: Any) -> npt.NDArray[np.uint8]:
    """Where words and sentences of an encoded text begin, [token]."""
    words = np.array([-1 if word is None else word for word in encoded.word_ids])
    found = np.zeros(len(words), dtype=np.uint8)
    found[0] = WORD | SENTENCE
    found[1:][words[1:] != words[:-1]] = WORD
    ends = [match.end() for match in _ENDS.finditer(text)]
    if ends:
        begin = np.searchsorted([end for _, end in encoded.offsets], ends, side="right")
        begin = begin[begin < len(found)]
        found[begin] |= SENTENCE
    return found


def _path(folder: str, part: Part) -> Path:
    return Path(folder) / f"tokens-{part.order:06d}-{part.number:06d}.arrow"


def _merge(building: Path, parts: list[Part], vocabulary: int) -> dict[str, dict[str, int]]:
    """Writes each side's documents end to end, a part at a time; gives their numbers."""
    tables = [
        pa.ipc.open_file(pa.memory_map(str(_path(str(building / "parts"), p)))).read_all() for p in parts if p.kept
    ]
    sizes = {}
    for side, name in enumerate(SIDES):
        lengths = [t["ids"].combine_chunks().value_lengths().to_numpy()[t["side"].to_numpy() == side] for t in tables]
        start = np.concatenate([[0], np.cumsum(np.concatenate([*lengths, np.zeros(0, dtype=np.int64)]))]).astype(
            np.int64
        )
        np.save(building / f"{name}.start.npy", start)
        for column, key, dtype in (
            ("ids", "tokens", np.uint16 if vocabulary <= 1 << 16 else np.uint32), ("flags", "flags", np.uint8),
        ):  # fmt: skip
            out = np.lib.format.open_memmap(
                building / f"{name}.{key}.npy", mode="w+", dtype=dtype, shape=(int(start[-1]),)
            )
            at = 0
            for table in tables:
                mine = table.filter(pa.array(table["side"].to_numpy() == side))[column].combine_chunks().flatten()
                out[at : at + len(mine)] = mine.to_numpy()
                at += len(mine)
            out.flush()
        sizes[name] = {"documents": len(start) - 1, "tokens": int(start[-1])}
    return sizes


def _account(made: TokenStore) -> list[str]:
    """What a user should know of a text, a line each."""
    summary = made.summary
    lines = [
        "text: "
        + ", ".join(
            f"{summary[name]['documents']} documents with {summary[name]['tokens']} tokens {what}"
            for name, what in (("train", "to train on"), ("validation", "held out"))
        )
    ]
    for of in summary["origins"]:
        left_out = [
            f"{of[key]} {what}"
            for key, what in (
                ("other_rows", "rows of other splits left out"), ("repeated", "repeated ones left out"), ("bad", "bad rows set aside")
            )
            if of[key]
        ]  # fmt: skip
        documents = f"{of['train'] + of['validation']} documents"
        lines.append(f"  from {of['from']}: {', '.join([documents, *left_out])}")
    if any(of["bad"] for of in summary["origins"]):
        lines.append(f"  bad rows are named in {made.folder / 'quarantine.jsonl'}")
    return lines
