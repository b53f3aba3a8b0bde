"""Documents for pre-training: the text of corpora, and of a run's own training rows, each document once.

Of a run's own rows, only those are kept that its split gives to training, decided by the same function that splits them
for episodes. Which documents are held out goes by the hash of their text, so that a text is never on both sides.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raymeta import store
from raymeta.corpora import Corpus, Shard
from raymeta.episodes import SPLITS, Ints
from raymeta.errors import HERE, Place, UserError, did_you_mean
from raymeta.prepare import Chunk, Read, check, mapped, task_fault
from raymeta.sorting import Part, accepted, codes
from raymeta.splits import assigned
from raymeta.tasks import Split, Tasks

Sides = npt.NDArray[np.int8]
"""For each row: 0 to train on, 1 held out, -1 neither."""

_TYPES = {
    "number": pa.int64(), "text": pa.large_string(), "key": pa.uint64(), "origin": pa.string(), "task": pa.string(),
    "classes": pa.list_(pa.string()),
}  # fmt: skip


@dataclass(frozen=True)
class Origin:
    """A corpus that text is read from; `tasks`: only its rows for training, as these tasks split it; None: all rows.

    setting: the setting that names it; place: how messages from within do.
    """

    corpus: Corpus
    tasks: Tasks | None
    setting: str = "corpus"
    place: Place = HERE

    @property
    def name(self) -> str:
        """What a person calls it."""
        return f"own rows of {self.tasks.kind}" if self.tasks else f"{self.setting} ({self.corpus.kind})"

    def opened(self) -> tuple[list[Shard], dict[str, str | int]]:
        """Its shards, and role -> column; raises UserError where a file or column is missing."""
        if self.tasks:
            return check(self.corpus, self.tasks)
        shards, columns = self.corpus.check(self._text_columns(), None)
        read = [s for s in shards if s.split in (None, "train")]
        if not read:
            raise UserError(f"{self.setting}: none of its files is for training; name one under train")
        return read, columns

    def _text_columns(self) -> tuple[str, ...]:
        named = tuple(role for role in self.corpus.columns if role != "task")
        if named:
            return named
        shards = self.corpus.shards()
        there = self.corpus.names(shards[0]) if shards else []
        found = next((name for name in ("text", "tokens") if name in there), None)
        if shards and found is None:
            raise UserError(
                f"{self.setting}.columns: no column of {shards[0].name} is called text{did_you_mean('text', there)}; name those that "
                f"hold text (columns: {{text: {there[0] if there else '...'}}}; there are: {', '.join(there)})"
            )
        return (found or "text",)

    @property
    def roles(self) -> tuple[str, ...] | None:
        """The roles whose values are text; None: all that are read."""
        return None if self.tasks is None else tuple(r for r in self.tasks.text_roles if r in self.tasks.reads())

    @property
    def by_class(self) -> bool:
        """Whether it takes a row's classes to know what it is for."""
        split = self.split
        return split.of == "class" and not split.column and any(getattr(split, s) is not None for s in SPLITS)

    @property
    def split(self) -> Split:
        """How rows are shared out; where classes are words of a text (`Tasks.bounds`), texts are not shared out by them."""
        split = self.tasks.split if self.tasks else Split()
        shared = self.tasks is not None and self.tasks.bounds is not None
        return Split() if shared and split.of == "class" and not split.column else split


@dataclass(frozen=True)
class Collected:
    """Documents on disk: `parts` in reading order; sides of their rows; the names of the files they are from.

    found: for each origin, how many documents train and are held out, how many rows were left out and why, and, where it
    takes a row's classes to know what it is for, the classes that train.
    """

    folder: Path
    parts: list[Part]
    sides: list[Sides]
    names: list[str]
    found: list[dict[str, Any]]

    def texts(self, side: int = 0) -> Iterator[str]:
        """The documents of one side, in reading order."""
        for part, sides in zip(self.parts, self.sides, strict=True):
            for text, here in zip(rows_of(self.folder, part)["text"].to_pylist(), sides.tolist(), strict=True):
                if here == side:
                    yield text


def rows_of(folder: Path, part: Part) -> pa.Table:
    """What was kept of a part's rows."""
    if not part.kept:
        return pa.table({name: pa.array([], type=type_) for name, type_ in _TYPES.items()})
    return pa.ipc.open_file(pa.memory_map(str(folder / _file(part)))).read_all()


def _file(part: Part) -> str:
    return f"text-{part.order:06d}-{part.number:06d}.arrow"


