"""Rows from files: Parquet, JSON lines, CSV or TSV, CoNLL columns; local or at any URI that pyarrow.fs opens."""

import csv
import io
import json
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any, Literal
from urllib.parse import quote

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from pydantic import Field, field_validator, model_validator

from raymeta.corpora import Corpus, Row, Shard
from raymeta.episodes import SPLITS
from raymeta.errors import UserError, did_you_mean, expanded, first_line

_ENDINGS = {
    ".parquet": "parquet", ".pq": "parquet", ".jsonl": "jsonl", ".ndjson": "jsonl", ".json": "jsonl",
    ".csv": "csv", ".tsv": "csv", ".conll": "conll", ".bio": "conll", ".iob": "conll", ".iob2": "conll", ".txt": "conll",
}  # fmt: skip
_ROWS_A_SHARD = 100_000

Paths = str | list[str]
Value = str | int | bool
Values = Value | list[Value]


class Files(Corpus):
    """Files by path: one, a list, a folder, or one (or a list) for each split."""

    path: Paths | dict[str, Paths]
    """A path or URI, a list of them, a folder, or `{train: ..., validation: ..., test: ...}`. `~` and `$NAME` expand."""
    format: Literal["auto", "parquet", "jsonl", "csv", "conll"] = "auto"
    """How to read them; `auto`: by their endings (.tsv is CSV with tabs; .conll, .bio, .txt are CoNLL columns). CoNLL
    roles name columns by number: `{tokens: 0, tags: -1}` is the default."""
    where: dict[str, Values | dict[str, Values]] = Field(default_factory=dict)
    """Which rows are read: column -> its value, or a list of values; or so for each split of `path`:
    `{train: {part: train}, test: {part: [dev, test]}}`. All rows, where it says nothing."""

    @field_validator("path")
    @classmethod
    def _splits_are_known(cls, path: Any) -> Any:
        if isinstance(path, dict):
            for name in path:
                if name not in SPLITS:
                    raise ValueError(
                        f"{name!r} is not a split{did_you_mean(name, SPLITS)} (splits: {', '.join(SPLITS)})"
                    )
        return path

    @model_validator(mode="after")
    def _where_fits(self) -> "Files":
        by_split = [name for name, values in self.where.items() if isinstance(values, dict)]
        known = self.path if isinstance(self.path, dict) else {}
        for name in by_split:
            if name not in known:
                raise ValueError(
                    f"where: {name!r} is no split of corpus.path{did_you_mean(name, known)}; name files by split there, or write "
                    "column: value"
                )
        if by_split and len(by_split) < len(self.where):
            raise ValueError("where: name columns for every split, or columns alone, not both")
        return self

    def shards(self) -> list[Shard]:
        found: list[Shard] = []
        by_split = self.path if isinstance(self.path, dict) else {None: self.path}
        for split, paths in by_split.items():
            for path in [paths] if isinstance(paths, str) else paths:
                for name in _expanded(path, self.format):
                    for first, part in self._parts(name):
                        found.append(Shard(name, name, split, first, len(found), part))
        return found

    def _parts(self, name: str) -> Iterator[tuple[int, int | None]]:
        """First row and part number of each shard of a file: runs of row groups for Parquet, else the whole file."""
        if self._format(name) != "parquet":
            yield 0, None
            return
        with _parquet(name) as file:
            row, start = 0, 0
            for group in range(file.num_row_groups):
                if group == 0 or row - start >= _ROWS_A_SHARD:
                    start = row
                    yield row, group
                row += file.metadata.row_group(group).num_rows

    def _format(self, name: str) -> str:
        return self.format if self.format != "auto" else _by_ending(name)

    def fingerprint(self) -> str:
        seen = []
        for shard in self.shards():
            fs, path = _opened(shard.place)
            info = fs.get_file_info(path)
            seen.append(f"{shard.name}:{shard.split}:{info.size}:{info.mtime_ns}")
        return "\n".join([self.format, *seen])

    def names(self, shard: Shard) -> list[str]:
        kind = self._format(shard.name)
        if kind == "parquet":
            with _parquet(shard.place) as file:
                return list(file.schema_arrow.names)
        if kind == "conll":
            _first_bytes(shard)
            return ["tokens", "tags"]
        if kind == "csv":
            _first_bytes(shard)
            with _lines(shard.place) as lines:
                header = next(csv.reader(lines, delimiter=_delimiter(shard.name)), None)
            if not header:
                raise UserError(f"corpus.path: {shard.name} is empty; its first line must name the columns")
            return header
        _first_bytes(shard)
        keys: dict[str, None] = {}
        with _lines(shard.place) as lines:
            for line, _ in zip(lines, range(100), strict=False):
                try:
                    row = json.loads(line)
                except (ValueError, RecursionError):
                    continue
                if isinstance(row, dict):
                    keys.update(dict.fromkeys(row))
        if not keys:
            raise UserError(
                f"corpus.path: {shard.name} has no JSON object in its first lines; write one a line, or set corpus.format"
            )
        return list(keys)

    def check(
        self, roles: Sequence[str], split_column: str | None, optional: Sequence[str] = ()
    ) -> tuple[list[Shard], dict[str, str | int]]:
        shards, wanted = super().check(roles, split_column, optional)
        for shard in {s.place: s for s in shards}.values():
            for column in self._asked(shard.split):
                there = self.names(shard)
                if column not in there:
                    raise UserError(
                        f"corpus.where: {column!r} is not a column of {shard.name}{did_you_mean(column, there)} "
                        f"(columns: {', '.join(there)})"
                    )
        return shards, wanted

    def _asked(self, split: str | None) -> dict[str, set[str]]:
        """Column -> the values that a row of `split` may have."""
        mine: dict[str, Any] = dict(self.where)
        if any(isinstance(values, dict) for values in mine.values()):
            mine = mine.get(split or "", {})
        return {c: {str(v) for v in (values if isinstance(values, list) else [values])} for c, values in mine.items()}

    def rows(self, shard: Shard, columns: dict[str, str | int]) -> Iterator[Row]:
        asked = self._asked(shard.split)
        more = {f"where {column}": column for column in asked}
        for row in self._all_rows(shard, {**columns, **more}):
            if row.fault or all(str(row.values[f"where {c}"]) in values for c, values in asked.items()):
                yield replace(row, values={role: v for role, v in row.values.items() if role not in more})

    def _all_rows(self, shard: Shard, columns: dict[str, str | int]) -> Iterator[Row]:
        kind = self._format(shard.name)
        try:
            if kind == "parquet":
                yield from _parquet_rows(shard, columns)
            elif kind == "jsonl":
                yield from _json_rows(shard, columns)
            elif kind == "csv":
                yield from _csv_rows(shard, columns)
            else:
                yield from _conll_rows(shard, columns)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"corpus.path: {shard.name} could not be read to its end: {first_line(error)}") from error


