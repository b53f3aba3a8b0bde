"""Fine-tuning on one task with all its labelled rows, or with a few: what is trained, on what, and how (`Finetune`)."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, SerializeAsAny, model_validator

from raymeta.component import Section
from raymeta.corpora import Corpus
from raymeta.episodes import SPLITS
from raymeta.tasks import Split, Tasks


def _several(value: Any) -> Any:
    return value if isinstance(value, (list, tuple)) else (value,)


class HeldOut(Section):
    """Shares of the target task's rows that do not train, drawn class by class with the run's seed."""

    validation: float = Field(0.15, ge=0, lt=1)
    """For early stopping."""
    test: float = Field(0.25, ge=0, lt=1)
    """For the report."""

    @model_validator(mode="after")
    def _leaves_some(self) -> Self:
        if self.validation + self.test >= 1:
            raise ValueError(f"validation + test: {self.validation} + {self.test} leave no row to train on; lower one")
        return self


class Compare(Section):
    """Sizes at which fine-tuning from the meta-trained model is compared with fine-tuning from the plain backbone, and with the
    nearest class mean of each, which does not train at all; every arm gets the same rows, in the same order."""

    shots: Annotated[tuple[int, ...], BeforeValidator(_several)] = ()
    """Training examples a class: one number or a list."""
    rows: Annotated[tuple[int, ...], BeforeValidator(_several)] = ()
    """Training rows in all: one number or a list."""
    seeds: int = Field(3, ge=2)
    """Draws of rows at each size; the intervals are over them."""

    @model_validator(mode="after")
    def _some_size(self) -> Self:
        sizes = (*self.shots, *self.rows)
        if not sizes or min(sizes) < 1:
            raise ValueError(
                f"give sizes of at least 1, as shots (examples a class) or rows (in all), not {list(sizes)}"
            )
        return self


class Finetune(Section):
    """Supervised training of encoder and head on a target task with fixed labels.

    The objective is exactly L + l2 |theta|^2: L is the mean loss over a batch, theta what trains.
    """

    start: Literal["metatrain", "backbone"] = "metatrain"
    """From where: the run's best meta-trained checkpoint, or the plain backbone. `--from` names any other checkpoint."""
    task: Annotated[tuple[str, ...], BeforeValidator(_several)] = ()
    """The target task, as the corpus' `task` column names it; a list: each in turn, in a folder of its own; absent: all rows of the
    corpus (of the run's own: those of its test split) are one task."""
    corpus: SerializeAsAny[Corpus] | None = None
    """Where the target's rows come from; absent: the run's corpus."""
    tasks: SerializeAsAny[Tasks] | None = None
    """What the target task is, where it is not of the run's kind, or its labels are written otherwise; absent: as in the run. Its
    ways, shots and queries are not used."""
    split: Split | None = None
    """Which rows train, validate and test, by a column and its values. Absent: one file a split of `corpus`, or else `held_out`;
    of the run's own corpus, the rows of its test split, whose classes or tasks were not meta-trained, divided by `held_out`."""
    held_out: HeldOut = HeldOut()
    """How rows are divided that nothing else divides."""
    shots: int | None = Field(None, ge=1)
    """Training rows that hold each class, drawn by the seed; a class with fewer gives all it has; absent: all rows."""
    rows: int | None = Field(None, ge=1)
    """Training rows in all, drawn by the seed; absent: all rows."""
    validation_rows: int | None = Field(None, ge=1)
    """Validation rows that early stopping looks at, drawn by the run's seed; absent: all. The report is of all."""
    seeds: int = Field(1, ge=1)
    """Repeats, each with its own draw of rows, order of batches, dropout and new weights; their mean is given with its 95 %
    interval. The first one's model is kept."""
    head: Literal["prototype", "zero", "learned"] | None = None
    """Where the output layer starts: `prototype`, class means of training rows as the run's prototype head scales them; `zero`;
    `learned`, small random weights, or the run's learned head where it is as wide; absent: the kind of the run's head."""
    train: Literal["all", "adapted"] | None = None
    """What moves beside the output layer: the whole encoder, or what adapts to a task; absent: as in `outer.train`."""
    epochs: int = Field(20, ge=1)
    """Passes over the training rows, at most."""
    steps: int | None = Field(None, ge=1)
    """Batches, at most, in place of `epochs`."""
    batch_size: int = Field(16, ge=1)
    """Rows of a batch, over all workers."""
    texts_at_once: int = Field(8, ge=1)
    """Rows that a worker computes together: the workers share the batch's parts of so many. Larger suits a GPU, smaller saves
    memory; dropout depends on it, but not on how many workers there are."""
    lr: float = Field(5e-5, gt=0)
    """Peak learning rate of AdamW (without decoupled weight decay: that is what `l2` is for)."""
    head_lr: float | None = Field(None, gt=0)
    """Peak learning rate of the output layer; absent: `lr`."""
    warmup: float = Field(0.1, ge=0, le=1)
    """Share of the batches over which the learning rate rises from 0."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """What the learning rate does after that: stays, or falls to 0 at the last batch."""
    clip_norm: float = Field(1.0, gt=0)
    """Longest allowed gradient of the objective (Euclidean norm over what trains)."""
    dropout: float | None = Field(None, ge=0, lt=1)
    """Dropout in the encoder; absent: as in `model.dropout`."""
    l2: float = Field(0.0, ge=0)
    """Lambda of the objective L + l2 |theta|^2."""
    l2_on: Literal["all", "matrices"] = "all"
    """Whether theta is all that trains, or leaves out biases and norms."""
    every: int | None = Field(None, ge=1)
    """Batches between validations; absent: a pass over the training rows. The start and the last batch are validated as well."""
    patience: int | None = Field(5, ge=1)
    """Training stops when so many validations in a row are no better than the best; null: it does not stop early. Either way the
    best weights by validation are the result (the last, where no row validates)."""
    compare: Compare | None = None
    """A comparison with the plain backbone at several sizes; absent: none."""

    @model_validator(mode="after")
    def _one_size(self) -> Self:
        if self.shots and self.rows:
            raise ValueError(f"rows: give shots ({self.shots} a class) or rows ({self.rows} in all), not both")
        for name, split in (("split", self.split), ("tasks.split", self.tasks.split if self.tasks else None)):
            if split is None or split.column or all(getattr(split, s) is None for s in SPLITS):
                continue
            raise ValueError(
                f"{name}: the rows of a task with fixed labels are divided by a column ({{column: split, train: train, test: test}}), "
                "by one file a split, or by held_out; numbers and lists of classes would give each split labels of its own"
            )
        return self
