"""Small pre-trainings: the run of each family on the shipped intents, and what its rows are made of."""

from functools import cache
from pathlib import Path
from typing import Any

from raymeta.config import Run
from raymeta.model import Backbone
from raymeta.pretraining.frames import Frame, framed
from raymeta.pretraining.models import configuration
from raymeta.pretraining.tokens import TokenStore, tokenized
from raymeta.stages.pretrain import own_text

OBJECTIVES = {"bert": "mlm+nsp", "roberta": "mlm", "distilbert": "mlm", "gpt2": "clm", "llama": "clm", "t5": "span"}
KINDS = {"bert": "wordpiece", "distilbert": "wordpiece", "t5": "unigram"}
TEXT = """The ship left at dawn. Nobody waved. "Where is it going?" asked the boy; his father did not know.

Bread needs flour, water, salt and time. Most people forget the time. A slow dough tastes better.

In spring the river takes the lower meadow. In summer it gives it back.

The committee met twice. It decided nothing. It will meet again in March, and decide nothing then either.

Rust never sleeps, said the smith. She oiled the hinges once a year, and they lasted her whole life.
"""


def values(family: str, folder: Path, **section: Any) -> dict[str, Any]:
    """The settings of 20 steps of a new model, two layers and 16 wide, in this process."""
    pretrain = {
        "objective": OBJECTIVES[family],
        "architecture": {"type": family, "layers": 2, "hidden": 16, "heads": 2, "max_positions": 32},
        "tokenizer": {"kind": KINDS.get(family, "byte_bpe"), "size": 400, "lowercase": True},
        "steps": 20, "batch_size": 8, "at_once": 3, "length": 32, "lr": 1e-2, "dropout": 0.0, "validation_every": 10,
        "validation_share": 0.1, "save_every": 5, "mask_rate": 0.4 if family == "bert" else 0.15,
    }  # fmt: skip
    return {
        "name": family,
        "model": {"max_length": 32},
        "corpus": {"kind": "quickstart", "part": "intents"},
        "tasks": {
            "kind": "classification", "ways": 3, "queries": 2, "split": {"of": "class", "train": 20, "validation": 8, "test": 8},
        },
        "pretrain": {**pretrain, **section},
        "storage": str(folder),
        "cluster": "local-debug",
    }  # fmt: skip


def run_of(family: str, folder: Path, **section: Any) -> Run:
    """The run of `values`."""
    return Run.of(values(family, folder, **section))


def silent(line: str) -> None:
    """Says nothing."""


def text_of(run: Run) -> TokenStore:
    """The run's text as tokens."""
    assert run.pretrain is not None
    return tokenized(run.pretrain, run.model, own_text(run), run.seed, run.root / "prepared", False, silent)


def frame_of(run: Run, store: TokenStore) -> Frame:
    """The frame of the run's objective and tokenizer."""
    assert run.pretrain is not None
    tokenizer = tokenizer_of(str(store.folder))
    return framed(run.pretrain, tokenizer, configuration(run.pretrain, run.model, tokenizer))


@cache
def tokenizer_of(store: str) -> Any:
    """The new tokenizer of a store."""
    return TokenStore(Path(store)).backbone(Backbone()).tokenizer()
