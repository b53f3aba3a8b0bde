"""Contexts, their tokens, and answers among them, for question answering."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from raymeta.tasks._words import filler


@dataclass(frozen=True)
class Context:
    """A context's token ids, and the characters where each token starts and ends, white space left out."""

    ids: list[int]
    starts: list[int]
    ends: list[int]


def contexts(tokenizer: Any, texts: Sequence[str]) -> dict[str, Context]:
    """Each different text's tokens, without special ones; a text that yields none gets one unknown token."""
    different = list(dict.fromkeys(texts))
    found = tokenizer(different, add_special_tokens=False, return_offsets_mapping=True, verbose=False)
    known = {}
    for text, ids, places in zip(different, found["input_ids"], found["offset_mapping"], strict=True):
        starts, ends = [], []
        for start, end in places:
            inside = text[start:end]
            starts.append(start + len(inside) - len(inside.lstrip()))
            ends.append(max(starts[-1], start + len(inside.rstrip())))
        known[text] = Context(ids, starts, ends) if ids else Context([filler(tokenizer)], [0], [0])
    return known


def template(tokenizer: Any) -> tuple[list[int], list[int], list[int]]:
    """The tokens that the tokenizer puts before, between and after two texts; where it has none between, a line break's."""
    found = tokenizer("a", "a")
    ids, sides = found["input_ids"], found.sequence_ids(0)
    question = [i for i, side in enumerate(sides) if side == 0]
    context = [i for i, side in enumerate(sides) if side == 1]
    between = list(ids[question[-1] + 1 : context[0]])
    return (
        list(ids[: question[0]]),
        between or list(tokenizer("\n", add_special_tokens=False)["input_ids"]) or [filler(tokenizer)],
        list(ids[context[-1] + 1 :]),
    )


def accepted_of(row: dict[str, Any]) -> list[Any]:
    """A row's accepted answers; none where the question has none."""
    given = row["answer"] if isinstance(row["answer"], (list, tuple, np.ndarray)) else [row["answer"]]
    return [a for a in given if a]


def start_of(row: dict[str, Any]) -> int | str:
    """The character of the context where a row's first accepted answer starts, or why that cannot be said."""
    answers, place = row["answer"], row.get("answer_start")
    if isinstance(place, (list, tuple, np.ndarray)):
        several = answers if isinstance(answers, (list, tuple, np.ndarray)) else [answers]
        if len(place) != len(several):
            return f"{len(several)} answers but {len(place)} starts"
        place = next(p for a, p in zip(several, place, strict=True) if a)
    answer: str = accepted_of(row)[0]
    if place is None:
        found: int = row["context"].find(answer)
        return found if found >= 0 else f"the answer {answer[:40]!r} is not in its context"
    try:
        start = int(place)
    except (TypeError, ValueError):
        return f"answer_start is {str(place)[:40]!r}, not a whole number"
    if start < 0 or row["context"][start : start + len(answer)] != answer:
        return f"the answer {answer[:40]!r} does not stand at character {start} of its context"
    return start


def answer_tokens(context: Context, start: int, length: int) -> tuple[int, int] | None:
    """The first and last token that share a character with the answer, or None where no token does."""
    touching = np.flatnonzero((np.array(context.starts) < start + length) & (np.array(context.ends) > start))
    return (int(touching[0]), int(touching[-1])) if len(touching) else None


def best_span(scores: npt.NDArray[np.float64], longest: int) -> tuple[float, int, int]:
    """The highest sum of a start's and an end's score, [token, 2], and both tokens; the end is `start` to `start + longest - 1`."""
    starts, ends = scores[:, 0], scores[:, 1]
    best, first, last = -np.inf, 0, 0
    for more in range(min(longest, len(scores))):
        sums = starts[: len(starts) - more] + ends[more:]
        at = int(sums.argmax())
        if sums[at] > best:
            best, first, last = float(sums[at]), at, at + more
    return best, first, last
