"""Which texts make a row: documents cut to fit, and laid several to a row so that hardly a place is empty."""

import hashlib
import os
import shutil
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from raymeta.episodes import Ints
from raymeta.pretraining.frames import Frame
from raymeta.pretraining.tokens import WORD, Documents, Side, TokenStore

_ARRAYS = ("start", "size", "last", "texts", "row")


@dataclass(frozen=True)
class Plan:
    """Texts by where they lie among a side's tokens, and which of them make each row.

    start, size: int64 [text]; last: bool [text], whether its document ends with it; texts: int64 [text], row after row;
    row: int64 [row + 1] into `texts`.
    """

    start: Ints
    size: Ints
    last: npt.NDArray[np.bool_]
    texts: Ints
    row: Ints

    def __len__(self) -> int:
        return len(self.row) - 1


def planned(store: TokenStore, side: Side, frame: Frame, several: bool) -> Plan:
    """The plan of a side, memory-mapped; made once for each kind of row. `several`: whether texts may share a row."""
    missing = (frame.mask_rate, frame.span) if frame.objective == "span" else None
    shape = (side, frame.objective, frame.length, frame.start, frame.between, frame.end, frame.stop, several, missing)
    folder = store.folder / "plans" / hashlib.sha256(repr(shape).encode()).hexdigest()[:16]
    if not folder.is_dir():
        building = folder.with_name(f".building-{folder.name}-{os.getpid()}")
        building.mkdir(parents=True, exist_ok=True)
        made = plan(store.documents(side), frame, several)
        for name in _ARRAYS:
            np.save(building / f"{name}.npy", getattr(made, name))
        try:
            building.rename(folder)
        except OSError:
            shutil.rmtree(building, ignore_errors=True)
            if not folder.is_dir():  # else another worker made the same meanwhile
                raise
    return Plan(*(np.load(folder / f"{name}.npy", mmap_mode="r") for name in _ARRAYS))


def plan(documents: Documents, frame: Frame, several: bool) -> Plan:
    """Every token of the documents in one text of one row."""
    start, size = _cut(documents, frame.limit)
    last = np.isin(start + size, documents.start[1:])
    room = frame.room(size, last)
    if several:
        texts, counts = _packed(room, frame.length)
    else:
        texts, counts = np.argsort(-room, kind="stable"), np.ones(len(room), dtype=np.int64)
    return Plan(start, size, last, texts, np.concatenate([[0], np.cumsum(counts)]))


def _cut(documents: Documents, limit: int) -> tuple[Ints, Ints]:
    """Start and size of each text: a document, or even parts of one that is longer than `limit`, cut between words."""
    begins, sizes = np.array(documents.start[:-1]), np.diff(documents.start)
    starts, ends = [begins[sizes <= limit]], [(begins + sizes)[sizes <= limit]]
    for document in np.flatnonzero(sizes > limit):
        at, stop = int(begins[document]), int(begins[document] + sizes[document])
        cuts = [at]
        while stop - at > limit:
            parts = -(-(stop - at) // limit)
            most = at + -(-(stop - at) // parts)
            words = np.flatnonzero(documents.flags[at + 1 : most + 1] & WORD)
            back = at + 1 + int(words[-1]) if len(words) else most
            at = back if back - at > limit // 2 else most
            cuts.append(at)
        starts.append(np.array(cuts))
        ends.append(np.array([*cuts[1:], stop]))
    start, end = np.concatenate(starts), np.concatenate(ends)
    order = np.argsort(start, kind="stable")
    return start[order], (end - start)[order]


def _packed(room: Ints, length: int) -> tuple[Ints, Ints]:
    """Texts row after row, and how many each row has: the longest first, each to the fullest row that can take it."""
    rows: list[list[int]] = []
    open_rows: list[list[int]] = [[] for _ in range(length + 1)]  # by the places that are left
    there = 0  # bit n: a row with n places left
    for text in np.argsort(-room, kind="stable").tolist():
        need = int(room[text])
        fits = there >> need
        if fits:
            left = need + (fits & -fits).bit_length() - 1
            row = open_rows[left].pop()
            if not open_rows[left]:
                there &= ~(1 << left)
        else:
            left, row = length, len(rows)
            rows.append([])
        rows[row].append(text)
        open_rows[left - need].append(row)
        there |= 1 << (left - need)
    return np.array([text for row in rows for text in row]), np.array([len(row) for row in rows])
