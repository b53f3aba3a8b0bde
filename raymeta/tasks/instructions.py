"""Instructions: a task is told in words and by some solved instances, whatever its kind."""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field, model_validator

from raymeta.episodes import Examples, Ints
from raymeta.errors import UserError, expanded, first_line
from raymeta.tasks._text_to_text import Generation
from raymeta.text_metrics import needed, rouge, same_text


class Instructions(Generation):
    """Definition and input to output (Wang et al. 2022, Super-NaturalInstructions); a task (role `task`) is an instruction.

    Definitions are read from the role `definition`, or from the file `definitions`. Scored by ROUGE-L and exact match, as
    the benchmark has them; where the role `group` is named (a kind, a category), for each group as well.
    """

    optional: ClassVar[tuple[str, ...]] = ("references", "definition", "group")
    fields: ClassVar[tuple[str, ...]] = ("task", "definition")

    template: str = "{definition} {source}"
    """What the model is given: the input as `{source}`, the `{definition}`, and `{task}`, in any words."""
    definitions: str | None = None
    """A JSON file: an object, task -> its definition, or a list of objects with `task` and `definition`. Absent: the role
    `definition`, if the template holds one."""
    definition_length: int = Field(64, ge=1)
    """Tokens of a definition; what is over is left out, so that the input has room."""

    @model_validator(mode="after")
    def _reads_its_definitions(self) -> "Instructions":
        if self.definitions is not None and "{definition}" not in self.template:
            raise ValueError(
                "definitions: the template holds no {definition}; leave definitions out, or change the template"
            )
        return self

    def reads(self) -> tuple[str, ...]:
        asked = "{definition}" in self.template and self.definitions is None
        return ("source", "definition", "target") if asked else self.roles

    def check(self, tokenizer: Any) -> None:
        needed("rouge_score")
        if self.definitions is not None:
            _read(self.definitions)
        super().check(tokenizer)

    def fingerprint(self) -> str:
        return "" if self.definitions is None else json.dumps(_read(self.definitions), sort_keys=True)

    def fault(self, row: dict[str, Any]) -> str | None:
        if "{definition}" in self.template:
            found = self._definition(row)
            if not isinstance(found, str) or not found.strip():
                return f"task {str(row.get('task', ''))!r} has no definition"
        group = row.get("group", "")
        return super().fault(row) if isinstance(group, str) else "group is missing"

    def _definition(self, row: dict[str, Any]) -> Any:
        if self.definitions is None:
            return row["definition"]
        return _read(self.definitions).get(str(row.get("task", "")))

    def filled(self, rows: Sequence[dict[str, Any]], tokenizer: Any) -> list[dict[str, str]]:
        if "{definition}" not in self.template:
            return super().filled(rows, tokenizer)
        whole = [self._definition(row) for row in rows]
        short = {text: self._clipped(text, tokenizer) for text in dict.fromkeys(whole)}
        return [
            {"task": str(row.get("task", "")), "definition": short[text]} for row, text in zip(rows, whole, strict=True)
        ]

    def _clipped(self, text: str, tokenizer: Any) -> str:
        found = tokenizer(
            text, add_special_tokens=False, split_special_tokens=True, return_offsets_mapping=True, verbose=False
        )
        ends = [end for _, end in found["offset_mapping"]]
        return text if len(ends) <= self.definition_length else text[: ends[self.definition_length - 1]]

    def texts(self, row: dict[str, Any]) -> dict[str, list[int]]:
        group = {"group": list(row["group"].encode())} if "group" in row else {}
        return {**super().texts(row), **group}

    def examples(self, table: dict[str, Any], rows: Ints, classes: Sequence[str]) -> Examples:
        found = super().examples(table, rows, classes)
        if "group" in table:  # the same for all instances of a task
            found.extra["group"] = torch.from_numpy(np.array(table["group"][0], dtype=np.int64))
        return found

    def score_texts(self, answers: list[str], examples: Examples, classes: Sequence[str]) -> dict[str, float]:
        references = self.references(examples)
        found = {"rouge_l": rouge(answers, references)["rouge_l"], "exact_match": same_text(answers, references)}
        if "group" not in examples.extra:
            return found
        group = bytes(examples.extra["group"].tolist()).decode()
        return found | {f"{group}/{name}": value for name, value in found.items()}


def _read(path: str) -> dict[str, str]:
    """Task -> definition, of a JSON file; raises UserError."""
    name = expanded(path, "tasks.definitions")
    try:
        return _parsed(name, Path(name).stat().st_mtime_ns)
    except (OSError, ValueError) as error:
        raise UserError(f"tasks.definitions: {name} could not be read: {first_line(error)}") from error


@lru_cache(maxsize=4)
def _parsed(name: str, _: int) -> dict[str, str]:
    found = json.loads(Path(name).read_text(encoding="utf-8"))
    if isinstance(found, list):
        found = {str(entry.get("task")): entry for entry in found if isinstance(entry, dict)}
    if not isinstance(found, dict) or not found:
        raise ValueError(
            "it holds neither an object, task -> definition, nor a list of objects with task and definition"
        )
    texts = {task: value.get("definition") if isinstance(value, dict) else value for task, value in found.items()}
    return {task: text for task, text in texts.items() if isinstance(text, str)}
