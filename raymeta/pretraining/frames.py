"""What stands around a text of an objective, and how much of a row a text takes."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from raymeta.episodes import Ints
from raymeta.errors import UserError
from raymeta.pretraining import Objective, Pretrain

_OFFSET = (
    "roberta",
    "xlm-roberta",
    "xlm-roberta-xl",
    "camembert",
    "roberta-prelayernorm",
    "data2vec-text",
    "longformer",
)
"""Types whose positions begin after the padding token's id."""


@dataclass(frozen=True)
class Frame:
    """An objective, and the ids of the special tokens that it takes.

    start, between, end: around a text, and between two; special: ids that never stand in for another token;
    sentinels: of missing spans, in order; stop: what ends a document (`clm`).
    """

    objective: Objective
    length: int
    mask_rate: float
    whole_words: bool
    span: float
    vocabulary: int
    start: tuple[int, ...]
    between: tuple[int, ...]
    end: tuple[int, ...]
    special: tuple[int, ...]
    mask: int | None = None
    stop: int | None = None
    sentinels: tuple[int, ...] = ()

    @cached_property
    def ordinary(self) -> Ints:
        """The ids that are no special tokens."""
        return np.setdiff1d(np.arange(self.vocabulary), self.special)

    def room(self, size: Ints, last: npt.NDArray[np.bool_]) -> Ints:
        """Places in a row that texts of `size` tokens take; last: whether they end their document."""
        around = len(self.start) + len(self.end)
        if self.objective == "mlm+nsp":
            return size + around + len(self.between)
        if self.objective == "clm":
            return size + around + (last if self.stop is not None else 0)
        if self.objective == "span":
            missing, spans = self.missing(size)
            return size + around - missing + spans
        return size + around

    def missing(self, size: Ints) -> tuple[Ints, Ints]:
        """Tokens that are missing from texts of `size` tokens, and in how many spans (Raffel et al. 2020, as T5's code)."""
        missing = np.clip(np.rint(size * self.mask_rate), 1, np.maximum(size - 1, 1)).astype(np.int64)
        most = np.maximum(np.minimum(missing, size - missing), 1)
        spans = np.clip(np.rint(missing / self.span), 1, most).astype(np.int64)
        return missing, spans

    @cached_property
    def limit(self) -> int:
        """Most tokens of a text that fits a row."""
        sizes = np.arange(1, int(self.length / (1 - self.mask_rate)) + 2)
        return int(np.flatnonzero(self.room(sizes, np.ones(len(sizes), dtype=bool)) <= self.length)[-1]) + 1


def framed(pretrain: Pretrain, tokenizer: Any, config: Any) -> Frame:
    """The frame of a tokenizer and a model; raises UserError where the objective does not suit them."""
    _suits(pretrain.objective, config)
    longest = positions(config)
    if longest is not None and pretrain.length > longest:
        raise UserError(
            f"pretrain.length: rows of {pretrain.length} tokens do not fit the {longest} positions of a {config.model_type} model; lower it"
        )
    if len(tokenizer) > config.vocab_size:
        raise UserError(
            f"model.name: the tokenizer has {len(tokenizer)} pieces, but the model's embedding only {config.vocab_size} rows; use the "
            "tokenizer that belongs to it"
        )
    start, between, end = around(tokenizer)
    mask, stop = None, None
    sentinels: tuple[int, ...] = ()
    if pretrain.objective.startswith("mlm"):
        mask = _token(tokenizer, "mask_token", pretrain.objective)
    if pretrain.objective == "mlm+nsp" and not between:
        raise UserError(
            "pretrain.objective: mlm+nsp needs a token between two texts, and this tokenizer puts none; use mlm"
        )
    if pretrain.objective == "clm":
        eos = _token(tokenizer, "eos_token", pretrain.objective)
        stop = None if end[-1:] == (eos,) else eos
    if pretrain.objective == "span":
        sentinels = _sentinels(tokenizer)
    frame = Frame(
        pretrain.objective, pretrain.length, pretrain.mask_rate, pretrain.whole_words, pretrain.span, len(tokenizer),
        start, between, end, tuple(sorted({*tokenizer.all_special_ids, *sentinels})), mask, stop, sentinels,
    )  # fmt: skip
    if sentinels and int(frame.missing(np.array([frame.limit]))[1][0]) > len(sentinels):
        raise UserError(
            f"pretrain.span: rows of {pretrain.length} tokens with {pretrain.mask_rate} missing in spans of {pretrain.span} need more than "
            f"the tokenizer's {len(sentinels)} sentinels; raise pretrain.span, or lower pretrain.length"
        )
    return frame


def positions(config: Any) -> int | None:
    """Most tokens that a model's table of positions holds; None: it has none."""
    found = getattr(config, "max_position_embeddings", None)
    if found is None or (config.is_encoder_decoder and config.model_type in ("t5", "mt5", "umt5")):
        return None
    return int(found) - (config.pad_token_id + 1 if config.model_type in _OFFSET else 0)


def around(tokenizer: Any) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """The ids that a tokenizer puts before a text, between two texts, and after."""
    inner = tokenizer("a", add_special_tokens=False)["input_ids"]
    pair = tokenizer("a", "a")["input_ids"]
    size = len(inner)
    first = next(i for i in range(len(pair)) if pair[i : i + size] == inner)
    second = next(i for i in range(len(pair) - size, first, -1) if pair[i : i + size] == inner)
    return tuple(pair[:first]), tuple(pair[first + size : second]), tuple(pair[second + size :])


def _suits(objective: Objective, config: Any) -> None:
    from transformers.models.auto import modeling_auto as auto

    name = config.model_type
    kinds: dict[Objective, bool] = {
        "mlm+nsp": name in auto.MODEL_FOR_NEXT_SENTENCE_PREDICTION_MAPPING_NAMES
        and "PreTraining" in str(auto.MODEL_FOR_PRETRAINING_MAPPING_NAMES.get(name)),
        "mlm": name in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES and not config.is_encoder_decoder,
        "span": config.is_encoder_decoder and name in auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
        "clm": name in auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES and name not in auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES,
    }
    if not kinds[objective]:
        there = [kind for kind, suits in kinds.items() if suits]
        raise UserError(
            f"pretrain.objective: {objective} does not suit a {name} model; "
            + (f"use {' or '.join(sorted(there))}" if there else "no objective does; use another model")
        )


def _token(tokenizer: Any, name: str, objective: str) -> int:
    found = getattr(tokenizer, f"{name}_id")
    if found is None:
        raise UserError(
            f"pretrain.objective: {objective} needs a {name.replace('_', ' ')}, which the tokenizer of this model lacks"
        )
    return int(found)


def _sentinels(tokenizer: Any) -> tuple[int, ...]:
    vocabulary = tokenizer.get_vocab()
    found: list[int] = []
    while f"<extra_id_{len(found)}>" in vocabulary:
        found.append(vocabulary[f"<extra_id_{len(found)}>"])
    if not found:
        raise UserError(
            "pretrain.objective: span needs sentinel tokens (<extra_id_0>, ...), which the tokenizer of this model lacks"
        )
    return tuple(found)
