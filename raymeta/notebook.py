"""The functions of `import raymeta as rm` that differ from the stages' own in what a notebook shows."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from typing import Any, Literal

from raymeta.checkpoint import Checkpoint
from raymeta.config import Run
from raymeta.episodes import Episode
from raymeta.errors import UserError
from raymeta.parts import held_out, prepared, training
from raymeta.stages import evaluate as stage
from raymeta.stages.metatrain import finished


@dataclass(frozen=True, repr=False)
class ReadableEpisode(Episode):
    """An episode that shows as text."""

    text: str = ""

    def __repr__(self) -> str:
        return self.text


def episodes(
    run: Run, split: Literal["train", "validation", "test"] = "train", start: int = 0
) -> Iterator[ReadableEpisode]:
    """The episodes that the run draws from a split, from number `start` on, without end; each shows as text.

    Of a mixed run, those of training are mixed by weight, and those of the other splits are its first part's.
    """
    folders = prepared(run.parts, run.backbone, run.seed, run.root / "prepared", on_ray=False)
    source: Any = (
        training(run.parts, folders, run.seed)
        if split == "train"
        else held_out(run.parts, folders, split, run.seed)[0][1]
    )
    tokenizer = run.backbone.tokenizer()
    for number in count(start):
        one = source.episode(number)
        text = run.parts[one.part].tasks.show(one, tokenizer)
        yield ReadableEpisode(**vars(one), text=f"episode {number} of the {split} split\n{text}")


class Evaluation(dict[str, Any]):
    """What evaluation.json says; shows as its table."""

    def __init__(self, run: Run, found: dict[str, Any]) -> None:
        super().__init__(found)
        self._text = stage.text(run, found)

    def __repr__(self) -> str:
        return self._text


def evaluate(run: Run, start: Checkpoint | None = None) -> Evaluation:
    """Measures a checkpoint (absent: the run's best) and the baselines; raises UserError where there is none."""
    if start is None:
        done = finished(run)
        if done is None:
            raise UserError(f"{run.folder} is not meta-trained to its end; call metatrain(run), or give a checkpoint")
        start = done.best
    return Evaluation(run, stage.evaluate(run, start))
