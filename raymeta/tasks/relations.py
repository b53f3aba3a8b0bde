"""Relations: how two marked entities of a sentence stand to each other, N relation types from K sentences each."""

import re
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from raymeta.episodes import Drawn, Episode, Examples, Ints, Pool
from raymeta.errors import UserError
from raymeta.inner import Picks
from raymeta.metrics import classification_scores, found_scores
from raymeta.supervised import Report, classification_report
from raymeta.tasks import Choices, Tasks, Texts, seen, text_picks
from raymeta.tasks._words import pieces, specials

_SPANS = ("head_start", "head_end", "tail_start", "tail_end")
_SPARE = ("[unused{}]", "<extra_id_{}>", "<|reserved_special_token_{}|>", "<unused{}>")
"""How vocabularies name the entries that no text uses: BERT's, T5's, Llama 3's, Gemma's."""
_WRITTEN = ("[E1]", "[/E1]", "[E2]", "[/E2]")

Span = tuple[int, int]


class Relations(Tasks):
    """N-way K-shot relation classification.

    Reads the roles `tokens` (words, or a text), `head_start`, `head_end`, `tail_start`, `tail_end` (places among the words, or
    in the text; ends are exclusive), `label` (the relation), and `task` where there is one. Head and tail stand between entity
    markers, [E1] ... [/E1] and [E2] ... [/E2] (Baldini Soares et al. 2019, section 3.2, https://arxiv.org/abs/1906.03158):
    four entries of the vocabulary that texts never use ([unused1], <extra_id_1>, ...), or, where it has none, the pieces of
    the markers' names. Of a sentence longer than `model.max_length`, the pieces next to the markers are kept.
    """

    roles: ClassVar[tuple[str, ...]] = ("tokens", *_SPANS, "label")
    metric: ClassVar[str] = "accuracy"

    feature: Literal["markers", "end_markers", "pooled"] = "markers"
    """What is classified: the states of [E1] and [E2] side by side; those of [/E1] and [/E2], for decoders, whose tokens see
    only what is before them; or the sentence's pooled state."""
    nota_rate: float = Field(0.0, ge=0, lt=1)
    """Share of query sentences that hold none of the N relations (none of the above; Gao et al. 2019, FewRel 2.0,
    https://arxiv.org/abs/1910.07124); if above 0, that is one more answer, output 0 of the head."""
    nota_shots: int = Field(5, ge=1)
    """Support sentences of none of the above, with `nota_rate`: of relations apart from the N and from the query's, so that
    what is rejected was never seen."""

    def outputs_for(self, ways: int) -> int:
        return ways + (self.nota_rate > 0)

    def output_names(self, classes: Sequence[str]) -> list[str]:
        return ["none of the above", *classes] if self.nota_rate > 0 else list(classes)

    @property
    def slots(self) -> int:
        return 1 if self.feature == "pooled" else 2

    def fault(self, row: dict[str, Any]) -> str | None:
        tokens, label = row["tokens"], row["label"]
        if isinstance(tokens, (list, tuple, np.ndarray)):
            if not all(isinstance(t, str) for t in tokens):
                return "a token is not a string"
        elif not isinstance(tokens, str):
            return f"tokens is {seen(tokens)}, not a list of words or a text"
        if isinstance(label, float) or label is None or isinstance(label, (list, dict)):
            return f"label is {seen(label)}, not a string or a whole number"
        if not str(label).strip():
            return "label is empty"
        for side in ("head", "tail"):
            ends = row[f"{side}_start"], row[f"{side}_end"]
            if any(_whole(e) is None for e in ends):
                return f"{side}_start and {side}_end are {seen(ends[0])} and {seen(ends[1])}, not whole numbers"
            start, end = _span(row, side)
            if not 0 <= start < end <= len(tokens):
                units = "characters" if isinstance(tokens, str) else "words"
                return f"the {side} {start}:{end} is not a span of the {len(tokens)} {units}"
            if isinstance(tokens, str) and not tokens[start:end].strip():
                return f"the {side} {start}:{end} is blank"
        (a, b), (c, d) = sorted([_span(row, "head"), _span(row, "tail")])
        return "head and tail overlap" if a < c < b < d else None

    def encode(self, rows: Sequence[dict[str, Any]], tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
        before, after = specials(tokenizer)
        signs = marker_ids(tokenizer)
        room = max_length - len(before) - len(after)
        encoded = []
        texts = [_words(row) for row in rows]
        for row, (_, head, tail), words in zip(rows, texts, pieces(tokenizer, [t[0] for t in texts]), strict=True):
            ids, runs = _marked(words, head, tail, signs)
            keep = _nearest(len(ids), runs, room)
            place = {old: len(before) + new for new, old in enumerate(keep)}
            found = {
                "ids": [*before, *(ids[i] for i in keep), *after],
                "classes": [str(row["label"])],
                "counts": [1],
                "cut": len(keep) < len(ids),
                "marks": [place.get(run[-1], 0) for run in runs],
            }
            if sum(map(len, runs)) > room:
                found["fault"] = f"model.max_length: {max_length} tokens have no room for the entity markers"
            encoded.append(found)
        return encoded

    # drawing

    def class_need(self, shots: int) -> int:
        return shots + self.queries

    def choices(self, pool: Pool) -> Choices:
        found = super().choices(pool)
        for task, available in (found[i] for i in range(len(found))) if self.nota_rate > 0 else []:
            ways, there = min(self.ways[1], len(available)), _classes_of(pool, task)
            if len(there) < ways + 2:
                raise UserError(
                    f"tasks.nota_rate: {ways} ways leave {len(there) - ways} other relations of the {pool.split} split's "
                    f"{len(there)}{'' if task is None else f' in {pool.tasks[task]!r}'}, and none of the above takes 2; lower "
                    "tasks.ways, or set tasks.nota_rate to 0"
                )
        return found

    def _fill(self, pool: Pool, classes: Ints, task: int | None, shots: int, rng: np.random.Generator) -> Drawn:
        support, query = [], []
        for cls in classes:
            rows = pool.rows_of(int(cls), task)
            picked = rows[rng.choice(len(rows), shots + self.queries, replace=False, shuffle=True)]
            support.append(picked[:shots])
            query.append(picked[shots:])
        if self.nota_rate > 0:
            count = max(1, round(self.nota_rate / (1 - self.nota_rate) * self.queries * len(classes)))
            for side, rows in zip((support, query), self._others(pool, classes, task, count, rng), strict=True):
                side.append(rows)
        return Drawn(tuple(pool.classes[c] for c in classes), np.concatenate(support), np.concatenate(query))

    def _others(
        self, pool: Pool, classes: Ints, task: int | None, count: int, rng: np.random.Generator
    ) -> tuple[Ints, Ints]:
        """Rows of relations other than `classes`: `nota_shots` and `count` of them, no relation on both sides."""
        rest = rng.permutation(np.setdiff1d(_classes_of(pool, task), classes))
        half = len(rest) // 2
        return (
            _spread(pool, rest[:half], task, self.nota_shots, rng),
            _spread(pool, rest[half:], task, count, rng),
        )

    def examples(self, table: dict[str, Any], rows: Ints, classes: Sequence[str]) -> Examples:
        first = int(self.nota_rate > 0)
        place = {name: i + first for i, name in enumerate(classes)}
        extra: dict[str, Sequence[int] | Ints] = {
            "labels": [place.get(c[0], 0) for c in table["classes"]],
            "marks": np.concatenate([np.asarray(m, dtype=np.int64) for m in table["marks"]]),
        }
        return Texts.joined(table, rows, extra)

    # learning and scoring

    def picks(self, examples: Examples, pooling: str) -> Picks:
        if self.feature == "pooled":
            return text_picks(examples, pooling)
        starts = examples.lengths.cumsum(0) - examples.lengths
        marks = examples.extra["marks"].view(-1, 4) + starts.unsqueeze(1)
        chosen = marks[:, 0::2] if self.feature == "markers" else marks[:, 1::2]
        return Picks(chosen.reshape(-1), slots=2)

    def targets(self, examples: Examples) -> Tensor:
        return examples.extra["labels"]

    def score(self, logits: Tensor, examples: Examples, classes: Sequence[str]) -> dict[str, float]:
        answers, gold = logits.argmax(-1).tolist(), self.targets(examples).tolist()
        scores = classification_scores(answers, gold, self.outputs_for(len(classes)))
        if self.nota_rate > 0:
            scores |= found_scores([a == 0 for a in answers], [g == 0 for g in gold], "nota")
        return scores

    def report(self, logits: Tensor, examples: Examples, classes: Sequence[str]) -> Report:
        return classification_report(
            logits.argmax(-1).tolist(), self.targets(examples).tolist(), self.output_names(classes)
        )

    def show(self, episode: Episode, tokenizer: Any) -> str:
        names = self.output_names(episode.classes)
        lengths = [len(sign) for sign in marker_ids(tokenizer)]
        lines = []
        for side, examples in (("support", episode.support), ("query", episode.query)):
            lines.append(f"{side}: {len(examples)} sentences")
            marks = examples.extra["marks"].view(-1, 4).tolist()
            texts = torch.split(examples.ids, examples.lengths.tolist())
            for text, places, label in zip(texts, marks, self.targets(examples).tolist(), strict=True):
                lines.append(f"  {names[label]:<32} {_shown(text, places, lengths, tokenizer)}")
        return "\n".join(lines)


def marker_ids(tokenizer: Any) -> list[list[int]]:
    """Token ids of [E1], [/E1], [E2], [/E2]: entries of the vocabulary that no text uses, else the pieces of the names."""
    words = tokenizer.get_vocab()
    for name in _SPARE:
        spare = [name.format(i) for i in (1, 2, 3, 4)]
        if all(s in words for s in spare):
            return [[words[s]] for s in spare]
    return [word for text in pieces(tokenizer, [(w,) for w in _WRITTEN]) for word in text]


def _marked(
    words: list[list[int]], head: Span, tail: Span, signs: list[list[int]]
) -> tuple[list[int], list[list[int]]]:
    """Token ids with the markers among them, and the places of each marker's ids: [E1], [/E1], [E2], [/E2]."""
    spans = (head, tail)
    ids: list[int] = []
    runs: list[list[int]] = [[], [], [], []]

    def put(sign: int) -> None:
        runs[sign] = list(range(len(ids), len(ids) + len(signs[sign])))
        ids.extend(signs[sign])

    inner_first = sorted((0, 1), key=lambda i: (spans[i][1] - spans[i][0], i))
    for place in range(len(words) + 1):
        for i in inner_first:
            if spans[i][1] == place:
                put(2 * i + 1)
        for i in reversed(inner_first):
            if spans[i][0] == place:
                put(2 * i)
        if place < len(words):
            ids.extend(words[place])
    return ids, runs


def _nearest(count: int, runs: list[list[int]], room: int) -> list[int]:
    """Of `count` places, the `room` that are nearest to a marker, in order."""
    if count <= room:
        return list(range(count))
    marks = np.array(sorted(p for run in runs for p in run))
    distance = np.abs(np.arange(count)[:, None] - marks[None, :]).min(1)
    return sorted(np.argsort(distance, kind="stable")[:room].tolist())


def _words(row: dict[str, Any]) -> tuple[list[str], Span, Span]:
    """A row's words, and head and tail as spans of them; a text is cut at white space and at the spans' ends."""
    tokens, head, tail = row["tokens"], _span(row, "head"), _span(row, "tail")
    if not isinstance(tokens, str):
        return list(tokens), head, tail
    cuts = sorted({0, *head, *tail, len(tokens)})
    words: list[str] = []
    before = {0: 0}
    for start, end in pairwise(cuts):
        words += re.findall(r"\S+", tokens[start:end])
        before[end] = len(words)
    return words, (before[head[0]], before[head[1]]), (before[tail[0]], before[tail[1]])


def _span(row: dict[str, Any], side: str) -> Span:
    return int(row[f"{side}_start"]), int(row[f"{side}_end"])


def _whole(value: Any) -> int | None:
    """A whole number, or one that is written (CSV), else None."""
    if isinstance(value, str) and re.fullmatch(r"[0-9]{1,9}", value.strip()):
        return int(value)
    return int(value) if isinstance(value, (int, np.integer)) and not isinstance(value, bool) else None


def _classes_of(pool: Pool, task: int | None) -> Ints:
    return np.unique(pool.cell_class if task is None else pool.cell_class[pool.cell_task == task])


def _spread(pool: Pool, classes: Ints, task: int | None, count: int, rng: np.random.Generator) -> Ints:
    """`count` rows, or as many as there are, of `classes` in turn."""
    each = -(-count // len(classes))
    held = [pool.rows_of(int(c), task) for c in classes[:count]]
    left = [rows[rng.choice(len(rows), min(each, len(rows)), replace=False)] for rows in held]
    rows = [mine[turn] for turn in range(each) for mine in left if turn < len(mine)]
    return np.array(rows[:count], dtype=np.int64)


def _shown(text: Tensor, places: list[int], lengths: list[int], tokenizer: Any) -> str:
    """A sentence with its markers, which end at `places`, by their names."""
    out, at = [], 0
    for place, length, name in sorted(zip(places, lengths, _WRITTEN, strict=True)):
        out += [tokenizer.decode(text[at : place + 1 - length], skip_special_tokens=True).strip(), name]
        at = place + 1
    out.append(tokenizer.decode(text[at:], skip_special_tokens=True).strip())
    return " ".join(part for part in out if part)
