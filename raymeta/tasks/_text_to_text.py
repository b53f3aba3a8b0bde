"""From text to text: what the kinds that generate share. A task is a group of rows that belong together."""

from abc import abstractmethod
from collections.abc import Sequence
from string import Formatter
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field, field_validator

from raymeta.episodes import Episode, Examples, Ints
from raymeta.errors import UserError, did_you_mean
from raymeta.tasks import Texts
from raymeta.tasks._next_token import NextToken, specials


class Generation(NextToken):
    """Text to text: `shots` solved instances of one task to learn from, `queries` others to solve.

    Reads the roles `source`, `target` and `task` (a language pair, a domain, a service, an instruction), which must be named
    as it says what belongs together, and `references` (a list of further accepted targets) where that is named. A class of
    an episode is its one task.
    """

    roles: ClassVar[tuple[str, ...]] = ("source", "target")
    optional: ClassVar[tuple[str, ...]] = ("references",)
    fields: ClassVar[tuple[str, ...]] = ("task",)
    """What a template may name beside `{source}`."""

    template: str = "{source}"
    """What the model is given: the source as `{source}`, and `{task}`, in any words: `translate to {task}: {source}`."""
    separator: str | None = None
    """Text between source and target; absent: none where the tokenizer itself ends a text with a special token (T5), else
    a line break and `=>`."""
    max_target_length: int = Field(64, ge=2)
    """Tokens of a target, end-of-sequence token included; `model.max_length` is the source's limit."""
    too_long: Literal["cut", "set_aside"] = "cut"
    """What becomes of rows whose source or target is over its limit: `cut` keeps what fits, and `set_aside` leaves them
    out as bad rows."""
    keep: Literal["start", "end"] = "start"
    """Which end of a source that is cut remains."""

    @field_validator("template")
    @classmethod
    def _holds_the_source(cls, template: str) -> str:
        try:
            names = [name for _, name, _, _ in Formatter().parse(template) if name is not None]
        except ValueError as error:
            raise ValueError(f"{template!r} is no template: {error}; write a brace as {{{{ or }}}}") from error
        known = ("source", *cls.fields)
        for name in names:
            if name not in known:
                raise ValueError(
                    f"{{{name}}} is nothing that a template can hold{did_you_mean(name, known)} "
                    f"(there are: {', '.join(f'{{{k}}}' for k in known)})"
                )
        if names.count("source") != 1:
            raise ValueError(f"{template!r} must hold {{source}} once")
        return template

    # reading

    def check(self, tokenizer: Any) -> None:
        if not tokenizer.is_fast:
            raise UserError(
                f"model.name: {self.kind} needs a fast tokenizer, and {type(tokenizer).__name__} has none; save one beside the "
                "model (tokenizer.json)"
            )
        self.end(tokenizer)

    def fault(self, row: dict[str, Any]) -> str | None:
        for role in ("source", "target"):
            if not isinstance(row[role], str):
                return f"{role} is {'missing' if row[role] is None else type(row[role]).__name__}, not a string"
            if not row[role].strip():
                return f"{role} is empty"
        more = row.get("references")
        if more is not None and not (isinstance(more, (list, tuple)) and all(isinstance(r, str) for r in more)):
            return "references is not a list of strings"
        return None

    def encode(self, rows: Sequence[dict[str, Any]], tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
        first, last = specials(tokenizer)
        before, after = self._around()
        between = self._between(last)
        values = self.filled(rows, tokenizer)
        texts = [
            (before.format_map(v), str(r["source"]), after.format_map(v) + between)
            for r, v in zip(rows, values, strict=True)
        ]
        sources = _tokens(tokenizer, ["".join(text) for text in texts], places=True)
        targets = _tokens(tokenizer, [r["target"] for r in rows])
        end = self.end(tokenizer)
        room = max_length - len(first) - len(last)
        encoded = []
        for i, row in enumerate(rows):
            ids = sources["input_ids"][i]
            target = [t for t in targets["input_ids"][i] if t != end]  # unigram models know `</s>` as a piece as well
            head, tail = _edges(sources["offset_mapping"][i], *texts[i])
            left = room - head - tail
            over = len(ids) > room or len(target) >= self.max_target_length
            whole = ids[head : len(ids) - tail]
            inside = whole[: max(0, left)] if self.keep == "start" else whole[max(0, len(whole) - left) :]
            found: dict[str, Any] = {
                "ids": [*first, *ids[:head], *inside, *ids[len(ids) - tail :], *last],
                "classes": [str(row.get("task", ""))],
                "counts": [1],
                "cut": over,
                "target_ids": [*target[: self.max_target_length - 1], end],
                **self.texts(row),
            }
            if left < 1 and len(ids) > room:
                found["fault"] = f"the template alone has {head + tail} tokens, more than model.max_length leaves"
            elif over and self.too_long == "set_aside":
                found["fault"] = "source or target is longer than model.max_length or tasks.max_target_length"
            elif not whole or not target:
                found["fault"] = f"{'target' if whole else 'source'} has no token"
            encoded.append(found)
        return encoded

    def filled(self, rows: Sequence[dict[str, Any]], tokenizer: Any) -> list[dict[str, str]]:
        """What the template's fields stand for, row by row."""
        return [{"task": str(row.get("task", ""))} for row in rows]

    def _between(self, last: list[int]) -> str:
        """What stands between source and target, where the tokenizer puts `last` behind a text."""
        return self.separator if self.separator is not None else "" if last else "\n=>"

    def _around(self) -> tuple[str, str]:
        """The template before and after its source."""
        sides = ["", ""]
        at = 0
        for text, name, _, _ in Formatter().parse(self.template):
            sides[at] += text.replace("{", "{{").replace("}", "}}")
            if name == "source":
                at = 1
            elif name is not None:
                sides[at] += f"{{{name}}}"
        return sides[0], sides[1]

    def texts(self, row: dict[str, Any]) -> dict[str, list[int]]:
        """The accepted texts as UTF-8 bytes end to end, and the length of each."""
        accepted = [t.encode() for t in dict.fromkeys([row["target"], *(row.get("references") or [])]) if t.strip()]
        return {"reference": list(b"".join(accepted)), "reference_lengths": [len(t) for t in accepted]}

    def examples(self, table: dict[str, Any], rows: Ints, classes: Sequence[str]) -> Examples:
        return Texts.joined(
            table,
            rows,
            {
                "target_ids": np.concatenate(table["target_ids"]),
                "target_lengths": [len(t) for t in table["target_ids"]],
                "reference": np.concatenate(table["reference"]),
                "reference_lengths": np.concatenate(table["reference_lengths"]),
                "references": [len(n) for n in table["reference_lengths"]],
            },
        )

    @abstractmethod
    def score_texts(self, answers: list[str], examples: Examples, classes: Sequence[str]) -> dict[str, float]:
        """The metrics of one episode's generated answers, one a query, by name."""

    def references(self, examples: Examples) -> list[list[str]]:
        """The accepted texts of each example; the first is its target."""
        data = examples.extra["reference"].numpy().astype(np.uint8).tobytes()
        ends = examples.extra["reference_lengths"].cumsum(0).tolist()
        texts = [data[a:b].decode() for a, b in zip([0, *ends[:-1]], ends, strict=True)]
        counts = examples.extra["references"].cumsum(0).tolist()
        return [texts[a:b] for a, b in zip([0, *counts[:-1]], counts, strict=True)]

    # in use, after training

    def prompt(self, tokenizer: Any) -> str:
        """What the model is given, as a template of Python's `format`."""
        return self.template + self._between(specials(tokenizer)[1]).replace("{", "{{").replace("}", "}}")

    def asked(self, row: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
        return {"task": classes[0], **row, self.reads()[-1]: "a"}

    def show(self, episode: Episode, tokenizer: Any) -> str:
        lines = [f"task: {episode.classes[0]}"]
        for side, examples in (("support", episode.support), ("query", episode.query)):
            lines.append(f"{side}: {len(examples)} instances")
            sources = torch.split(examples.ids, examples.lengths.tolist())
            targets = torch.split(examples.extra["target_ids"], examples.extra["target_lengths"].tolist())
            for ids, target in zip(sources, targets, strict=True):
                lines.append(f"  {tokenizer.decode(ids)}")
                lines.append(f"    -> {tokenizer.decode(target)}")
        return "\n".join(lines)


def _tokens(tokenizer: Any, texts: list[str], places: bool = False) -> Any:
    """Tokens of whole texts, in which special tokens are words like any other; with their `offset_mapping` if asked."""
    return tokenizer(
        texts, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=places, verbose=False
    )


def _edges(places: Sequence[tuple[int, int]], before: str, source: str, after: str) -> tuple[int, int]:
    """How many tokens of a text lie before and after its source."""
    stop = len(before) + len(source)
    return sum(end <= len(before) for _, end in places), sum(start >= stop for start, _ in places) if after else 0
