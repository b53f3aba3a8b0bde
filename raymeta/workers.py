"""One worker's place among all, and what they say to each other."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
import torch.utils.deterministic
from torch import Tensor


@dataclass(frozen=True)
class Workers:
    """This worker's rank among `count`, and its device. Alone, every exchange is a no-op.

    leaving: whether a machine that has workers is about to be taken away.
    """

    rank: int = 0
    count: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    on_ray: bool = False
    leaving: Callable[[], bool] = lambda: False

    @property
    def first(self) -> bool:
        """Whether this is the worker that writes files."""
        return self.rank == 0

    def sum(self, flat: Tensor) -> None:
        """Replaces `flat` by its sum over all workers: one all-reduce."""
        if self.count > 1:
            dist.all_reduce(flat)

    def gathered(self, mine: Any) -> list[Any]:
        """Every worker's object, by rank."""
        if self.count == 1:
            return [mine]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, mine)
        return found


@contextmanager
def summing_in_order(exact: bool) -> Iterator[None]:
    """Where `exact`, operations give the same bits each time; one that cannot raises RuntimeError, and torch names it."""
    memory: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), memory.fill_uninitialized_memory
    torch.use_deterministic_algorithms(exact or before[0])
    memory.fill_uninitialized_memory = False  # nothing reads what was not written
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before[0])
        memory.fill_uninitialized_memory = before[1]