def collect(folder: Path, origins: Sequence[Origin], seed: int, held_out: float, on_ray: bool) -> Collected:
    """Reads every origin's documents into `folder`; raises UserError where there is nothing to learn from."""
    parts: list[Part] = []
    names: list[str] = []
    keep: list[npt.NDArray[np.bool_]] = []
    owner: list[int] = []
    found: list[dict[str, Any]] = []
    for i, origin in enumerate(origins):
        with origin.place.told():
            shards, columns = origin.opened()
            shards = [replace(s, order=len(names) + at) for at, s in enumerate(shards)]
            names += [s.name for s in shards]
            here = mapped(Read(origin.corpus, columns), _Collect(str(folder), origin), shards, on_ray)
        accepted(folder.parent / "quarantine.jsonl", here, origin.corpus.bad_rows, names, origin.setting)
        training, learned = _for_training(folder, origin, here, seed)
        ends = np.cumsum([p.kept for p in here])[:-1]
        keep += np.split(training, ends)
        owner += [i] * len(here)
        parts += here
        rows, kept = sum(p.rows for p in here), sum(p.kept for p in here)
        found.append(
            {
                "rows": rows,
                "bad": rows - kept,
                "other_rows": int((~training).sum()),
                "classes": learned if origin.tasks else None,
            }
        )
    key = np.concatenate([rows_of(folder, p)["key"].to_numpy() for p in parts])
    usable = np.flatnonzero(np.concatenate(keep))
    once = usable[np.unique(key[usable], return_index=True)[1]]
    side = np.full(len(key), -1, dtype=np.int8)
    side[once] = (key[once] / 2.0**64 < held_out).astype(np.int8)
    sides = np.split(side, np.cumsum([p.kept for p in parts])[:-1])
    for i, of in enumerate(found):
        mine = np.concatenate([s for s, o in zip(sides, owner, strict=True) if o == i])
        taken = sum(int(k.sum()) for k, o in zip(keep, owner, strict=True) if o == i)
        of |= {"train": int((mine == 0).sum()), "validation": int((mine == 1).sum())}
        of["repeated"] = taken - of["train"] - of["validation"]
    _enough(side, held_out)
    return Collected(folder, parts, sides, names, found)


def _enough(side: Sides, held_out: float) -> None:
    train, validation = int((side == 0).sum()), int((side == 1).sum())
    if not train:
        raise UserError(
            "pretrain.corpus: no document is left to train on; name more text, or lower pretrain.validation_share"
        )
    if validation < 2:
        raise UserError(
            f"pretrain.validation_share: of {train + validation} documents {validation} would be held out, too few to measure on; "
            f"raise it from {held_out}, or name more text"
        )


@dataclass(frozen=True)
class _Collect:
    """Takes the text out of a chunk's rows, and writes what is good to a file of its own."""

    folder: str
    origin: Origin

    def __call__(self, chunk: Chunk) -> Part:
        origin, tasks = self.origin, self.origin.tasks
        faults: list[tuple[int, str]] = []
        kept: list[dict[str, Any]] = []
        for row in chunk.rows:
            fault = row.fault or (task_fault(row.values) or tasks.fault(row.values) if tasks else None)
            text = "" if fault else _text(row.values, origin.roles)
            fault = fault or (None if text.strip() else "there is no text in it")
            if fault:
                faults.append((row.number, fault))
                continue
            split = row.values.get("split", chunk.split)
            kept.append(
                {
                    "number": row.number,
                    "text": text,
                    "key": int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest()),
                    "origin": None if split is None else str(split),
                    "task": str(row.values.get("task", "")),
                    "values": row.values,
                }
            )
        if tasks and origin.by_class and kept:
            encoded = tasks.encode([row["values"] for row in kept], _bytes(), 1 << 20)
            faults += [(row["number"], e["fault"]) for row, e in zip(kept, encoded, strict=True) if e.get("fault")]
            kept = [row | {"classes": e["classes"]} for row, e in zip(kept, encoded, strict=True) if not e.get("fault")]
        part = Part(chunk.order, chunk.number, len(chunk.rows), len(kept), 0, sorted(faults))
        if kept:
            columns = {n: pa.array([row.get(n) for row in kept], type=type_) for n, type_ in _TYPES.items()}
            store.write(pa.table(columns), Path(self.folder) / _file(part))
        return part


def _text(values: dict[str, Any], roles: tuple[str, ...] | None) -> str:
    """A row's text: its columns of text, each on lines of its own; words of a list with spaces between them."""
    found = []
    for role in [r for r in values if r not in ("task", "split")] if roles is None else roles:
        value = values.get(role)
        if isinstance(value, str):
            found.append(value)
        elif isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
            found.append(("\n" if any(" " in v for v in value) else " ").join(value))
    return "\n".join(text for text in found if text.strip())


def _for_training(
    folder: Path, origin: Origin, parts: list[Part], seed: int
) -> tuple[npt.NDArray[np.bool_], list[str]]:
    """Which rows of an origin are for training, and, where that goes by class, the classes they hold."""
    tables = [rows_of(folder, p) for p in parts]
    rows = sum(len(t) for t in tables)
    if origin.tasks is None:
        return np.ones(rows, dtype=bool), []
    columns = {n: [t.column(n).combine_chunks() for t in tables if len(t)] for n in ("task", "origin", "classes")}
    tasks, task, _ = codes(columns["task"], None)
    origins, by_origin, _ = codes(columns["origin"], None)
    classes: list[str] = []
    held: Ints = np.zeros(0, dtype=np.int32)
    holders: Ints = np.zeros(rows, dtype=np.int64)
    if origin.by_class:
        classes, held, holders = codes([c.flatten() for c in columns["classes"]], columns["classes"])
    start = np.concatenate([[0], np.cumsum(holders)])
    side = assigned(origin.split, seed, classes, tasks, origins, held, start, task, by_origin)
    learned = np.unique(held[np.repeat(side == 0, holders)]).tolist() if origin.by_class else []
    return side == 0, [classes[c] for c in learned]


@lru_cache(maxsize=1)
def _bytes() -> Any:
    """A tokenizer of bytes: it cuts every text, and needs no training. Used where only a row's classes are asked for."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate([*special, *alphabet])}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]",
        mask_token="[MASK]", bos_token="[CLS]", eos_token="[SEP]",
    )  # fmt: skip
