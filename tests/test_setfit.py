"""SetFit as a row of the evaluation: it learns an episode from its support set alone, whatever it learned before."""

from pathlib import Path
from typing import Any

import pytest
import torch

from raymeta import setfit as baseline
from raymeta.config import Run
from raymeta.errors import UserError
from raymeta.model import Backbone
from raymeta.pipeline import run_all
from raymeta.setfit import SetFit, Tuner
from raymeta.stages.evaluate import table
from raymeta.stream import Source
from tests.small import DATA, as_jsonl, source

pytest.importorskip("setfit", reason="needs the extra `baselines`")

TASKS = {
    "kind": "classification",
    "ways": 2,
    "shots": 2,
    "queries": 3,
    "split": {"train": 2, "validation": 2, "test": 2},
}
CORPUS = {"kind": "files", "path": str(DATA / "intents.jsonl"), "columns": {"task": "domain"}}


def plain_source(folder: Path, model: str) -> Source:
    """Two classes that have no word in common."""
    rows = [{"text": " ".join((words * 3)[i : i + 4]), "label": label, "split": "train"}
            for label, words in (("music", ["play", "music", "start"]), ("table", ["book", "table", "room"])) for i in range(6)]  # fmt: skip
    (folder / "rows.jsonl").write_bytes(as_jsonl(rows))
    tasks = {**TASKS, "split": {"column": "split", "train": "train"}}
    return source(folder, model, {"kind": "files", "path": str(folder / "rows.jsonl")}, tasks)


def test_it_tells_texts_apart_and_forgets_an_episode_before_the_next(tmp_path, tiny_tokenizer_folder):
    found = plain_source(tmp_path, tiny_tokenizer_folder)
    tuner = Tuner(SetFit(iterations=5, lr=1e-2), Backbone(name=tiny_tokenizer_folder), torch.device("cpu"))

    def logits(number: int) -> torch.Tensor:
        episode = found.episode(number)
        return tuner.logits(episode.support, found.tasks.targets(episode.support), episode.query, 2, number)

    first = logits(0)
    assert first.shape == (6, 2)
    assert first.sum(1).tolist() == [1.0] * 6
    trained = {n: t.clone() for n, t in tuner.body.state_dict().items()}
    assert any(not torch.equal(t, tuner._start[n]) for n, t in trained.items())
    logits(1)
    assert torch.equal(logits(0), first)
    assert all(torch.equal(t, trained[n]) for n, t in tuner.body.state_dict().items())
    right = [found.tasks.score(logits(n), found.episode(n).query, ("music", "table"))["accuracy"] for n in range(4)]
    assert sum(right) / 4 > 0.9


def test_it_reads_the_texts_that_were_tokenized(tmp_path, tiny_tokenizer_folder):
    episode = plain_source(tmp_path, tiny_tokenizer_folder).episode(0)
    tuner = Tuner(SetFit(), Backbone(name=tiny_tokenizer_folder), torch.device("cpu"))
    texts = tuner.texts(episode.query)
    assert len(texts) == 6
    assert tuner.tokenizer(texts)["input_ids"] == [
        t.tolist() for t in torch.split(episode.query.ids, episode.query.lengths.tolist())
    ]


def run_of(folder: Path, model: str, **sections: Any) -> Run:
    return Run.of(
        {
            "name": "run", "model": {"name": model}, "corpus": CORPUS, "tasks": TASKS, "outer": {"steps": 1, "tasks_per_step": 1},
            "validation": {"every": 0}, "storage": str(folder / "results"), "cluster": "local-debug",
            "evaluate": {"episodes": 4, "setfit": {"episodes": 2, "iterations": 1}}, **sections,
        }
    )  # fmt: skip


def test_the_evaluation_has_its_row_with_its_own_number_of_episodes(tmp_path, tiny_tokenizer_folder):
    found = run_all(run_of(tmp_path, tiny_tokenizer_folder))
    assert found["setfit_episodes"] == 2
    assert set(found["setfit"]) == {"accuracy", "macro_f1"}
    assert 0 <= found["setfit"]["accuracy"]["mean"] <= 1
    assert "SetFit (2 episodes)" in table(found)
    without = run_all(run_of(tmp_path, tiny_tokenizer_folder, evaluate={"episodes": 4}))
    assert "setfit" not in without
    assert "SetFit" not in table(without)
    assert without["metrics"] == found["metrics"]


def test_what_cannot_be_measured_is_told_before_anything_is(tmp_path, tiny_tokenizer_folder, monkeypatch):
    words = {"corpus": {"kind": "files", "path": str(DATA / "entities.conll")},
             "tasks": {**TASKS, "kind": "entities", "shots": 1, "queries": 1, "split": {"train": 2, "validation": 2}}}  # fmt: skip
    settings = {"split": "validation", "episodes": 2, "setfit": {}}
    with pytest.raises(UserError, match=r"evaluate.setfit: SetFit classifies texts, and tasks.kind is entities"):
        run_of(tmp_path, tiny_tokenizer_folder, **words, evaluate=settings)
    monkeypatch.setattr(baseline.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"evaluate.setfit: .* .pip install 'raymeta\[baselines\]'"):
        SetFit().check()
