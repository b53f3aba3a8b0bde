"""The small corpora that ship with raymeta: entities of 16 domains, and 36 intents. Written for it; Apache-2.0."""

import hashlib
import re
from collections.abc import Iterator
from importlib.resources import files
from typing import Any, Literal

from pydantic import Field

from raymeta.corpora import Corpus, Row, Shard

_MARKED = re.compile(r"\[([^\]]+)\]\(([a-z_]+)\)")
_WORD = re.compile(r"\w+(?:[.,:]\d+)*(?:'\w+)?|[^\w\s]")


class Quickstart(Corpus):
    """A shipped corpus: `entities` (tokens, tags, task) or `intents` (text, label, task)."""

    columns: dict[str, str | int] = Field({"task": "task"})
    """Role -> column; the roles are as they should be."""
    part: Literal["entities", "intents"] = "entities"
    """`entities`: 16 domains of 45 sentences, 5 entity types each; `intents`: 6 domains of 6 intents, 16 texts each."""

    def shards(self) -> list[Shard]:
        there = sorted(f.name for f in self._folder().iterdir() if f.name.endswith(".txt"))
        return [Shard(f"quickstart/{self.part}/{name}", name, None, 0, i) for i, name in enumerate(there)]

    def _folder(self) -> Any:
        return files("raymeta.corpora").joinpath("quickstart_data", self.part)

    def names(self, shard: Shard) -> list[str]:
        return ["tokens", "tags", "task"] if self.part == "entities" else ["text", "label", "task"]

    def fingerprint(self) -> str:
        texts = [self._folder().joinpath(s.place).read_bytes() for s in self.shards()]
        return hashlib.sha256(b"\x00".join(texts)).hexdigest()

    def rows(self, shard: Shard, columns: dict[str, str | int]) -> Iterator[Row]:
        lines = self._folder().joinpath(shard.place).read_text(encoding="utf-8").splitlines()
        for number, line in enumerate(lines, start=1):
            values: dict[str, Any] = {"task": shard.place.removesuffix(".txt")}
            if self.part == "intents":
                values["label"], _, values["text"] = line.partition("\t")
            else:
                values["tokens"], values["tags"] = marked_words(line)
            yield Row(number, {role: values.get(str(column)) for role, column in columns.items()})


def marked_words(line: str) -> tuple[list[str], list[str]]:
    """Words and BIO tags of a sentence whose entities are written as [words](type)."""
    tokens: list[str] = []
    tags: list[str] = []
    end = 0
    for found in [*_MARKED.finditer(line), None]:
        between = _WORD.findall(line[end : found.start() if found else len(line)])
        tokens += between
        tags += ["O"] * len(between)
        if found:
            inside = _WORD.findall(found[1])
            tokens += inside
            tags += [f"{'I' if i else 'B'}-{found[2]}" for i in range(len(inside))]
            end = found.end()
    return tokens, tags
