"""Pre-training on plain text: what is learned from it (`Pretrain`), and how text becomes batches of it."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from raymeta.component import Section
from raymeta.corpora import Corpus

Family = Literal["bert", "roberta", "distilbert", "gpt2", "llama", "t5"]
Objective = Literal["mlm", "mlm+nsp", "clm", "span"]

SENTINELS = 100
"""Sentinels of a new T5 type's vocabulary, `<extra_id_0>` and on: as many as T5 has."""
_SUITS: dict[Objective, tuple[Family, ...]] = {
    "mlm": ("bert", "roberta", "distilbert"), "mlm+nsp": ("bert",), "clm": ("gpt2", "llama"), "span": ("t5",),
}  # fmt: skip


class Architecture(Section):
    """A model to start from with new weights."""

    type: Family
    """What kind of transformer: its configuration class in transformers."""
    layers: int = Field(4, ge=1)
    """Layers; of T5 as many in the encoder as in the decoder."""
    hidden: int = Field(256, ge=8)
    """Width of a token's state."""
    heads: int = Field(4, ge=1)
    """Attention heads; they divide `hidden`."""
    ffn: int | None = Field(None, ge=8)
    """Width of the feed-forward layers; absent: four times `hidden`."""
    max_positions: int = Field(512, ge=8)
    """Most tokens of a text, special tokens included (T5 and Llama types have no table of them, but keep the number)."""

    @model_validator(mode="after")
    def _heads_divide(self) -> Self:
        if self.hidden % self.heads:
            raise ValueError(f"heads: {self.heads} heads do not divide a width of {self.hidden}; change one of the two")
        if self.type == "llama" and self.hidden // self.heads % 2:
            raise ValueError(
                f"heads: a Llama type's heads must have an even width, and {self.hidden} / {self.heads} is odd; change one of the two"
            )
        return self


class NewTokenizer(Section):
    """A tokenizer to be trained on the text."""

    kind: Literal["wordpiece", "byte_bpe", "unigram"]
    """`wordpiece` as BERT's, `byte_bpe` as GPT-2's (it knows every text), `unigram` as T5's."""
    size: int = Field(8000, ge=32)
    """Pieces of the vocabulary, special tokens included."""
    lowercase: bool = False
    """Whether text is lower-cased first; wordpiece then leaves out accents too, as BERT's uncased models do."""


def _several(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else (value,)


def _source(value: Any) -> Any:
    return value if value == "own" else Corpus.model_validate(value)


Text = Annotated[SerializeAsAny[Corpus] | Literal["own"], BeforeValidator(_source)]
"""Where text comes from: a corpus, or `own`."""


class Pretrain(Section):
    """How the model is trained on plain text before it is meta-trained."""

    objective: Objective = "mlm"
    """`mlm`: masked words (Devlin et al. 2019); `mlm+nsp`: and whether the second of two spans follows the first; `clm`: the
    next token (GPT and Llama types); `span`: missing spans (T5, Raffel et al. 2020, section 3.1.4)."""
    corpus: Annotated[tuple[Text, ...], BeforeValidator(_several)] = Field(("own",), min_length=1)
    """Where text comes from: one corpus or a list. `own` are the texts of this run's own training rows: never those of a
    class, task or file that validates or tests. A corpus of kind `text` reads plain text; of any other kind, its
    `columns` name the columns of text, all rows are read, and of files named by split only those of `train`."""
    architecture: Architecture | None = None
    """A new model in place of the weights of `model.name`; absent: these are trained on."""
    tokenizer: NewTokenizer | None = None
    """A new tokenizer for a new model; absent: that of `model.name`."""
    steps: int = Field(10_000, ge=1)
    """Optimizer steps."""
    batch_size: int = Field(256, ge=1)
    """Rows a step, over all workers."""
    at_once: int = Field(32, ge=1)
    """Rows that a worker computes at once: fewer need less memory and change the result only by rounding."""
    length: int = Field(128, ge=8)
    """Tokens a row, special tokens included. Several short texts share a row without seeing each other; long ones are
    cut into several."""
    mask_rate: float = Field(0.15, gt=0, lt=1)
    """Share of tokens to be restored (`mlm`, `span`)."""
    whole_words: bool = False
    """Masks all pieces of a word or none (`mlm`)."""
    span: float = Field(3.0, ge=1)
    """Mean length of a missing span in tokens (`span`)."""
    lr: float = Field(1e-4, gt=0)
    """Peak learning rate of AdamW."""
    weight_decay: float = Field(0.01, ge=0)
    """Decoupled weight decay of matrices; norms and biases are left alone."""
    beta2: float = Field(0.999, gt=0, lt=1)
    """Decay of the squared gradient's average."""
    warmup_steps: int = Field(0, ge=0)
    """Steps over which the learning rate rises from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """What the learning rate does after the warm-up: stays, or falls to 0 at the last step."""
    clip_norm: float = Field(1.0, gt=0)
    """Longest allowed gradient (Euclidean norm over all parameters)."""
    dropout: float = Field(0.1, ge=0, lt=1)
    """Dropout; seeded by step and rows, so it differs with the number of workers."""
    precision: Literal["float32", "bf16"] = "float32"
    """`bf16` computes matrix products in bfloat16 (autocast)."""
    validation_share: float = Field(0.02, gt=0, lt=1)
    """Share of documents held out, by the hash of their text: perplexity is measured on them."""
    validation_rows: int = Field(512, ge=2)
    """Most held-out rows that are measured: always the same, with the same masks."""
    validation_every: int = Field(500, ge=0)
    """Steps between measurements; one is also made before the first step and after the last. 0: only these two."""
    save_every: int = Field(200, ge=1)
    """Steps between checkpoints, from which a stopped run goes on."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        type_ = self.architecture.type if self.architecture else None
        if type_ and type_ not in _SUITS[self.objective]:
            suits = next(o for o, types in _SUITS.items() if type_ in types)
            raise ValueError(
                f"objective: {self.objective} does not suit a {type_} type; use {suits}, or another pretrain.architecture.type "
                f"({', '.join(_SUITS[self.objective])})"
            )
        if self.tokenizer and not self.architecture:
            raise ValueError(
                "tokenizer: a new tokenizer does not fit the embedding of a pretrained model; give pretrain.architecture too, or leave it out"
            )
        if self.architecture and self.length > self.architecture.max_positions:
            raise ValueError(
                f"length: rows of {self.length} tokens do not fit a model of {self.architecture.max_positions} positions; lower it, or "
                "raise pretrain.architecture.max_positions"
            )
        if self.corpus.count("own") > 1:
            raise ValueError("corpus: own is listed more than once; once is enough")
        if self.whole_words and not self.objective.startswith("mlm"):
            raise ValueError(f"whole_words: only mlm masks words, not {self.objective}; leave it out")
        if self.warmup_steps >= self.steps:
            raise ValueError(
                f"warmup_steps: {self.warmup_steps} steps of warm-up leave none of {self.steps}; lower it, or raise pretrain.steps"
            )
        return self


__all__ = ["SENTINELS", "Architecture", "Family", "NewTokenizer", "Objective", "Pretrain"]