def _ending(name: str) -> str:
    """What a file's name ends in, without the ending of a compression and a URI's query."""
    suffixes = PurePosixPath(name.partition("?")[0] if "://" in name else name).suffixes
    if suffixes and suffixes[-1] in (".gz", ".bz2", ".zst"):
        suffixes.pop()
    return suffixes[-1].lower() if suffixes else ""


def _by_ending(name: str) -> str:
    ending = _ending(name)
    if ending not in _ENDINGS:
        raise UserError(
            f"corpus.path: {name} has no ending that tells its format ({', '.join(_ENDINGS)}); set corpus.format"
        )
    return _ENDINGS[ending]


def _opened(place: str) -> tuple[Any, str]:
    """File system and path of a local path or URI."""
    if "://" in place:
        try:
            fs, path = pafs.FileSystem.from_uri(place)
        except (pa.ArrowInvalid, OSError, ValueError) as error:
            raise UserError(
                f"corpus.path: {place} is not a path or URI that pyarrow.fs opens: {first_line(error)}"
            ) from error
        return fs, path
    return pafs.LocalFileSystem(), os.path.abspath(place)


def _expanded(path: str, kind: str) -> list[str]:
    """The files that a path stands for; raises UserError where there are none."""
    name = expanded(path, "corpus.path")
    fs, inside = _opened(name)
    try:
        info = fs.get_file_info(inside)
    except OSError as error:
        raise UserError(f"corpus.path: {name} could not be looked up: {first_line(error)}") from error
    if info.type == pafs.FileType.NotFound:
        raise UserError(f"corpus.path: there is no file or folder {name}" + ("" if name == inside else f" ({inside})"))
    if info.type == pafs.FileType.File:
        if kind == "auto":
            _by_ending(name)
        return [name if "://" in name else inside]
    files = sorted(i.path for i in fs.get_file_info(pafs.FileSelector(inside, recursive=True)) if i.is_file)
    hidden = [any(part.startswith((".", "_")) for part in PurePosixPath(f[len(inside) :]).parts) for f in files]
    known = [f for f, h in zip(files, hidden, strict=True) if not h and (kind != "auto" or _ending(f) in _ENDINGS)]
    if not known:
        raise UserError(f"corpus.path: the folder {name} holds no file with a known ending ({', '.join(_ENDINGS)})")
    if "://" not in name:
        return known
    scheme, query = name.split("://")[0], name.partition("?")[2]
    return [f"{scheme}://{quote(f)}" + (f"?{query}" if query else "") for f in known]


