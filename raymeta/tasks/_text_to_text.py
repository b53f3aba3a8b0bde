"""From text to text: what the kinds that generate share. A task is a group of rows that belong together."""

from abc import abstractmethod
from collections.abc import Sequence
from string import Formatter
from typing import Any, ClassVar, Literal

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import Field, field_validator, model_validator
from torch import Tensor

from raymeta.episodes import Drawn, Episode, Examples, Ints, Pool
from raymeta.errors import UserError, did_you_mean
from raymeta.inner import Picks
from raymeta.tasks import Choices, Range, Tasks, Texts


class Generation(Tasks):
    """Text to text: `shots` solved instances of one task to learn from, `queries` others to solve.

    Reads the roles `source`, `target` and `task` (a language pair, a domain, a service, an instruction), which must be named
    as it says what belongs together, and `references` (a list of further accepted targets) where that is named. A class of
    an episode is its one task.
    """

    generates: ClassVar[bool] = True
    roles: ClassVar[tuple[str, ...]] = ("source", "target")
    optional: ClassVar[tuple[str, ...]] = ("references",)
    fewest_ways: ClassVar[int] = 1
    metric: ClassVar[str] = "token_accuracy"
    fields: ClassVar[tuple[str, ...]] = ("task",)
    """What a template may name beside `{source}`."""

    ways: Range = (1, 1)
    """Tasks of an episode: always 1."""
    shots: Range = (8, 8)
    """Support instances of the task (K), or [low, high]."""
    queries: int = Field(8, ge=1)
    """Query instances of the task."""
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

    @model_validator(mode="after")
    def _one_task(self) -> "Generation":
        if self.ways != (1, 1):
            raise ValueError(f"ways: an episode of {self.kind} is one task; leave ways out")
        return self

    # reading

    def check(self, tokenizer: Any) -> None:
        if not tokenizer.is_fast:
            raise UserError(
                f"model.name: {self.kind} needs a fast tokenizer, and {type(tokenizer).__name__} has none; save one beside the "
                "model (tokenizer.json)"
            )
        self.end(tokenizer)

    def end(self, tokenizer: Any) -> int:
        """The token that ends a target; raises UserError where the tokenizer has none."""
        for token in (tokenizer.eos_token_id, tokenizer.sep_token_id):
            if token is not None:
                return int(token)
        raise UserError(
            f"model.name: {self.kind} needs a token that ends a text, and the tokenizer has neither eos_token nor sep_token; "
            "set eos_token in its tokenizer_config.json"
        )

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
        first, last = _specials(tokenizer)
        before, after = self._around()
        between = self.separator if self.separator is not None else "" if last else "\n=>"
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

    # drawing

    def class_need(self, shots: int) -> int:
        return shots + self.queries

    def choices(self, pool: Pool) -> Choices:
        need, sizes = self.class_need(self.shots[1]), pool.class_sizes()
        if not (sizes >= need).any():
            raise UserError(
                f"tasks.shots: no task of the {pool.split} split has {need} instances (shots {self.shots[1]} + queries "
                f"{self.queries}); the largest has {sizes.max()}; lower tasks.shots or tasks.queries"
            )
        return super().choices(pool)

    def _fill(self, pool: Pool, classes: Ints, task: int | None, shots: int, rng: np.random.Generator) -> Drawn:
        rows = pool.rows_of(int(classes[0]), task)
        picked = rows[rng.choice(len(rows), shots + self.queries, replace=False, shuffle=True)]
        return Drawn((pool.classes[classes[0]],), picked[:shots], picked[shots:])

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

    # learning and scoring

    def picks(self, examples: Examples, pooling: str) -> Picks:
        """Each target token is an item, told by the decoder's state at its place."""
        return Picks(torch.arange(len(examples.extra["target_ids"]), device=examples.ids.device))

    def targets(self, examples: Examples) -> Tensor:
        return examples.extra["target_ids"]

    def score(self, logits: Tensor, examples: Examples, classes: Sequence[str]) -> dict[str, float]:
        """Over target tokens, each told from those before it: `token_accuracy`, and `query_loss` in nats a token."""
        targets = self.targets(examples)
        return {
            "token_accuracy": float((logits.argmax(-1) == targets).double().mean()),
            "query_loss": float(F.cross_entropy(logits.double(), targets)),
        }

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


def _specials(tokenizer: Any) -> tuple[list[int], list[int]]:
    """The special tokens that the tokenizer puts before and after a text."""
    found = tokenizer("a", return_special_tokens_mask=True)
    inside = [i for i, special in enumerate(found["special_tokens_mask"]) if not special]
    return found["input_ids"][: inside[0]], found["input_ids"][inside[-1] + 1 :]


def _tokens(tokenizer: Any, texts: list[str], places: bool = False) -> Any:
    """Tokens of whole texts, in which special tokens are words like any other; with their `offset_mapping` if asked."""
    return tokenizer(
        texts, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=places, verbose=False
    )


def _edges(places: Sequence[tuple[int, int]], before: str, source: str, after: str) -> tuple[int, int]:
    """How many tokens of a text lie before and after its source."""
    stop = len(before) + len(source)
    return sum(end <= len(before) for _, end in places), sum(start >= stop for start, _ in places) if after else 0
