"""Rows to learn from: each a pure function of (seed, side, number), so that a stopped run needs to know its step only.

A row is a dict of int32 arrays. `ids`: its tokens, texts end to end; `sizes` [text]: tokens of each text, special ones
included. `places`, `targets` [scored]: where something is to be predicted, and what. `mlm+nsp` adds `types` (0, 1 for the
first, second of two spans) and `follows` [text] (1: the second span follows the first; 0: it is from elsewhere; -100: there
is one span only). `span` has `answer` and `answer_sizes`, what the decoder is to write, in place of places and targets.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from raymeta.episodes import Ints, generator
from raymeta.pretraining import Objective
from raymeta.pretraining.frames import Frame
from raymeta.pretraining.plan import Plan, planned
from raymeta.pretraining.tokens import SENTENCE, WORD, Documents, Side, TokenStore

Row = dict[str, npt.NDArray[np.int32]]


@dataclass(frozen=True)
class Rows:
    """Where rows come from: a store, a side, a frame and a seed. Small, and the same anywhere."""

    folder: str
    side: Side
    frame: Frame
    several: bool
    seed: int

    def __len__(self) -> int:
        """Rows of one pass over the side."""
        return len(_opened(self)[1])

    def row(self, number: int) -> Row:
        """Row `number`: each pass takes all rows in an order of its own, with masks of its own."""
        documents, plan = _opened(self)
        epoch, place = divmod(number, len(plan))
        row = _order(self.seed, self.side, epoch, len(plan))[place]
        texts = plan.texts[plan.row[row] : plan.row[row + 1]]
        rng = generator(self.seed, f"pretrain {self.side}", number)
        found = _MAKE[self.frame.objective](documents, plan, texts, self.frame, rng)
        return {name: np.asarray(values, dtype=np.int32) for name, values in found.items()}

    def table(self, numbers: list[int]) -> pa.Table:
        """Rows as a table, as Ray Data carries them."""
        found = [self.row(n) for n in numbers]
        return pa.table({n: pa.array([row[n] for row in found], type=pa.list_(pa.int32())) for n in found[0]})


def from_table(table: pa.Table) -> list[Row]:
    """The rows that `Rows.table` wrote."""
    columns = {n: table[n].to_pylist() for n in table.column_names}
    return [{n: np.array(v[i], dtype=np.int32) for n, v in columns.items()} for i in range(len(table))]


@lru_cache(maxsize=8)
def _opened(rows: Rows) -> tuple[Documents, Plan]:
    store = TokenStore(Path(rows.folder))
    return store.documents(rows.side), planned(store, rows.side, rows.frame, rows.several)


@lru_cache(maxsize=4)
def _order(seed: int, side: Side, epoch: int, rows: int) -> Ints:
    return generator(seed, f"order of {side}", epoch).permutation(rows)


def _masked(ids: Ints, words: Ints, frame: Frame, rng: np.random.Generator) -> tuple[Ints, Ints, Ints]:
    """Masks a row: its new ids, the places that are to be restored, and what was there (Devlin et al. 2019, section 3.1).

    words: [place], the number of the word that a place belongs to, -1 for special tokens. Of the places, or with
    `whole_words` of the words, each is chosen with `mask_rate`; of those 80 % become the mask token, 10 % a random
    one, and 10 % stay.
    """
    if frame.whole_words:
        chosen = rng.random(int(words.max(initial=-1)) + 1) < frame.mask_rate
        chosen = np.append(chosen, False)[words]
    else:
        chosen = (rng.random(len(ids)) < frame.mask_rate) & (words >= 0)
    places = np.flatnonzero(chosen)
    targets = ids[places]
    ids = ids.copy()
    fate = rng.random(len(places))
    assert frame.mask is not None
    ids[places[fate < 0.8]] = frame.mask
    random = places[(fate >= 0.8) & (fate < 0.9)]
    ids[random] = frame.ordinary[rng.integers(len(frame.ordinary), size=len(random))]
    return ids, places, targets


def _mlm(documents: Documents, plan: Plan, texts: Ints, frame: Frame, rng: np.random.Generator) -> dict[str, Ints]:
    return _restored([([_span(plan, int(text))], None) for text in texts], documents, frame, rng)


def _mlm_nsp(documents: Documents, plan: Plan, texts: Ints, frame: Frame, rng: np.random.Generator) -> dict[str, Ints]:
    found: list[tuple[list[tuple[int, int]], int | None]] = []
    for text in texts:
        start, stop = _span(plan, int(text))
        at = _between(documents, start, stop, rng)
        if at is None:
            found.append(([(start, stop)], None))
        elif rng.random() < 0.5:
            found.append(([(start, at), (at, stop)], 1))
        else:
            found.append(([(start, at), _elsewhere(documents, plan, start, stop - at, rng)], 0))
    return _restored(found, documents, frame, rng)


def _span(plan: Plan, text: int) -> tuple[int, int]:
    return int(plan.start[text]), int(plan.start[text] + plan.size[text])


def _between(documents: Documents, start: int, stop: int, rng: np.random.Generator) -> int | None:
    """Where to part a text in two: between two of its sentences, else of its words; None where it has one word."""
    flags = documents.flags[start + 1 : stop]
    for kind in (SENTENCE, WORD):
        there = np.flatnonzero(flags & kind)
        if len(there):
            return start + 1 + int(there[rng.integers(len(there))])
    return None


def _elsewhere(documents: Documents, plan: Plan, start: int, size: int, rng: np.random.Generator) -> tuple[int, int]:
    """A second span from another document, parted from its own first as all are: at most `size` tokens."""
    own = int(np.searchsorted(documents.start, start, side="right")) - 1
    first, last = np.searchsorted(plan.start, documents.start[own : own + 2]).tolist()  # the document's texts
    drawn = int(rng.integers(len(plan.start) - (last - first)))
    there, stop = _span(plan, drawn if drawn < first else drawn + last - first)
    at = _between(documents, there, stop, rng)
    at = there if at is None else at
    return at, min(stop, at + size)


def _framed(before: tuple[int, ...], tokens: Ints, after: tuple[int, ...]) -> Ints:
    return np.concatenate([np.array(before, dtype=np.int64), tokens.astype(np.int64), np.array(after, dtype=np.int64)])


def _restored(
    texts: list[tuple[list[tuple[int, int]], int | None]], documents: Documents, frame: Frame, rng: np.random.Generator
) -> dict[str, Ints]:
    """A row of masked texts, each of one span or two."""
    ids: list[Ints] = []
    begins: list[Ints] = []
    types: list[Ints] = []
    sizes = []
    for spans, _ in texts:
        size = 0
        for i, (start, stop) in enumerate(spans):
            before = frame.start if i == 0 else ()
            piece = _framed(before, documents.tokens[start:stop], frame.between if i + 1 < len(spans) else frame.end)
            begin = np.full(len(piece), -1)
            begin[len(before) : len(before) + stop - start] = (documents.flags[start:stop] & WORD) > 0
            begin[len(before)] = 1  # a text that was cut within a word begins with what is left of it
            ids.append(piece)
            begins.append(begin)
            types.append(np.full(len(piece), i))
            size += len(piece)
        sizes.append(size)
    begin = np.concatenate(begins)
    words = np.where(begin < 0, -1, np.cumsum(begin > 0) - 1)
    masked, places, targets = _masked(np.concatenate(ids), words, frame, rng)
    found = {"ids": masked, "sizes": np.array(sizes), "places": places, "targets": targets}
    if frame.objective == "mlm+nsp":
        found |= {"types": np.concatenate(types), "follows": np.array([-100 if f is None else f for _, f in texts])}
    return found


def _clm(documents: Documents, plan: Plan, texts: Ints, frame: Frame, rng: np.random.Generator) -> dict[str, Ints]:
    """A row of whole texts, each token predicted from those before it in its text."""
    pieces = []
    for text in texts:
        start, stop = _span(plan, int(text))
        stops = (frame.stop,) if frame.stop is not None and plan.last[text] else ()
        pieces.append(_framed(frame.start, documents.tokens[start:stop], frame.end + stops))
    sizes = np.array([len(p) for p in pieces])
    ids = np.concatenate(pieces)
    ends = np.cumsum(sizes) - 1
    places = np.setdiff1d(np.arange(len(ids)), ends)
    return {"ids": ids, "sizes": sizes, "places": places, "targets": ids[places + 1]}


def _span_corrupted(
    documents: Documents, plan: Plan, texts: Ints, frame: Frame, rng: np.random.Generator
) -> dict[str, Ints]:
    """A row of texts with spans missing, and what was missing (Raffel et al. 2020, section 3.1.4)."""
    inputs, answers = [], []
    for text in texts:
        start, stop = _span(plan, int(text))
        tokens = documents.tokens[start:stop].astype(np.int64)
        kept, missing = corrupted(tokens, frame, rng)
        inputs.append(_framed(frame.start, kept, frame.end))
        answers.append(_framed((), missing, frame.end))
    return {
        "ids": np.concatenate(inputs), "sizes": np.array([len(i) for i in inputs]),
        "answer": np.concatenate(answers), "answer_sizes": np.array([len(a) for a in answers]),
    }  # fmt: skip


def corrupted(tokens: Ints, frame: Frame, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """The tokens with a sentinel in place of each missing span, and each sentinel followed by what it stands for.

    As T5's code draws them: the numbers of missing tokens and of spans go by the text's length, the lengths of spans and of
    what is between them are drawn evenly, and a text begins with what is not missing.
    """
    size = np.array([len(tokens)])
    missing, spans = (int(n[0]) for n in frame.missing(size))
    if missing == len(tokens):  # a text of one token
        return np.array(frame.sentinels[:1]), np.concatenate([frame.sentinels[:1], tokens])
    lengths = np.stack([_shares(len(tokens) - missing, spans, rng), _shares(missing, spans, rng)], axis=1).reshape(-1)
    pieces = np.split(tokens, np.cumsum(lengths)[:-1])
    kept: list[Ints] = []
    gone: list[Ints] = []
    for i in range(spans):
        sentinel = np.array(frame.sentinels[i : i + 1])
        kept += [pieces[2 * i], sentinel]
        gone += [sentinel, pieces[2 * i + 1]]
    return np.concatenate(kept).astype(np.int64), np.concatenate(gone).astype(np.int64)


def _shares(total: int, parts: int, rng: np.random.Generator) -> Ints:
    """`total` shared into `parts` of at least 1, all ways alike."""
    cuts = np.sort(rng.choice(total - 1, parts - 1, replace=False)) + 1 if parts > 1 else np.zeros(0, dtype=np.int64)
    return np.diff(np.concatenate([[0], cuts, [total]]))


_Make = Callable[[Documents, Plan, Ints, Frame, np.random.Generator], dict[str, Ints]]
_MAKE: dict[Objective, _Make] = {"mlm": _mlm, "mlm+nsp": _mlm_nsp, "clm": _clm, "span": _span_corrupted}
