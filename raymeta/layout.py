"""How texts are laid out as rows for an encoder: packed several to a row, or one a row and padded.

In a packed row, positions start anew with each text and a block-diagonal mask keeps texts apart, so that little work is
spent on padding. Several tasks lie side by side: each has the same number of rows.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from raymeta.episodes import Ints

_ROOM = 128
"""Places of a packed row, where no text is longer: long enough to fill well, short enough for attention to stay cheap."""


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


def packed(ids: Sequence[Tensor], lengths: Sequence[Tensor], dtype: torch.dtype, causal: bool) -> Layout:
    """Texts of each task laid several to a row (first fit, longest first). `causal`: a token sees none after it."""
    sizes = [n.cpu().numpy() for n in lengths]
    width = max(int(max(n.max() for n in sizes)), min(_ROOM, int(max(n.sum() for n in sizes))))
    bins = [_first_fit(n, width) for n in sizes]
    rows = max(len(used) for _, _, used in bins)
    width = max(max(used) for _, _, used in bins)
    firsts = [(task * rows + row) * width + start for task, (row, start, _) in enumerate(bins)]
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


def _first_fit(sizes: Ints, width: int) -> tuple[Ints, Ints, list[int]]:
    """Row and start of each text, and the places used of each row."""
    used: list[int] = []
    row = np.zeros(len(sizes), dtype=np.int64)
    start = np.zeros(len(sizes), dtype=np.int64)
    for text in np.argsort(-sizes, kind="stable").tolist():
        size = int(sizes[text])
        found = next((r for r, u in enumerate(used) if u + size <= width), None)
        if found is None:
            found = len(used)
            used.append(0)
        row[text], start[text] = found, used[found]
        used[found] += size
    return row, start, used
