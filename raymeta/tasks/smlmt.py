"""Classification tasks from unlabelled text: N words are the classes, sentences in which they are masked the examples."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from raymeta.component import Section
from raymeta.episodes import Drawn, Episode, Examples, Ints, Pool
from raymeta.errors import UserError
from raymeta.inner import Picks
from raymeta.metrics import classification_scores
from raymeta.tasks import Tasks, Texts, seen, text_picks

_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_TRIES = 500
"""Sentences of a word that are looked at before an episode is drawn anew."""


class Words(Section):
    """Which words of the text can be classes."""

    min_count: int = Field(20, ge=2)
    """Fewest texts that a word occurs in."""
    max_count: int = Field(2000, ge=2)
    """Most texts that it occurs in: the most frequent words say little of what a text is about."""
    min_length: int = Field(3, ge=1)
    """Fewest letters."""

    @model_validator(mode="after")
    def _some_are_left(self) -> "Words":
        if self.min_count > self.max_count:
            raise ValueError(
                f"min_count: {self.min_count} is more than max_count ({self.max_count}), so no word is left; lower it"
            )
        return self


class Smlmt(Tasks):
    """Subset masked language modelling tasks (Bansal et al. 2020, section 3.1, https://arxiv.org/abs/2009.08445).

    Reads the role `text` alone (a string, or a list of words), and `task` where there is one: no label is needed. N words are drawn, and of each K support
    and Q query texts that hold it and none of the other N - 1. Every occurrence of the word becomes one mask token, whatever
    its pieces and its case, so that the number of pieces tells nothing; which word it was is what is to be told. Of equal
    texts one is used. `split` with `of: class` shares out words, so that those of validation are never a class in training;
    texts are shared by the splits, as each holds words of all.
    """

    roles: ClassVar[tuple[str, ...]] = ("text",)
    metric: ClassVar[str] = "accuracy"

    words: Words = Words()
    """Which words can be classes."""
    feature: Literal["pooled", "mask"] = "pooled"
    """What is classified: `pooled`, the text's state, as `model.pooling` says and as classification does; `mask`, the mean state
    of its mask tokens."""

    @property
    def bounds(self) -> tuple[int, int]:
        return self.words.min_count, self.words.max_count

    def check(self, tokenizer: Any) -> None:
        if tokenizer.mask_token_id is None:
            raise UserError(
                f"tasks.kind: smlmt masks words, and the tokenizer of model.name ({type(tokenizer).__name__}) has no mask token; use "
                "an encoder that was trained with one (BERT, RoBERTa, DistilBERT, MiniLM)"
            )
        if not tokenizer.is_fast:
            raise UserError(
                f"tasks.kind: smlmt needs to know where words stand, and {type(tokenizer).__name__} does not say it; give model.name "
                "a fast tokenizer (a tokenizer.json)"
            )

    def fault(self, row: dict[str, Any]) -> str | None:
        text = row["text"]
        words = isinstance(text, (list, tuple, np.ndarray)) and all(isinstance(word, str) for word in text)
        if not isinstance(text, str) and not words:
            return f"text is {seen(text)}, not a string or a list of words"
        return "text is empty" if not _whole(text).strip() else None

    def encode(self, rows: Sequence[dict[str, Any]], tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
        texts = [_whole(row["text"]) for row in rows]
        found = tokenizer(texts, truncation=True, max_length=max_length, return_offsets_mapping=True)
        named: dict[tuple[int, ...], str] = {}
        encoded = []
        for text, ids, offsets, whole in zip(
            texts, found["input_ids"], found["offset_mapping"], found.encodings, strict=True
        ):
            places = [(at, end) for at, end in self._places(text, offsets) if tokenizer.unk_token_id not in ids[at:end]]
            word = []
            for at, end in places:
                written = tuple(ids[at:end])
                if written not in named:  # as the model sees it: without case and accents, if so it does
                    named[written] = tokenizer.decode(written).replace(" ", "").lower()
                word.append(named[written])
            names = list(dict.fromkeys(word))
            encoded.append(
                {
                    "ids": ids,
                    "classes": names,
                    "counts": [word.count(name) for name in names],
                    "cut": bool(whole.overflowing),
                    "first": [at for at, _ in places],
                    "pieces": [end - at for at, end in places],
                    "word": [names.index(name) for name in word],
                    "mask": [tokenizer.mask_token_id],
                    "key": _digest(ids),
                }
            )
        return encoded

    def _places(self, text: str, offsets: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
        """First token, and the one after the last, of each word that is long enough and not cut."""
        at = 0
        for match in _WORD.finditer(text):
            while at < len(offsets) and offsets[at][1] <= match.start():  # special tokens span 0:0
                at += 1
            end = at
            while end < len(offsets) and offsets[end][0] < match.end() and offsets[end][1] > match.start():
                end += 1
            if end > at and offsets[end - 1][1] >= match.end() and len(match[0]) >= self.words.min_length:
                yield at, end

    def class_need(self, shots: int) -> int:
        return shots + self.queries

    def _fill(self, pool: Pool, classes: Ints, task: int | None, shots: int, rng: np.random.Generator) -> Drawn | None:
        support, query = [], []
        wanted = {int(c) for c in classes}
        for cls in (int(c) for c in classes):
            rows = pool.rows_of(cls, task)
            others = wanted - {cls}
            picked: list[int] = []
            for place in rng.choice(len(rows), min(len(rows), _TRIES), replace=False):
                if others.isdisjoint(pool.held(int(rows[place]))):
                    picked.append(int(rows[place]))
                if len(picked) == shots + self.queries:
                    break
            else:
                return None
            support += picked[:shots]
            query += picked[shots:]
        names = tuple(pool.classes[c] for c in classes)
        return Drawn(names, np.array(support, dtype=np.int64), np.array(query, dtype=np.int64))

    def examples(self, table: dict[str, Any], rows: Ints, classes: Sequence[str]) -> Examples:
        place = {name: i for i, name in enumerate(classes)}
        labels: list[int] = []
        masked: list[Ints] = []
        masks: list[int] = []  # places of mask tokens, texts end to end
        each: list[int] = []
        start = 0
        for i, names in enumerate(table["classes"]):
            local = next(k for k, name in enumerate(names) if name in place)
            labels.append(place[names[local]])
            there = np.asarray(table["word"][i]) == local
            ids, at = _masked(
                np.asarray(table["ids"][i], dtype=np.int64), np.asarray(table["first"][i])[there],
                np.asarray(table["pieces"][i])[there], int(table["mask"][i][0]),
            )  # fmt: skip
            masked.append(ids)
            masks += (at + start).tolist()
            each.append(len(at))
            start += len(ids)
        return Texts.joined({"ids": masked}, rows, {"labels": labels, "masks": masks, "each": each})

    def picks(self, examples: Examples, pooling: str) -> Picks:
        if self.feature == "pooled":
            return text_picks(examples, pooling)
        each = examples.extra["each"]
        text = torch.repeat_interleave(torch.arange(len(each), device=each.device), each)
        return Picks(examples.extra["masks"], text, 1 / each[text].double())

    def targets(self, examples: Examples) -> Tensor:
        return examples.extra["labels"]

    def score(self, logits: Tensor, examples: Examples, classes: Sequence[str]) -> dict[str, float]:
        return classification_scores(logits.argmax(-1).tolist(), self.targets(examples).tolist(), len(classes))

    def show(self, episode: Episode, tokenizer: Any) -> str:
        lines = []
        for side, examples in (("support", episode.support), ("query", episode.query)):
            lines.append(f"{side}: {len(examples)} texts")
            ends = examples.lengths.cumsum(0).tolist()
            for i, (end, label) in enumerate(zip(ends, self.targets(examples).tolist(), strict=True)):
                text = tokenizer.decode(examples.ids[end - int(examples.lengths[i]) : end])
                lines.append(f"  {episode.classes[label]:<24} {text}")
        return "\n".join(lines)


def _whole(text: str | Sequence[str]) -> str:
    return text if isinstance(text, str) else " ".join(text)


def _masked(ids: Ints, first: Ints, pieces: Ints, mask: int) -> tuple[Ints, Ints]:
    """The tokens with the `pieces` from each `first` replaced by one `mask`, and where the masks stand."""
    kept = np.ones(len(ids), dtype=bool)
    for start, count in zip(first.tolist(), pieces.tolist(), strict=True):
        kept[start + 1 : start + count] = False
    out = ids.copy()
    out[first] = mask
    return out[kept], np.cumsum(kept)[first] - 1


def _digest(ids: Sequence[int]) -> list[int]:
    """64 bits that tell texts apart, as two int32."""
    digest = hashlib.blake2b(np.asarray(ids, dtype=np.int32).tobytes(), digest_size=8).digest()
    return [int(n) for n in np.frombuffer(digest, dtype=np.int32)]
