"""SetFit on the support sets of few-shot episodes: a baseline that learns from pairs of texts, by the package of that name.

Tunstall et al. 2022, https://arxiv.org/abs/2209.11055: the sentence encoder is trained to bring texts of a class together and
others apart, and logistic regression tells its embeddings apart. Its package is of the extra `baselines`.
"""

import contextlib
import importlib.util
import io
import logging
import os
import tempfile
import warnings
from collections.abc import Iterator, Sequence

import torch
from pydantic import Field
from torch import Tensor

from raymeta.component import Section
from raymeta.episodes import Examples
from raymeta.errors import UserError
from raymeta.model import Backbone


class SetFit(Section):
    """How SetFit learns, and on how many episodes it is measured."""

    episodes: int = Field(50, ge=2)
    """The first so many episodes of the evaluation, since it takes far longer than all else."""
    iterations: int = Field(20, ge=1)
    """Pairs of each kind that every support text takes part in (R of section 3.1)."""
    batch_size: int = Field(16, ge=1)
    """Pairs of a batch."""
    lr: float = Field(2e-5, gt=0)
    """Peak learning rate of the encoder."""

    def check(self) -> None:
        """Raises UserError where the package is not installed."""
        if importlib.util.find_spec("setfit") is None:
            raise UserError(
                "evaluate.setfit: the package setfit is not installed; install it (pip install 'raymeta[baselines]')"
            )


class Tuner:
    """A backbone that SetFit trains anew for each episode."""

    def __init__(self, settings: SetFit, backbone: Backbone, device: torch.device) -> None:
        from sentence_transformers import SentenceTransformer

        self.settings, self.device = settings, device
        self.tokenizer = backbone.tokenizer()
        with _quiet():
            self.body = SentenceTransformer(backbone.path(), device=str(device))
        self.body.max_seq_length = backbone.max_length
        self._start = {name: tensor.clone() for name, tensor in self.body.state_dict().items()}

    def logits(self, support: Examples, labels: Tensor, query: Examples, outputs: int, seed: int) -> Tensor:
        """1 for the class that each query text is given, else 0: [text, output]."""
        from datasets import Dataset
        from setfit import SetFitModel, Trainer, TrainingArguments
        from sklearn.linear_model import LogisticRegression

        self.body.load_state_dict(self._start)
        model = SetFitModel(model_body=self.body, model_head=LogisticRegression())
        with tempfile.TemporaryDirectory() as folder, _quiet(), _alone():
            how = TrainingArguments(
                output_dir=folder, num_epochs=1, num_iterations=self.settings.iterations, batch_size=self.settings.batch_size,
                body_learning_rate=self.settings.lr, seed=seed % 2**32, report_to="none", show_progress_bar=False,
                save_strategy="no", eval_strategy="no", use_amp=False,
            )  # fmt: skip
            rows = Dataset.from_dict({"text": self.texts(support), "label": labels.tolist()})
            Trainer(model=model, args=how, train_dataset=rows).train()
            found = torch.as_tensor(model.predict(self.texts(query), show_progress_bar=False)).long().cpu()
        return torch.nn.functional.one_hot(found, outputs).float()

    def texts(self, examples: Examples) -> list[str]:
        """The texts that were tokenized, but for what the tokenizer drops (case, say)."""
        ids: Sequence[Tensor] = torch.split(examples.ids, examples.lengths.tolist())
        found: list[str] = self.tokenizer.batch_decode([i.tolist() for i in ids], skip_special_tokens=True)
        return found


_OF_WORKERS = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


@contextlib.contextmanager
def _alone() -> Iterator[None]:
    """Hides from transformers that this process is one of several: each trains on episodes of its own."""
    hidden = {name: os.environ.pop(name) for name in _OF_WORKERS if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(hidden)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps what these packages print off a run's console."""
    from datasets.utils.logging import disable_progress_bar
    from transformers.utils import logging as transformers_logging

    disable_progress_bar()
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    for name in ("setfit", "sentence_transformers"):
        logging.getLogger(name).setLevel(logging.ERROR)
    with (
        warnings.catch_warnings(),
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()),
    ):
        warnings.simplefilter("ignore")
        yield
