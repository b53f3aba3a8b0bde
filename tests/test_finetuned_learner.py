"""A fine-tuned model in use: the Learner loads it, answers as its report says, and saves it for transformers."""

from pathlib import Path
from typing import Any

import pytest
from sklearn.metrics import f1_score

from raymeta import Learner
from raymeta.learner import Adapted
from tests.small import INTENTS, SENTENCES, as_jsonl
from tests.test_finetune import one, run_of


def corpus_of(folder: Path, rows: list[dict[str, Any]]) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """A corpus that says which rows train, validate and test, and its test rows."""
    parts = {"train": rows[::2], "validation": rows[1::4], "test": rows[3::4]}
    for split, some in parts.items():
        (folder / f"{split}.jsonl").write_bytes(as_jsonl(some))
    return {"kind": "files", "path": {s: str(folder / f"{s}.jsonl") for s in parts}}, parts["test"]


@pytest.fixture(scope="module")
def intents(tmp_path_factory: pytest.TempPathFactory, tiny_tokenizer_folder: str) -> tuple[Any, list[dict[str, Any]]]:
    """A model that was fine-tuned on the tests' intents, and the rows that it was tested on."""
    folder = tmp_path_factory.mktemp("tuned")
    corpus, test = corpus_of(folder, [{k: r[k] for k in ("text", "label")} for r in INTENTS])
    return one(run_of(folder, tiny_tokenizer_folder, {"corpus": corpus, "epochs": 10, "lr": 1e-2})), test


def test_its_answers_are_those_that_the_report_counted(intents):
    result, test = intents
    adapted = Learner.from_pretrained(result.folder)
    assert isinstance(adapted, Adapted)
    assert list(adapted.classes) == result.found["classes"]
    gold, found = [r["label"] for r in test], adapted.predict([r["text"] for r in test])
    right = [a == b for a, b in zip(gold, found, strict=True)]
    assert sum(right) / len(right) == pytest.approx(result.found["test"]["accuracy"]["mean"])
    macro = f1_score(gold, found, average="macro", labels=result.found["classes"], zero_division=0)
    assert macro == pytest.approx(result.found["test"]["macro_f1"]["mean"])
    assert len(set(found)) > 1  # else the test says little


def test_saved_and_loaded_again_it_answers_alike(intents, tmp_path):
    result, test = intents
    adapted = Adapted.from_pretrained(result.folder)
    adapted.save_pretrained(tmp_path / "saved")
    again = Learner.from_pretrained(tmp_path / "saved")
    texts = [r["text"] for r in test]
    assert again.predict(texts) == adapted.predict(texts)
    card = (tmp_path / "saved" / "README.md").read_text(encoding="utf-8")
    assert f"{100 * result.found['test']['accuracy']['mean']:.1f}" in card


def test_tags_of_a_fine_tuned_tagger_are_those_that_seqeval_counted(tmp_path, tiny_tokenizer_folder):
    from seqeval.metrics import f1_score as entity_f1

    corpus, test = corpus_of(tmp_path, [{"tokens": words, "tags": tags} for words, tags in SENTENCES])
    settings = {"corpus": corpus, "tasks": {"kind": "entities"}, "epochs": 25, "lr": 2e-2, "patience": None}
    result = one(run_of(tmp_path, tiny_tokenizer_folder, settings))
    found = Learner.from_pretrained(result.folder).predict([r["tokens"] for r in test])
    assert [len(tags) for tags in found] == [len(r["tags"]) for r in test]
    assert entity_f1([r["tags"] for r in test], found) == pytest.approx(result.found["test"]["entity_f1"]["mean"])
