"""How texts are laid out as rows for a model: packed several to a row, or one a row and padded.

In a packed row, positions start anew with each text and a block-diagonal mask keeps texts apart, so that little work is
spent on padding. Several tasks lie side by side: each has the same number of rows. A model with an encoder and a decoder
has rows for each; a text's source and its target lie in rows of the same number.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from raymeta.episodes import Ints
from raymeta.reading import Read

_ROOM = 256
"""Most places of a packed row, where no text is longer."""


@dataclass(frozen=True)
class Layout:
    """Where each token of some texts stands in a batch of rows.

    ids, positions: int64 [task * row, place]; mask: additive float [task * row, 1, place, place] when packed, int64
    [task * row, place] when padded; where: int64 [token], the flat place of each token, texts end to end, task by task,
    virtual tokens left out; rows: of a task; source: the encoder's rows, where a model has an encoder beside its decoder,
    and cross: what a decoder's place sees of them, as `mask`, [task * row, 1, place, source place].
    """

    ids: Tensor
    positions: Tensor | None
    mask: Tensor
    where: Tensor
    rows: int
    source: "Layout | None" = None
    cross: Tensor | None = None


def packed(reads: Sequence[Read], dtype: torch.dtype, causal: bool, attention: float = 0.0) -> Layout:
    """Texts of each task laid several to a row, in as many rows as cost least.

    causal: a token sees none after it (but all of its source). attention: what a place costs more for each place of its
    row, as a share of what it costs anyway; so long rows, which fill better, must be worth their attention.
    """
    sizes = [np.stack([side.lengths.cpu().numpy() for side in r.sides()], axis=1) for r in reads]
    rows, widths, laid = _cheapest(sizes, attention)
    layouts, owners = [], []
    for side, width in enumerate(widths):
        layout, owner = _side([r.sides()[side] for r in reads], sizes, laid, rows, width, side)
        last = side == len(widths) - 1
        mask = _apart(owner, owner, dtype, causal and last)
        layouts.append(Layout(layout.ids, layout.positions, mask.to(layout.ids.device), layout.where, rows))
        owners.append(owner)
    if len(layouts) == 1:
        return layouts[0]
    source, own = layouts
    cross = _apart(owners[1], owners[0], dtype, False).to(own.ids.device)
    return Layout(own.ids, own.positions, own.mask, own.where, rows, source, cross)


def padded(reads: Sequence[Read]) -> Layout:
    """One text a row, padded to the longest."""
    layouts = []
    for sides in zip(*(r.sides() for r in reads), strict=True):
        sizes = [s.lengths.cpu().numpy() for s in sides]
        width = int(max(n.max() for n in sizes))
        rows = max(len(n) for n in sizes)
        firsts = [(task * rows + np.arange(len(n))) * width for task, n in enumerate(sizes)]
        where, inside = _places(np.concatenate(firsts), np.concatenate(sizes))
        ids, at = _laid(sides, where, len(sizes) * rows * width, width)
        mask = at.new_zeros(len(sizes) * rows * width).index_fill(0, at, 1)
        layouts.append(Layout(ids, None, mask.view(-1, width), _real(sides, at, inside), rows))
    if len(layouts) == 1:
        return layouts[0]
    source, own = layouts
    return Layout(own.ids, None, own.mask, own.where, own.rows, source, source.mask)


def _side(
    sides: Sequence[Read],
    sizes: Sequence[Ints],
    laid: Sequence[tuple[Ints, Ints]],
    rows: int,
    width: int,
    side: int,
) -> tuple[Layout, Ints]:
    """One side's tokens in their rows, without a mask, and the text that each place belongs to (0: none), [row, place]."""
    of_side = np.concatenate([n[:, side] for n in sizes])
    firsts = [(task * rows + row) * width + start[:, side] for task, (row, start) in enumerate(laid)]
    where, inside = _places(np.concatenate(firsts), of_side)
    total = len(sizes) * rows * width
    positions, owner = np.zeros(total, dtype=np.int64), np.zeros(total, dtype=np.int64)
    positions[where] = inside
    owner[where] = np.repeat(np.arange(1, len(of_side) + 1), of_side)
    ids, at = _laid(sides, where, total, width)
    placed = torch.from_numpy(positions.reshape(-1, width)).to(at.device)
    return Layout(ids, placed, at, _real(sides, at, inside), rows), owner.reshape(-1, width)


