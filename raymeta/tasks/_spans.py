"""Entities as a person writes and reads them: [marked](type) text in, spans out."""

import re
from collections.abc import Sequence
from typing import NamedTuple

_WORD = re.compile(r"\w+(?:['’-]\w+)*|[^\w\s]")
_MARK = re.compile(r"\[([^\[\]]+)\]\(([^()\s]+)\)")


class Span(NamedTuple):
    """An entity. start and end count characters where the text was a string, else words; end is the first after it."""

    type: str
    text: str
    start: int
    end: int


def words(text: str) -> list[str]:
    """A text's words and punctuation marks."""
    return _WORD.findall(text)


def marked(text: str) -> tuple[list[str], list[str]]:
    """Words and BIO tags of a text in which each entity is written as [its words](type)."""
    found: list[str] = []
    tags: list[str] = []
    place = 0
    for mark in _MARK.finditer(text):
        before, inside = words(text[place : mark.start()]), words(mark[1])
        found += before + inside
        tags += ["O"] * len(before) + [f"{'I' if i else 'B'}-{mark[2]}" for i in range(len(inside))]
        place = mark.end()
    rest = words(text[place:])
    return found + rest, tags + ["O"] * len(rest)


def spans(given: str | Sequence[str], tags: Sequence[str]) -> list[Span]:
    """The entities of a text, given its words (or the text, of which `words` makes them) and their BIO tags."""
    places = [m.span() for m in _WORD.finditer(given)] if isinstance(given, str) else []
    found: list[Span] = []
    first = 0
    for i, tag in enumerate(tags):
        if tag.startswith("B-"):
            first = i
        if tag == "O" or (i + 1 < len(tags) and tags[i + 1] == f"I-{tag[2:]}"):
            continue
        if isinstance(given, str):
            start, end = places[first][0], places[i][1]
            found.append(Span(tag[2:], given[start:end], start, end))
        else:
            found.append(Span(tag[2:], " ".join(given[first : i + 1]), first, i + 1))
    return found
