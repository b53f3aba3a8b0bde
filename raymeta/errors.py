"""The one error that a user is meant to read, and how mistakes in settings are put into words."""

import os
import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from pydantic import ValidationError


class UserError(ValueError):
    """A mistake in settings, data or folders: the message names what is wrong, its value, and the remedy.

    The command line prints it without a traceback and exits with status 2.
    """


@dataclass(frozen=True)
class Place:
    """Where settings stand that code below calls by their sections' names: `corpus[1]` for `corpus`, say.

    sections: those of this place; what is called `tasks` is then `corpus[1].tasks`.
    """

    name: str = ""
    sections: tuple[str, ...] = ()

    @contextmanager
    def told(self) -> Iterator[None]:
        """A UserError raised within names this place."""
        try:
            yield
        except UserError as error:
            if not self.name:
                raise
            raise UserError(self._renamed(str(error))) from error

    def _renamed(self, message: str) -> str:
        owner = self.name.partition("[")[0]
        for section in self.sections:
            name = self.name if section == owner else f"{self.name}.{section}"
            message = re.sub(rf"(?<![\w./\]-]){section}(?=\.[a-z_])|^{section}(?=:)", name, message)
        return message if self.name in message else f"{self.name}: {message}"


HERE = Place()
"""That of a run with one corpus: sections are where they are called to be."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """'; did you mean ...?' when `word` is close to a known one, else ''."""
    close = get_close_matches(str(word), [str(k) for k in known], n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""


def first_line(error: BaseException) -> str:
    """The first line of what an error says, or its kind where it says nothing; without a full stop."""
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(" .:")


def expanded(path: str, setting: str) -> str:
    """`path` with `~` and `$NAME` replaced; raises UserError for a variable that is not set."""
    found = os.path.expanduser(os.path.expandvars(path))
    missing = re.search(r"\$(\w+|\{[^}]*\})", found)
    if missing:
        raise UserError(
            f"{setting}: {path} needs the environment variable {missing[1].strip('{}')}, which is not set; "
            "set it, or write the path out"
        )
    return found


_WANTED = {
    "int_type": "a whole number", "int_parsing": "a whole number", "int_from_float": "a whole number",
    "int_parsing_size": "a smaller whole number", "float_type": "a number", "float_parsing": "a number",
    "finite_number": "a finite number", "bool_type": "true or false", "bool_parsing": "true or false", "string_type": "text",
    "list_type": "a list", "tuple_type": "a list", "dict_type": "a mapping", "greater_than": "a number greater than {gt:g}",
    "greater_than_equal": "at least {ge:g}", "less_than": "a number less than {lt:g}", "less_than_equal": "at most {le:g}",
    "literal_error": "{expected}", "wanted": "{wanted}",
    "too_short": "a list of at least {min_length}", "too_long": "a list of at most {max_length}",
}  # fmt: skip
"""What pydantic misses, in words that complete "give ..."."""


_Mistake = tuple[tuple[str, ...], Any]
"""Where a mistake is, and what pydantic says of it."""


def told(error: ValidationError) -> list[str]:
    """One line for each mistake: the setting's dotted name, what it should be, and what it is."""
    wanted: dict[tuple[str, ...], tuple[list[str], Any]] = {}
    lines: dict[str, None] = {}
    for place, mistake in _of_the_nearest_member(list(_mistakes(error, ()))):
        name = _dotted(place)
        kind, context, value = mistake["type"], mistake.get("ctx", {}), mistake.get("input")
        if kind in _WANTED:
            wanted.setdefault(place, ([], value))[0].append(_WANTED[kind].format(**context))
            continue
        message = "is missing, and has no default" if kind == "missing" else str(context.get("error") or mistake["msg"])
        inside = re.match(r"[a-z_][a-z_.0-9]*: ", message)
        if name and inside and not inside[0].startswith((f"{name}:", f"{name}.")):
            message = f"{name}.{message}"
        elif name and not inside:
            message = f"{name}: {message}"
        lines[message] = None
    for place, (words, value) in wanted.items():
        give = " or ".join(dict.fromkeys(words))
        give = give.replace("' or '", "', '", give.count("' or ") - 1) if "' or a" in give else give
        hint = did_you_mean(value, re.findall(r"'(\w+)'", give)) if isinstance(value, str) else ""
        shown = repr(value)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        name = _dotted(place) or "the run"
        lines[f"{name}: " + (f"is empty; give {give}" if value is None else f"give {give}, not {shown}{hint}")] = None
    return list(lines)


def _dotted(place: tuple[str, ...]) -> str:
    return ".".join(place).replace(".[", "[")


def _of_the_nearest_member(found: list[_Mistake]) -> list[_Mistake]:
    """The mistakes without those that other members of a union found: one that read on into the value was meant."""

    def unknown(mistake: Any) -> bool:
        return mistake["type"] == "setting" and str(mistake["msg"]).startswith("unknown setting")

    kept: list[_Mistake] = []
    for place, mistake in found:
        here = [m for p, m in found if p == place]
        deeper = any(len(p) > len(place) and p[: len(place)] == place for p, _ in found)
        near = [m for m in here if unknown(m) and "did you mean" in m["msg"]]
        if unknown(mistake):
            keep = not deeper and mistake is (near or [m for m in here if unknown(m)])[0]
        else:
            keep = mistake["type"] not in _WANTED or not (deeper or any(unknown(m) for m in here))
        if keep:
            kept.append((place, mistake))
    return kept


def _mistakes(error: ValidationError, above: tuple[str, ...]) -> Iterator[_Mistake]:
    for mistake in error.errors():
        place = (*above, *(f"[{p}]" if isinstance(p, int) else p for p in mistake["loc"] if not _is_a_type(p)))
        inner = mistake.get("ctx", {}).get("error")
        if isinstance(inner, ValidationError):
            yield from _mistakes(inner, place)
        else:
            yield place, mistake


def _is_a_type(part: str | int) -> bool:
    """Whether pydantic put the name of a union's member where a setting's name should be."""
    return isinstance(part, str) and (
        "[" in part or part in {"str", "int", "float", "bool"} or re.fullmatch(r"[A-Z][a-z]\w*", part) is not None
    )
