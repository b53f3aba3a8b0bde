"""Plain text without labels: one document a line, between blank lines, or a file."""

from collections.abc import Iterator
from typing import Literal

import pyarrow as pa

from raymeta.corpora import Corpus, Row, Shard
from raymeta.corpora.files import Paths, _expanded, _first_bytes, _lines, _opened
from raymeta.errors import UserError, first_line


class Text(Corpus):
    """Files of plain text (UTF-8, also compressed). Its columns are `text` and `file`, the name of the file."""

    path: Paths
    """A path or URI, a list of them, or a folder, all of whose files are read. `~` and `$NAME` expand."""
    document: Literal["line", "block", "file"] = "block"
    """What is one document: a `line`; a `block` of lines, ended by a blank line; a whole `file`."""

    def shards(self) -> list[Shard]:
        paths = [self.path] if isinstance(self.path, str) else self.path
        names = [name for path in paths for name in _expanded(path, "text")]
        return [Shard(name, name, None, 0, order) for order, name in enumerate(names)]

    def names(self, shard: Shard) -> list[str]:
        _first_bytes(shard)
        return ["text", "file"]

    def fingerprint(self) -> str:
        seen = []
        for shard in self.shards():
            fs, path = _opened(shard.place)
            info = fs.get_file_info(path)
            seen.append(f"{shard.name}:{info.size}:{info.mtime_ns}")
        return "\n".join(seen)

    def rows(self, shard: Shard, columns: dict[str, str | int]) -> Iterator[Row]:
        try:
            for number, text in self._documents(shard):
                values = {"text": text, "file": shard.name}
                yield Row(number, {role: values.get(str(column)) for role, column in columns.items()})
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"corpus.path: {shard.name} could not be read to its end: {first_line(error)}") from error

    def _documents(self, shard: Shard) -> Iterator[tuple[int, str]]:
        """First line and text of each document."""
        with _lines(shard.place) as lines:
            if self.document == "file":
                yield 1, lines.read()
                return
            held: list[str] = []
            number = 0
            for number, line in enumerate(lines, start=1):
                if line.strip():
                    held.append(line)
                if held and (self.document == "line" or not line.strip()):
                    yield number - len(held) + bool(line.strip()), "".join(held).strip("\r\n")
                    held = []
            if held:
                yield number - len(held) + 1, "".join(held).strip("\r\n")
