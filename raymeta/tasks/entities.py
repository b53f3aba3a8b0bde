"""Named-entity recognition: find the spans of N entity types from about K marked sentences each."""

from collections.abc import Sequence
from itertools import accumulate
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from raymeta.episodes import Drawn, Episode, Examples, Ints, Pool
from raymeta.inner import Picks
from raymeta.metrics import entity_scores, well_formed
from raymeta.supervised import Report, entity_report
from raymeta.tasks import Tasks, Texts, _spans, mean_cross_entropy, total_weight
from raymeta.tasks._words import pieces, specials

_TRIES = 2000
_PREFIXES = "BIESLUM"
"""Of tags: begin, inside, end, single; BILOU's last and unit; BMES's middle."""


class Entities(Tasks):
    """Token-level N-way K~2K-shot entity recognition (Ding et al. 2021, Few-NERD, algorithm 1).

    Reads the roles `tokens` (words) and `tags` (BIO, IO or BIOES, one a word), and `task` where there is one. Sentences
    are added greedily: one is taken if all its types are among the N, at least one of them has fewer than K mentions so
    far, and none would have more than 2K. A word's state is that of its first piece; a word that yields no piece gets
    the tokenizer's unknown token, so that no word is lost.
    """

    roles: ClassVar[tuple[str, ...]] = ("tokens", "tags")
    metric: ClassVar[str] = "entity_f1"
    auto_class: ClassVar[str] = "TokenClassification"

    labels: Literal["io", "bio"] = "io"
    """`io`: the head tells types apart, and neighbouring words of a type are one entity; `bio`: it tells first words
    from later ones as well, from half as many examples a class."""
    outside_weight: float = Field(1.0, gt=0)
    """Weight of words outside any entity in the loss."""

    def outputs_for(self, ways: int) -> int:
        return 1 + ways * (2 if self.labels == "bio" else 1)

    def fault(self, row: dict[str, Any]) -> str | None:
        tokens, tags = row["tokens"], row["tags"]
        for name, value in (("tokens", tokens), ("tags", tags)):
            if not isinstance(value, (list, tuple, np.ndarray)):
                return f"{name} is {'missing' if value is None else type(value).__name__}, not a list"
        if len(tokens) != len(tags):
            return f"{len(tokens)} tokens but {len(tags)} tags"
        if len(tokens) == 0:
            return "no tokens"
        for tag in tags:
            if not isinstance(tag, str):
                return f"tag {tag!r} is not a string"
            if not tag.strip():
                return "a tag is empty"
            if tag[1:2] == "-" and (tag[0] not in _PREFIXES or len(tag) < 3):
                return f"tag {tag!r} is not O, B-, I-, E- or S- and a type"
        if not all(isinstance(t, str) for t in tokens):
            return "a token is not a string"
        return "every token is empty" if not any(t.strip() for t in tokens) else None

    def encode(self, rows: Sequence[dict[str, Any]], tokenizer: Any, max_length: int) -> list[dict[str, Any]]:
        encoded = []
        before, after = specials(tokenizer)
        room = max_length - len(before) - len(after)
        for row, words in zip(rows, pieces(tokenizer, [row["tokens"] for row in rows]), strict=True):
            ids = [i for word in words for i in word]
            first = [0, *accumulate(len(word) for word in words)][:-1]
            kept = sum(1 for f in first if f < room)
            types, codes = _spans_to_codes([str(t) for t in row["tags"]][:kept])
            counts = [0] * len(types)
            for code in codes:
                if code and code % 2:
                    counts[code // 2] += 1
            encoded.append(
                {
                    "ids": before + ids[:room] + after,
                    "classes": types,
                    "counts": counts,
                    "cut": len(ids) > room,
                    "first": [f + len(before) for f in first[:kept]],
                    "codes": codes,
                }
            )
        return encoded

    def class_need(self, shots: int) -> int:
        return 2  # mentions per sentence vary: a class with two sentences can do, and `draw` says if it cannot

    def _fill(self, pool: Pool, classes: Ints, task: int | None, shots: int, rng: np.random.Generator) -> Drawn | None:
        wanted = {int(c) for c in classes}
        used: set[int] = set()
        sides = []
        for need in (shots, self.queries):
            rows = self._greedy(pool, classes, wanted, task, need, used, rng)
            if rows is None:
                return None
            sides.append(np.array(rows, dtype=np.int64))
        return Drawn(tuple(pool.classes[c] for c in classes), sides[0], sides[1])

    def _greedy(
        self,
        pool: Pool,
        classes: Ints,
        wanted: set[int],
        task: int | None,
        need: int,
        used: set[int],
        rng: np.random.Generator,
    ) -> list[int] | None:
        """Rows that hold `need` to 2 `need` mentions of each class, none in `used`; None if they cannot be found."""
        have = dict.fromkeys(wanted, 0)
        taken: list[int] = []
        for cls in (int(c) for c in classes):
            rows = pool.rows_of(cls, task)
            for place in _without_repeat(len(rows), rng):
                if have[cls] >= need:
                    break
                row = int(rows[place])
                held = pool.held(row)
                if row in used or not held.keys() <= wanted or any(have[c] + n > 2 * need for c, n in held.items()):
                    continue
                used.add(row)
                taken.append(row)
                for c, n in held.items():
                    have[c] += n
            if have[cls] < need:
                return None
        return [taken[i] for i in rng.permutation(len(taken))]

    def examples(self, table: dict[str, Any], rows: Ints, classes: Sequence[str]) -> Examples:
        place = {name: i for i, name in enumerate(classes)}
        tags: list[int] = []
        for types, codes in zip(table["classes"], table["codes"], strict=True):
            local = [0] + [0] * 2 * len(types)
            for i, name in enumerate(types):
                if name in place:
                    local[2 * i + 1], local[2 * i + 2] = 2 * place[name] + 1, 2 * place[name] + 2
            tags.extend(local[c] for c in codes)
        lengths = np.array([len(i) for i in table["ids"]], dtype=np.int64)
        starts = np.cumsum(lengths) - lengths
        first = np.concatenate([np.asarray(f, dtype=np.int64) + s for f, s in zip(table["first"], starts, strict=True)])
        words = [len(f) for f in table["first"]]
        return Texts.joined(table, rows, {"tags": tags, "first": first, "words": words})

    def picks(self, examples: Examples, pooling: str) -> Picks:
        return Picks(examples.extra["first"])

    def targets(self, examples: Examples) -> Tensor:
        tags = examples.extra["tags"]
        return tags if self.labels == "bio" else (tags + 1) // 2

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        return mean_cross_entropy(logits, targets, self._weight(logits.new_ones(logits.shape[-1])))

    def measure(self, targets: Tensor) -> Tensor:
        ones = torch.ones(max(int(targets.max()), 0) + 1, dtype=torch.float64, device=targets.device)
        return total_weight(targets, self._weight(ones))

    def _weight(self, ones: Tensor) -> Tensor | None:
        """The weight of each output, in place of `ones`; None where all weigh alike."""
        if self.outside_weight == 1.0:
            return None
        ones[0] = self.outside_weight
        return ones

    def predicted_tags(self, logits: Tensor, examples: Examples) -> list[list[int]]:
        """Each text's predicted tag codes: 0 outside, 2i+1 and 2i+2 the first and later words of type i."""
        codes = logits.argmax(-1).tolist()
        tags, start = [], 0
        for words in examples.extra["words"].tolist():
            text = codes[start : start + words]
            start += words
            if self.labels == "io":
                text = [0 if c == 0 else 2 * c if i and text[i - 1] == c else 2 * c - 1 for i, c in enumerate(text)]
            tags.append(text)
        return tags

    def score(self, logits: Tensor, examples: Examples, classes: Sequence[str]) -> dict[str, float]:
        return entity_scores(self.predicted_tags(logits, examples), self._gold_tags(examples), len(classes))

    def report(self, logits: Tensor, examples: Examples, classes: Sequence[str]) -> Report:
        return entity_report(self.predicted_tags(logits, examples), self._gold_tags(examples), classes)

    @staticmethod
    def _gold_tags(examples: Examples) -> list[list[int]]:
        return [g.tolist() for g in torch.split(examples.extra["tags"], examples.extra["words"].tolist())]

    def show(self, episode: Episode, tokenizer: Any) -> str:
        lines = []
        for side, examples in (("support", episode.support), ("query", episode.query)):
            lines.append(f"{side}: {len(examples)} sentences")
            ends = examples.lengths.cumsum(0).tolist()
            word = 0
            for i, end in enumerate(ends):
                n = int(examples.extra["words"][i])
                first = examples.extra["first"][word : word + n].tolist()
                tags = examples.extra["tags"][word : word + n].tolist()
                word += n
                stops = [*first[1:], end - 1]
                texts = [tokenizer.decode(examples.ids[a:b]) for a, b in zip(first, stops, strict=True)]
                lines.append("  " + _marked(texts, tags, episode.classes))
        return "\n".join(lines)

    # in use, after training

    def typed(self, row: dict[str, Any]) -> dict[str, Any]:
        """Of a string the words, and where no tags are given, those of its entities, written as [some words](type)."""
        if not isinstance(row["tokens"], str):
            return row
        if "tags" in row:
            return {**row, "tokens": _spans.words(row["tokens"])}
        tokens, tags = _spans.marked(row["tokens"])
        return {**row, "tokens": tokens, "tags": tags}

    def asked(self, row: dict[str, Any], classes: Sequence[str]) -> dict[str, Any]:
        tokens = _spans.words(row["tokens"]) if isinstance(row["tokens"], str) else row["tokens"]
        return {**row, "tokens": tokens, "tags": ["O"] * len(tokens)}

    def output_names(self, classes: Sequence[str]) -> list[str]:
        prefixes = ("B", "I") if self.labels == "bio" else ("I",)
        return ["O", *(f"{prefix}-{name}" for name in classes for prefix in prefixes)]

    def items(self, examples: Examples) -> list[int]:
        found: list[int] = examples.extra["words"].tolist()
        return found

    def answers(
        self, logits: Tensor, examples: Examples, classes: Sequence[str], rows: Sequence[dict[str, Any]]
    ) -> list[list[str]]:
        """A BIO tag for each word; those beyond the length that the model reads are outside."""
        names = ["O", *(f"{prefix}-{name}" for name in classes for prefix in "BI")]
        tags = [[names[code] for code in well_formed(codes)] for codes in self.predicted_tags(logits, examples)]
        return [found + ["O"] * (len(row["tokens"]) - len(found)) for found, row in zip(tags, rows, strict=True)]


def _marked(words: list[str], tags: list[int], classes: Sequence[str]) -> str:
    """Words with each entity written as [words](type)."""
    out: list[str] = []
    for i, (word, tag) in enumerate(zip(words, tags, strict=True)):
        if tag % 2:
            word = "[" + word
        if tag and (i + 1 == len(tags) or tags[i + 1] != tag + (tag % 2)):
            word += f"]({classes[(tag - 1) // 2]})"
        out.append(word)
    return " ".join(out)


def _without_repeat(n: int, rng: np.random.Generator) -> Any:
    """0..n-1 in random order; for large n a random sample, so that a large class costs no large permutation."""
    return rng.permutation(n) if n <= _TRIES else rng.choice(n, _TRIES, replace=False)


def _spans_to_codes(tags: list[str]) -> tuple[list[str], list[int]]:
    """Types in order of appearance, and BIO codes: 0 outside, 2i+1 first word, 2i+2 later word of type i.

    Reads BIO, IO and BIOES (BILOU, BMES) alike: an entity starts at B-, S- or U-, or where the type changes, or after O.
    A tag without a prefix is a type in IO.
    """
    types: list[str] = []
    codes: list[int] = []
    previous, ended = "", True
    for tag in tags:
        if tag == "O":
            codes.append(0)
            previous, ended = "", True
            continue
        prefix, name = (tag[0], tag[2:]) if len(tag) > 2 and tag[1] == "-" else ("I", tag)
        starts = prefix in "BSU" or name != previous or ended
        if name not in types:
            types.append(name)
        codes.append(2 * types.index(name) + (1 if starts else 2))
        previous, ended = name, prefix in "ESLU"
    return types, codes