def _parquet(name: str) -> pq.ParquetFile:
    fs, path = _opened(name)
    try:
        return pq.ParquetFile(path, filesystem=fs)
    except (OSError, pa.ArrowException) as error:
        raise UserError(
            f"corpus.path: {name} is not readable as Parquet: {first_line(error)}; write it again, or set corpus.format"
        ) from error


def _first_bytes(shard: Shard) -> None:
    """Raises UserError for an empty file, and for one that is plainly not UTF-8 text."""
    fs, path = _opened(shard.place)
    try:
        with fs.open_input_stream(path, compression="detect") as stream:
            head = stream.read(4096)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"corpus.path: {shard.name} could not be read: {first_line(error)}") from error
    if not head:
        raise UserError(f"corpus.path: {shard.name} is empty; write it again, or leave it out")
    if b"\x00" in head:
        guess = "UTF-16" if head[:2] in (b"\xff\xfe", b"\xfe\xff") else "binary"
        raise UserError(
            f"corpus.path: {shard.name} is not UTF-8 text (it looks {guess}); convert it (iconv -t UTF-8), or set corpus.format"
        )


def _lines(place: str) -> io.TextIOWrapper:
    """Lines of a text file; bytes that are not UTF-8 become lone surrogates, which mark their row as faulty later."""
    fs, path = _opened(place)
    stream = fs.open_input_stream(path, compression="detect", buffer_size=1 << 20)
    return io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline="")


def _delimiter(name: str) -> str:
    return "\t" if _ending(name) == ".tsv" else ","


def _parquet_rows(shard: Shard, columns: dict[str, str | int]) -> Iterator[Row]:
    with _parquet(shard.place) as file:
        groups, rows = [], 0
        for group in range(shard.part or 0, file.num_row_groups):
            if rows >= _ROWS_A_SHARD:
                break
            groups.append(group)
            rows += file.metadata.row_group(group).num_rows
        number = shard.first_row
        for batch in file.iter_batches(
            batch_size=2048, row_groups=groups, columns=[str(c) for c in dict.fromkeys(columns.values())]
        ):
            values = {role: batch.column(str(column)).to_pylist() for role, column in columns.items()}
            for i in range(batch.num_rows):
                yield Row(number, {role: v[i] for role, v in values.items()})
                number += 1


def _json_rows(shard: Shard, columns: dict[str, str | int]) -> Iterator[Row]:
    with _lines(shard.place) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield Row(number, {}, f"not JSON: {first_line(error)}")
                continue
            if not isinstance(row, dict):
                yield Row(number, {}, f"a JSON {type(row).__name__}, not an object")
                continue
            yield Row(number, {role: row.get(str(column)) for role, column in columns.items()})


def _csv_rows(shard: Shard, columns: dict[str, str | int]) -> Iterator[Row]:
    csv.field_size_limit(1 << 30)
    with _lines(shard.place) as lines:
        reader = csv.DictReader(lines, delimiter=_delimiter(shard.name), strict=True)
        while True:
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield Row(reader.reader.line_num, {}, f"not CSV: {error}")
                continue
            yield Row(reader.line_num, {role: row.get(str(column)) for role, column in columns.items()})


_OUTSIDE_OR_IN = re.compile(r"O$|[BIESLUM]-.")


def _conll_rows(shard: Shard, columns: dict[str, str | int]) -> Iterator[Row]:
    default = {"tokens": 0, "tags": -1}
    place = {role: column if isinstance(column, int) else default.get(role) for role, column in columns.items()}
    missing = [role for role, column in place.items() if column is None]
    if missing:
        raise UserError(
            f"corpus.columns: CoNLL files have numbered columns; give {missing[0]} a number, or leave it out"
        )
    need = max(c + 1 if c >= 0 else -c for c in place.values() if c is not None)
    values: dict[str, list[str]] = {role: [] for role in place}
    start, fault = 0, None
    with _lines(shard.place) as lines:
        for number, line in enumerate(lines, start=1):
            cells = re.split(r"[ \t]+", line.strip(" \t\r\n"))  # other white space can be a token
            if not start and cells[0] == "#" and not _OUTSIDE_OR_IN.match(cells[-1]):
                continue  # a comment before a sentence: `# id 7`
            if cells != [""] and cells[0] != "-DOCSTART-":
                start = start or number
                if len(cells) < need or len(cells) < 2:
                    fault = fault or f"line {number} has {len(cells)} columns, not {max(need, 2)}"
                    continue
                for role, column in place.items():
                    values[role].append(cells[column])  # type: ignore[index]
            elif start:
                yield Row(start, values, fault)
                values, start, fault = {role: [] for role in place}, 0, None
    if start:
        yield Row(start, values, fault)
