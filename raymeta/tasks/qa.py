"""Extractive question answering: where in a context a question's answer stands, from K answered questions of one task."""

from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Any, ClassVar

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor

from raymeta.episodes import Drawn, Episode, Examples, Ints, Pool
from raymeta.errors import UserError
from raymeta.inner import Picks
from raymeta.metrics import found_scores
from raymeta.tasks import Range, Tasks, Texts, seen
from raymeta.tasks._windows import Context, accepted_of, answer_tokens, best_span, contexts, start_of, template
from raymeta.text_metrics import exact_match, token_f1


class Qa(Tasks):
    """Spans of a context: an episode is `shots` answered questions of one task (an article, a domain, a language), and
    `queries` others to answer.

    Reads the roles `question`, `context` and `answer` (a string, or a list of accepted ones, of which the first is learned),
    and where they are named: `answer_start` (the character of the context where it starts, or a list; absent: where it first
    occurs), `language` (of the answers' normalisation), and `task`. A context that is too long is read in windows that
    overlap; every window has two outputs for each of its context's tokens, start and end, and for its first token, which says
    that the answer is not here (Devlin et al. 2019, section 4.3, https://arxiv.org/abs/1810.04805).
    """

    roles: ClassVar[tuple[str, ...]] = ("question", "context", "answer")
    optional: ClassVar[tuple[str, ...]] = ("answer_start", "language")
    metric: ClassVar[str] = "token_f1"
    fewest_ways: ClassVar[int] = 1
    fixed_outputs: ClassVar[bool] = True

    ways: Range = (1, 1)
    """Tasks of an episode: always 1."""
    shots: Range = (8, 8)
    """Support questions (K), or [low, high]."""
    queries: int = Field(8, ge=1)
    """Query questions."""
    stride: int = Field(64, ge=1)
    """Tokens that a window shares with the next, for contexts longer than `model.max_length` leaves room for."""
    max_windows: int = Field(8, ge=1)
    """Windows of a context; what lies beyond them is cut."""
    max_question_tokens: int = Field(64, ge=1)
    """Tokens of a question; longer ones are cut."""
    max_answer_tokens: int = Field(30, ge=1)
    """Tokens of a predicted answer."""
    no_answer: bool = False
    """Whether some questions have no answer (an empty or missing `answer`): then the model may give none. Off: such rows are
    bad rows."""
    language: str = "en"
    """Whose articles and characters decide when answers are the same, where rows do not name one: `en`, `de`, `zh`, ..."""

    @model_validator(mode="after")
    def _one_task(self) -> "Qa":
        if self.ways != (1, 1):
            raise ValueError(f"ways: an episode of {self.kind} is one task; leave ways out")
        return self

    def outputs_for(self, ways: int) -> int:
        return 2

    def check(self, tokenizer: Any) -> None:
        if not tokenizer.is_fast:
            raise UserError(
                f"model.name: {self.kind} needs a fast tokenizer, which knows where its tokens stand, and {type(tokenizer).__name__} "
                "does not; save one beside the model (tokenizer.json)"
            )

    # reading

    def fault(self, row: dict[str, Any]) -> str | None:
        for role in ("question", "context"):
            if not isinstance(row[role], str):
                return f"{role} is {seen(row[role])}, not a string"
            if not row[role].strip():
                return f"{role} is empty"
        if row.get("language") is not None and not isinstance(row["language"], str):
            return f"language is {seen(row['language'])}, not a string"
        if row.get(_ASKED):
            return None
        accepted = accepted_of(row)
        if not accepted:
            return None if self.no_answer else "there is no answer, and tasks.no_answer is off"
        if not all(isinstance(a, str) for a in accepted):
            return f"answer is {seen(row['answer'])}, not a string or a list of strings"
        start = start_of(row)
        return start if isinstance(start, str) else None

    def encode(self, rows: Sequence[dict[str, Any]], tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
        before, between, after = template(tokenizer)
        asked = tokenizer([r["question"] for r in rows], add_special_tokens=False, verbose=False)["input_ids"]
        known = contexts(tokenizer, [r["context"] for r in rows])
        encoded = []
        for row, question in zip(rows, asked, strict=True):
            head = [*before, *question[: self.max_question_tokens], *between]
            room = max_length - len(head) - len(after)
            found = self._windows(row, known[row["context"]], head, after, room)
            found["cut"] = found["cut"] or len(question) > self.max_question_tokens
            encoded.append(found)
        return encoded

    def _windows(
        self, row: dict[str, Any], context: Context, head: list[int], after: list[int], room: int
    ) -> dict[str, Any]:
        """A row's windows end to end, where their tokens stand in the context, and the items where its answer starts and ends."""
        accepted = [] if row.get(_ASKED) else accepted_of(row)
        span = None
        fault = None if room >= _FEWEST else f"the question leaves {room} tokens of model.max_length for its context"
        if accepted:
            start = start_of(row)
            assert isinstance(start, int), "a row whose answer is not there was to be set aside"
            span = answer_tokens(context, start, len(accepted[0]))
            fault = fault or (None if span else "the answer has no token")
        step, size = max(1, room - self.stride), len(context.ids)
        firsts = list(range(0, max(1, size - room + step), step))
        pieces = [range(first, min(first + max(room, 1), size)) for first in firsts[: self.max_windows]]
        marks = [
            (span[0] - p.start + 1, span[1] - p.start + 1) if span and span[0] in p and span[1] in p else (0, 0)
            for p in pieces
        ]
        if span and not any(start for start, _ in marks):
            fault = (
                fault or "no window holds the whole answer; raise tasks.stride, tasks.max_windows or model.max_length"
            )
        found = {
            "ids": [i for p in pieces for i in (*head, *context.ids[p.start : p.stop], *after)],
            "classes": [str(row.get("task") or self.kind)],
            "counts": [1],
            "cut": len(firsts) > self.max_windows,
            "windows": [len(head) + len(p) + len(after) for p in pieces],
            "first": [len(head)] * len(pieces),
            "held": [len(p) for p in pieces],
            "marks": [m for pair in marks for m in pair],
            "starts": [s for p in pieces for s in context.starts[p.start : p.stop]],
            "ends": [e for p in pieces for e in context.ends[p.start : p.stop]],
            "text": [ord(c) for c in row["context"]],
            "accepted": [ord(c) for a in accepted for c in a],
            "accepted_lengths": [len(a) for a in accepted],
            "language": [ord(c) for c in (row.get("language") or self.language)],
        }
        return found | {"fault": fault} if fault else found

    # drawing

    def class_need(self, shots: int) -> int:
        return shots + self.queries

    def _fill(self, pool: Pool, classes: Ints, task: int | None, shots: int, rng: np.random.Generator) -> Drawn:
        rows = pool.rows_of(int(classes[0]), task)
        picked = rows[rng.choice(len(rows), shots + self.queries, replace=False, shuffle=True)]
        return Drawn((pool.classes[classes[0]],), picked[:shots], picked[shots:])

    def examples(self, table: dict[str, Any], rows: Ints, classes: Sequence[str]) -> Examples:
        """`lengths` and `rows` go by window; `questions` says how many windows each question has."""
        counts = [len(w) for w in table["windows"]]
        joined = Texts.joined(
            table,
            np.repeat(np.asarray(rows, dtype=np.int64), counts),
            {
                "questions": counts,
                **{n: np.concatenate([np.asarray(v, dtype=np.int64) for v in table[n]]) for n in _JOINED},
                **{f"{n}_lengths": [len(v) for v in table[n]] for n in ("text", "language")},
                "answers": [len(v) for v in table["accepted_lengths"]],
            },
        )
        windows = torch.from_numpy(np.concatenate(table["windows"]).astype(np.int64))
        return Examples(joined.ids, windows, joined.rows, joined.extra)

    # learning and scoring

    def picks(self, examples: Examples, pooling: str) -> Picks:
        held = examples.extra["held"]
        start = examples.lengths.cumsum(0) - examples.lengths
        window, inside = _items(held)
        token = start[window] + torch.where(inside > 0, examples.extra["first"][window] + inside - 1, 0)
        return Picks(token)

    def targets(self, examples: Examples) -> Tensor:
        """4 * window + 1 where the answer starts + 2 where it ends."""
        window, inside = _items(examples.extra["held"])
        marks = examples.extra["marks"].view(-1, 2)[window]
        return 4 * window + (inside == marks[:, 0]) + 2 * (inside == marks[:, 1])

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of start and end over the items of each window: the mean over a task's windows, [task]."""
        there = (targets >= 0).unsqueeze(-1)
        code = targets.clamp(min=0)
        window = (code // 4).unsqueeze(-1).expand_as(logits)
        marked = torch.stack([code % 2, code % 4 // 2], -1).to(logits.dtype) * there
        shape = (len(logits), int(code.max()) // 4 + 1, 2)
        low = torch.finfo(logits.dtype).min
        top = logits.new_full(shape, low).scatter_reduce(
            1, window, logits.detach().masked_fill(~there, low), "amax", include_self=True
        )
        shifted = (logits - top.gather(1, window)).masked_fill(~there, 0.0)
        sums = logits.new_zeros(shape).scatter_add(1, window, shifted.exp() * there)
        chances = shifted - sums.gather(1, window).log()
        return -(chances * marked).sum((1, 2)) / marked.sum((1, 2))

    def measure(self, targets: Tensor) -> Tensor:
        code = targets.clamp(min=0)
        return ((code % 2 + code % 4 // 2) * (targets >= 0)).sum(1)

    def score(self, logits: Tensor, examples: Examples, classes: Sequence[str]) -> dict[str, float]:
        answers = self._answers(logits, examples)
        accepted, languages = self.accepted(examples)
        pairs = list(zip(answers, accepted, languages, strict=True))
        found = {
            "token_f1": sum(token_f1(*pair) for pair in pairs) / len(pairs),
            "exact_match": sum(exact_match(*pair) for pair in pairs) / len(pairs),
        }
        if self.no_answer:
            found |= found_scores([not a for a in answers], [not a for a in accepted], "no_answer")
        return found

    def _answers(self, logits: Tensor, examples: Examples) -> list[str]:
        """The best span of each question's windows, in the context's own words; "" where the model finds none."""
        held = (examples.extra["held"] + 1).tolist()
        scores = torch.split(logits.double(), held)
        starts, ends = (torch.split(examples.extra[n], examples.extra["held"].tolist()) for n in ("starts", "ends"))
        answers, window = [], 0
        for text, count in zip(_texts(examples, "text"), examples.extra["questions"].tolist(), strict=True):
            best, none, answer = -np.inf, np.inf, ""
            for w in range(window, window + count):
                value, first, last = best_span(scores[w][1:].numpy(), self.max_answer_tokens)
                none = min(none, float(scores[w][0].sum()))
                if value > best:
                    best, answer = value, text[int(starts[w][first]) : int(ends[w][last])]
            window += count
            answers.append("" if self.no_answer and none > best else answer)
        return answers

    def accepted(self, examples: Examples) -> tuple[list[list[str]], list[str]]:
        """The accepted answers of each question, none where it has none, and their language."""
        each = _texts(examples, "accepted")
        ends = [0, *accumulate(examples.extra["answers"].tolist())]
        return [each[a:b] for a, b in pairwise(ends)], _texts(examples, "language")

    def show(self, episode: Episode, tokenizer: Any) -> str:
        lines = [f"task: {episode.classes[0]}"]
        for side, examples in (("support", episode.support), ("query", episode.query)):
            lines.append(f"{side}: {len(examples.extra['questions'])} questions in {len(examples)} windows")
            window = 0
            windows = torch.split(examples.ids, examples.lengths.tolist())
            accepted, _ = self.accepted(examples)
            for answers, count in zip(accepted, examples.extra["questions"].tolist(), strict=True):
                head = windows[window][: int(examples.extra["first"][window])]
                lines.append(f"  {tokenizer.decode(head, skip_special_tokens=True).strip()}")
                lines.append(f"    -> {' | '.join(answers) or '(no answer)'}")
                window += count
        return "\n".join(lines)

    # in use, after training

    def asked(self, row: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
        return {**row, "answer": None, _ASKED: True}

    def output_names(self, classes: Sequence[str]) -> list[str]:
        return ["start", "end"]

    def items(self, examples: Examples) -> list[int]:
        return (examples.extra["held"] + 1).tolist()

    def answers(
        self, logits: Tensor, examples: Examples, classes: Sequence[str], rows: Sequence[dict[str, Any]]
    ) -> list[str]:
        return self._answers(logits, examples)


_ASKED = "asked"
"""Marks a row whose answer is not known."""
_FEWEST = 8
"""Tokens of a context that a window must have room for."""
_JOINED = ("first", "held", "marks", "starts", "ends", "text", "accepted", "accepted_lengths", "language")


def _items(held: Tensor) -> tuple[Tensor, Tensor]:
    """The window of each item, and its place there: 0 for the first token, i + 1 for token i of the context."""
    count = held + 1
    window = torch.repeat_interleave(torch.arange(len(held), device=held.device), count)
    inside = torch.arange(len(window), device=held.device) - (count.cumsum(0) - count)[window]
    return window, inside


def _texts(examples: Examples, name: str) -> list[str]:
    """The texts that `extra` holds as characters' numbers."""
    letters = "".join(map(chr, examples.extra[name].tolist()))
    ends = [0, *accumulate(examples.extra[f"{name}_lengths"].tolist())]
    return [letters[a:b] for a, b in pairwise(ends)]
