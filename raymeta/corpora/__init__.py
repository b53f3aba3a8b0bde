"""Where rows come from. A corpus lists its shards and reads one at a time, row by row; it loads nothing whole.

A corpus is one file here, or a user's own (`kind: my_module:MyCorpus`).
"""

import re
from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import Field

from raymeta.component import Component
from raymeta.errors import UserError, did_you_mean

_BROKEN = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Shard:
    """A part of a corpus that one reader reads: a file, or some row groups of one.

    name: the file as the user would name it; place: what the reader needs to open it; split: the split that the file
    belongs to, if the run says so; first_row: number of its first row in the file; order: its rank in the corpus.
    """

    name: str
    place: str
    split: str | None
    first_row: int
    order: int
    part: int | None = None


@dataclass(frozen=True)
class Row:
    """One row: role -> value, or why it could not be read. number: its place in the file (a line, for text files)."""

    number: int
    values: dict[str, Any]
    fault: str | None = None


class Corpus(Component, family="raymeta.corpora", noun="corpus"):
    """A source of labelled rows."""

    columns: dict[str, str | int] = Field(default_factory=dict)
    """Role -> column: `{text: utterance, label: intent, task: domain}`. A role that is not named reads the column of its
    own name; `task` (domain, service, language) is read only if named."""
    bad_rows: float = Field(0.05, ge=0, le=1)
    """Share of rows that may be unusable before the run refuses the corpus; they are set aside in quarantine.jsonl."""

    @abstractmethod
    def shards(self) -> list[Shard]:
        """The corpus's parts, in a fixed order; raises UserError where a file is missing or unreadable."""

    @abstractmethod
    def names(self, shard: Shard) -> list[str]:
        """The columns of a shard, from its first bytes; raises UserError where it cannot be read."""

    @abstractmethod
    def rows(self, shard: Shard, columns: dict[str, str | int]) -> Iterator[Row]:
        """Every row of a shard, in order: role -> value for the given role -> column."""

    @abstractmethod
    def fingerprint(self) -> str:
        """A text that changes when the data changes."""

    def column(self, role: str) -> str | int:
        """The column that a role reads."""
        return self.columns.get(role, role)

    def wanted(
        self, roles: Sequence[str], split_column: str | None, optional: Sequence[str] = ()
    ) -> dict[str, str | int]:
        """Role -> column for the task kind's roles, the optional ones and `task` if named, and the split's column."""
        known = (*roles, *optional, "task")
        for role in self.columns:
            if role not in known:
                raise UserError(
                    f"corpus.columns: this task kind has no role {role!r}{did_you_mean(role, known)} (roles: {', '.join(known)})"
                )
        wanted = {role: self.column(role) for role in roles}
        wanted |= {role: self.columns[role] for role in known if role in self.columns}
        if split_column:
            wanted["split"] = split_column
        return wanted

    def check(
        self, roles: Sequence[str], split_column: str | None, optional: Sequence[str] = ()
    ) -> tuple[list[Shard], dict[str, str | int]]:
        """Shards and role -> column, once every file is there and has its columns; else raises UserError."""
        wanted = self.wanted(roles, split_column, optional)
        shards = self.shards()
        if not shards:
            raise UserError("corpus: there is no file to read")
        seen = set()
        for shard in shards:
            if shard.place in seen:
                continue
            seen.add(shard.place)
            there = self.names(shard)
            for role, column in wanted.items():
                if isinstance(column, str) and column not in there:
                    setting = (
                        f"tasks.split.column: {column!r}" if role == "split" else f"corpus.columns: {role}: {column!r}"
                    )
                    raise UserError(
                        f"{setting} is not a column of {shard.name}{did_you_mean(column, there)} (columns: {', '.join(there) or 'none'})"
                    )
        return shards, wanted

    def read(self, shard: Shard, columns: dict[str, str | int]) -> Iterator[Row]:
        """`rows`, with text that is not UTF-8 turned into a fault of its row."""
        for row in self.rows(shard, columns):
            broken = None if row.fault else next((r for r, v in row.values.items() if _is_broken(v)), None)
            yield Row(row.number, row.values, f"{broken} is not UTF-8") if broken else row


def _is_broken(value: Any) -> bool:
    if isinstance(value, str):
        return not value.isascii() and _BROKEN.search(value) is not None
    if isinstance(value, (list, tuple)):
        return any(_is_broken(v) for v in value)
    return False
