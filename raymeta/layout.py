"""How texts are laid out as rows for an encoder: packed several to a row, or one a row and padded.

In a packed row, positions start anew with each text and a block-diagonal mask keeps texts apart, so that little work is
spent on padding. Several tasks lie side by side: each has the same number of rows.
"""

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raymeta.episodes import Ints

_ROOM = 256
"""Most places of a packed row, where no text is longer."""


@dataclass(frozen=True)
class Layout:
    """Where each token of some texts stands in a batch of rows.

    ids, positions: int64 [task * row, place]; mask: additive float [task * row, 1, place, place] when packed, int64
    [task * row, place] when padded; where: int64 [token], the flat place of each token, texts end to end, task by task.
    """

    ids: Tensor
    positions: Tensor | None
    mask: Tensor
    where: Tensor


def packed(
    ids: Sequence[Tensor], lengths: Sequence[Tensor], dtype: torch.dtype, causal: bool, attention: float = 0.0
) -> Layout:
    """Texts of each task laid several to a row, in as many rows as cost least.

    causal: a token sees none after it. attention: what a place costs more for each place of its row, as a share of what it
    costs anyway; so long rows, which fill better, must be worth their attention.
    """
    sizes = [n.cpu().numpy() for n in lengths]
    rows, width, laid = _cheapest(sizes, attention)
    firsts = [(task * rows + row) * width + start for task, (row, start) in enumerate(laid)]
    where, inside = _places(np.concatenate(firsts), np.concatenate(sizes))
    total = len(sizes) * rows * width
    positions, owner = np.zeros(total, dtype=np.int64), np.zeros(total, dtype=np.int64)
    positions[where] = inside
    owner[where] = np.repeat(np.arange(1, sum(len(n) for n in sizes) + 1), np.concatenate(sizes))
    grid = owner.reshape(-1, width)
    apart = grid[:, :, None] != grid[:, None, :]
    if causal:
        apart |= np.triu(np.ones((width, width), dtype=bool), 1)
    mask = torch.zeros(apart.shape, dtype=dtype).masked_fill_(torch.from_numpy(apart), torch.finfo(dtype).min)
    there = ids[0].device
    at = torch.from_numpy(where).to(there)
    return Layout(
        _laid(ids, at, total, width), torch.from_numpy(positions.reshape(-1, width)).to(there), mask.unsqueeze(1).to(there), at
    )  # fmt: skip


def padded(ids: Sequence[Tensor], lengths: Sequence[Tensor]) -> Layout:
    """One text a row, padded to the longest."""
    sizes = [n.cpu().numpy() for n in lengths]
    width = int(max(n.max() for n in sizes))
    rows = max(len(n) for n in sizes)
    firsts = [(task * rows + np.arange(len(n))) * width for task, n in enumerate(sizes)]
    where, _ = _places(np.concatenate(firsts), np.concatenate(sizes))
    at = torch.from_numpy(where).to(ids[0].device)
    total = len(sizes) * rows * width
    mask = at.new_zeros(total).index_fill(0, at, 1)
    return Layout(_laid(ids, at, total, width), None, mask.view(-1, width), at)


def _laid(ids: Sequence[Tensor], at: Tensor, total: int, width: int) -> Tensor:
    joined = ids[0] if len(ids) == 1 else torch.cat(list(ids))
    return joined.new_zeros(total).index_copy(0, at, joined).view(-1, width)


def _places(first: Ints, sizes: Ints) -> tuple[Ints, Ints]:
    """Flat place of each token, and its position within its text."""
    inside = np.arange(int(sizes.sum())) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return np.repeat(first, sizes) + inside, inside


def _cheapest(sizes: Sequence[Ints], attention: float) -> tuple[int, int, list[tuple[Ints, Ints]]]:
    """Rows of a task and their width, and for each task its texts' rows and starts."""
    longest = int(max(n.max() for n in sizes))
    total = int(max(n.sum() for n in sizes))
    found: tuple[float, int, int, list[tuple[Ints, Ints]]] | None = None
    for rows in range(-(-total // max(longest, _ROOM)), max(len(n) for n in sizes) + 1):
        laid = [_spread(n, rows) for n in sizes]
        width = max(fullest for _, _, fullest in laid)
        cost = rows * width * (1 + attention * width)
        if found is None or cost < found[0]:
            found = (cost, rows, width, [(row, start) for row, start, _ in laid])
        if width == longest or (rows + 1) * longest * (1 + attention * longest) >= found[0]:
            break  # more rows can only be emptier
    assert found is not None
    return found[1:]


def _spread(sizes: Ints, rows: int) -> tuple[Ints, Ints, int]:
    """Row and start of each text, and the places of the fullest row: the longest text first, to the emptiest row."""
    used = [(0, r) for r in range(rows)]
    row, start = [0] * len(sizes), [0] * len(sizes)
    fullest = 0
    for text, size in sorted(enumerate(sizes.tolist()), key=lambda pair: -pair[1]):
        start[text], row[text] = used[0]
        end = start[text] + size
        fullest = max(fullest, end)
        heapq.heapreplace(used, (end, row[text]))
    return np.array(row, dtype=np.int64), np.array(start, dtype=np.int64), fullest
