"""What a model reads of a task's examples: the texts themselves, or, where it writes answers, sources and targets.

A decoder reads source and target in one row, and the state at each place before a target token foretells it. An encoder
and a decoder read the source and, behind a start token, the target. In both, a target's last token is never read.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from raymeta.episodes import Examples


@dataclass(frozen=True)
class Read:
    """Texts of one task as a model reads them.

    ids: int64 [token], texts end to end; lengths: int64 [text]; virtual: tokens at each text's start that stand for a soft
    prompt; picks: int64 [target token], the places, virtual tokens left out, whose states foretell the targets; source:
    what the encoder reads, where `ids` are for a decoder beside it.
    """

    ids: Tensor
    lengths: Tensor
    virtual: int = 0
    picks: Tensor | None = None
    source: "Read | None" = None

    def sides(self) -> "tuple[Read, ...]":
        """What each part of the model reads, the encoder first."""
        return (self,) if self.source is None else (self.source, self)

    def mapped(self, ids: list[Tensor]) -> "Read":
        """The same texts with other ids, one tensor for each side."""
        source = None if self.source is None else self.source.mapped(ids[:1])
        return Read(ids[-1], self.lengths, self.virtual, self.picks, source)

    def prompted(self, virtual: Tensor) -> "Read":
        """The same texts with the ids `virtual` before each, on the side that reads the source."""
        if self.source is not None:
            return Read(self.ids, self.lengths, self.virtual, self.picks, self.source.prompted(virtual))
        firsts = self.lengths.cumsum(0) - self.lengths
        count = len(virtual)
        ids = self.ids.new_empty(len(self.ids) + count * len(self.lengths))
        shift = count * torch.arange(len(self.lengths), device=ids.device)
        at = firsts + shift
        ids[(at[:, None] + torch.arange(count, device=ids.device)).flatten()] = virtual.repeat(len(self.lengths))
        ids[torch.arange(len(self.ids), device=ids.device) + (shift + count).repeat_interleave(self.lengths)] = self.ids
        return Read(ids, self.lengths + count, count, self.picks)


def plain(examples: Examples) -> Read:
    """The texts as they are."""
    return Read(examples.ids, examples.lengths)


def continued(examples: Examples) -> Read:
    """Source and target in one row, for a decoder alone."""
    target, sizes = examples.extra["target_ids"], examples.extra["target_lengths"]
    lengths = examples.lengths + sizes - 1
    firsts = lengths.cumsum(0) - lengths
    ids = target.new_empty(int(lengths.sum()))
    ids[firsts.repeat_interleave(examples.lengths) + _inside(examples.lengths)] = examples.ids
    inside = _inside(sizes)
    picks = (firsts + examples.lengths - 1).repeat_interleave(sizes) + inside
    read = inside < (sizes - 1).repeat_interleave(sizes)
    ids[picks[read] + 1] = target[read]
    return Read(ids, lengths, picks=picks)


def answered(examples: Examples, start: int) -> Read:
    """The source for an encoder; the token `start` and the target for its decoder."""
    target, sizes = examples.extra["target_ids"], examples.extra["target_lengths"]
    ids = torch.cat([target[:1], target[:-1]])
    ids[sizes.cumsum(0) - sizes] = start
    return Read(ids, sizes, picks=torch.arange(len(ids), device=ids.device), source=plain(examples))


def _inside(lengths: Tensor) -> Tensor:
    """Each token's position within its text."""
    total = int(lengths.sum())
    return torch.arange(total, device=lengths.device) - (lengths.cumsum(0) - lengths).repeat_interleave(lengths)
