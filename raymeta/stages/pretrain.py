"""Pre-training: a language model's own objective on plain text, before anything is meta-trained."""

from dataclasses import dataclass
from pathlib import Path

from raymeta.config import Run
from raymeta.errors import UserError


@dataclass(frozen=True)
class Result:
    """What pre-training left: its folder, in which `model` is a plain Hugging Face folder, and what was measured."""

    folder: Path

    @property
    def model(self) -> Path:
        """The pre-trained model and its tokenizer, as save_pretrained writes them."""
        return self.folder / "model"


def finished(run: Run) -> Result | None:
    """The result of a run whose pre-training is complete, or None."""
    folder = run.pretrained
    return Result(folder) if (folder / "pretrain.json").is_file() and (folder / "model").is_dir() else None


def pretrain(run: Run) -> Result:
    """The pre-trained model of a run; raises UserError where it is not there."""
    done = finished(run)
    if done is None:
        raise UserError(f"pretrain: {run.pretrained} holds no pre-trained model")
    return done