def _apart(owner: Ints, seen: Ints, dtype: torch.dtype, causal: bool) -> Tensor:
    """Additive mask [row, 1, place, seen place] that keeps texts apart."""
    apart = owner[:, :, None] != seen[:, None, :]
    if causal:
        apart |= np.triu(np.ones(apart.shape[1:], dtype=bool), 1)
    mask = torch.zeros(apart.shape, dtype=dtype)
    return mask.masked_fill_(torch.from_numpy(apart), torch.finfo(dtype).min).unsqueeze(1)


def _laid(sides: Sequence[Read], where: Ints, total: int, width: int) -> tuple[Tensor, Tensor]:
    """The tokens' ids as rows, and their places as a tensor."""
    joined = sides[0].ids if len(sides) == 1 else torch.cat([s.ids for s in sides])
    at = torch.from_numpy(where).to(joined.device)
    return joined.new_zeros(total).index_copy(0, at, joined).view(-1, width), at


def _real(sides: Sequence[Read], at: Tensor, inside: Ints) -> Tensor:
    """The places of tokens that are not virtual."""
    virtual = sides[0].virtual
    return at[torch.from_numpy(inside >= virtual).to(at.device)] if virtual else at


def _places(first: Ints, sizes: Ints) -> tuple[Ints, Ints]:
    """Flat place of each token, and its position within its text."""
    inside = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.repeat(first, sizes) + inside, inside


def _cheapest(sizes: Sequence[Ints], attention: float) -> tuple[int, Ints, list[tuple[Ints, Ints]]]:
    """Rows of a task, their width on each side, and for each task its texts' rows and starts, [text] and [text, side].

    sizes: of each task's texts, [text, side].
    """
    longest = np.max([n.max(0) for n in sizes], axis=0)
    total = np.max([n.sum(0) for n in sizes], axis=0)
    found: tuple[float, int, Ints, list[tuple[Ints, Ints]]] | None = None
    for rows in range(int((-(-total // np.maximum(longest, _ROOM))).max()), max(len(n) for n in sizes) + 1):
        laid = [_spread(n, rows) for n in sizes]
        width = np.max([fullest for _, _, fullest in laid], axis=0)
        cost = rows * _cost(width, attention)
        if found is None or cost < found[0]:
            found = (cost, rows, width, [(row, start) for row, start, _ in laid])
        if (width == longest).all() or (rows + 1) * _cost(longest, attention) >= found[0]:
            break  # more rows can only be emptier
    assert found is not None
    return found[1:]


def _cost(width: npt.NDArray[np.integer], attention: float) -> float:
    """What one row costs: its places, and what they attend to, a decoder's also its source."""
    seen = np.cumsum(width) if len(width) > 1 else width
    return float((width * (1 + attention * seen)).sum())


def _spread(sizes: Ints, rows: int) -> tuple[Ints, Ints, Ints]:
    """Row of each text, its start on each side, and the places of the fullest row: the longest text first, to the emptiest
    row."""
    used = [(0, r) for r in range(rows)]
    ends = np.zeros((rows, sizes.shape[1]), dtype=np.int64)
    row, start = np.zeros(len(sizes), dtype=np.int64), np.zeros(sizes.shape, dtype=np.int64)
    both = sizes.sum(1).tolist()
    for text, size in sorted(enumerate(both), key=lambda pair: -pair[1]):
        full, row[text] = used[0]
        start[text] = ends[row[text]]
        ends[row[text]] += sizes[text]
        heapq.heapreplace(used, (full + size, int(row[text])))
    return row, start, ends.max(0)
