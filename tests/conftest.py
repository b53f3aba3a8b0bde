"""What many tests share: a tiny BERT on disk, and where real data lies."""

import os
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

torch.set_num_threads(1)

LETTERS = "abcdefghijklmnopqrstuvwxyz0123456789.,:;?!'\"-_/()[]&%$+"
WORDS = (
    "the a an in to of and is was it we you my me do can please book play show find what when where how who did will "
    "for on at by with from that this are there have has day time today music room table bank city play stop start"
)


def save_tiny_bert(folder: Path) -> str:
    """Writes a BERT of two layers, 16 wide, and a WordPiece tokenizer: letters, their continuations, some words."""
    from transformers import BertConfig, BertModel, BertTokenizerFast

    pieces = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *LETTERS, *(f"##{c}" for c in LETTERS)]
    pieces += [w for w in dict.fromkeys(WORDS.split()) if len(w) > 1]
    tokenizer = BertTokenizerFast(vocab={piece: i for i, piece in enumerate(pieces)})
    tokenizer.save_pretrained(folder)
    config = BertConfig(
        vocab_size=len(pieces), hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32,
        max_position_embeddings=128,
    )  # fmt: skip
    torch.manual_seed(0)
    BertModel(config).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_tokenizer_folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny BERT and its tokenizer."""
    return save_tiny_bert(tmp_path_factory.mktemp("tiny-bert"))


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder with real corpora, from $RAYMETA_DATA; the test is skipped where there is none."""
    folder = Path(os.environ.get("RAYMETA_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data in {folder}; set RAYMETA_DATA")
    return folder


@pytest.fixture(scope="session")
def trained_run(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: str) -> Path:
    """The folder of a run of intents that was meta-trained for two steps and evaluated."""
    from raymeta.config import Run
    from raymeta.pipeline import run_all
    from tests.mistakes import run_file

    short = [
        "outer.steps=2",
        "outer.tasks_per_step=2",
        "validation.every=1",
        "validation.episodes=4",
        "evaluate.episodes=4",
    ]
    run = Run.load(str(run_file(tmp_path_factory.mktemp("trained"), tiny_tokenizer_folder)), *short)
    run_all(run)
    return run.folder


@pytest.hookimpl(tryfirst=True)  # xdist looks at the groups in the same hook
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where several processes test (pytest -n), one takes a file whole, and one all files that share the Ray cluster."""
    for item in items:
        folder = item.path.parent
        item.add_marker(pytest.mark.xdist_group("ray" if folder.name == "end_to_end" else item.path.stem))
