"""The target task: its labels, which rows train, validate and test, and how few of them are drawn."""

from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from raymeta.corpora import Corpus
from raymeta.episodes import SPLITS
from raymeta.errors import UserError
from raymeta.finetuning import Finetune
from raymeta.finetuning.target import Target, batch
from raymeta.model import Backbone
from raymeta.prepare import prepare
from raymeta.store import Prepared
from raymeta.tasks import Tasks
from tests.small import DATA, INTENTS, SENTENCES, as_jsonl, ready

FILE = {"kind": "files", "path": str(DATA / "intents.jsonl"), "columns": {"task": "domain"}}
CLASSIFY = {"kind": "classification", "ways": 2, "shots": 1, "queries": 1}
FIND = {"kind": "entities", "ways": 2, "shots": 1, "queries": 1}


def target_of(folder, model, corpus=FILE, tasks=CLASSIFY, whole=None, seed=0, split=None, **settings) -> Target:
    made, kind = ready(
        folder, model, corpus, {**tasks, "split": split or {"of": "class", "test": 2, "validation": 2}}, seed
    )
    return Target.of(made.folder, kind, Finetune.model_validate({"patience": None, **settings}), seed, whole)


def classes_of(target: Target, rows) -> list[str]:
    prepared = Prepared(Path(target.folder))
    return [c for (c,) in prepared.take(rows)["classes"]]


def test_the_rows_of_a_task_are_found_with_those_that_hold_no_class(tmp_path, tiny_tokenizer_folder):
    sentences = [
        {"tokens": ["see", who], "tags": ["O", "O" if i % 2 else "B-person"], "domain": "ab"[i % 3 == 0], "fold": "train" if i < 8 else "test"}
        for i, who in enumerate("abcdefghijklmnop")
    ]  # fmt: skip
    (tmp_path / "rows.jsonl").write_bytes(as_jsonl(sentences))
    corpus = {"kind": "files", "path": str(tmp_path / "rows.jsonl"), "columns": {"task": "domain"}}
    tasks = {**FIND, "split": {"column": "fold", "train": "train", "test": "test"}}
    made, _ = ready(tmp_path, tiny_tokenizer_folder, corpus, tasks)
    tokenizer = Backbone(name=tiny_tokenizer_folder).tokenizer()
    for split in SPLITS:
        for task in (None, "a", "b"):
            rows = made.rows(split, task)
            words = [tokenizer.convert_ids_to_tokens(ids)[-2] for ids in (made.take(rows)["ids"] if len(rows) else [])]
            wanted = [s["tokens"][1] for s in sentences if s["fold"] == split and task in (None, s["domain"])]
            assert sorted(words) == wanted
    owner, held = made.held(made.rows("train"))
    assert len(held) == sum("B-person" in s["tags"] for s in sentences[:8])
    assert {made.classes[c] for c in held} == {"person"}
    for place, row in enumerate(made.rows("train")):
        assert (place in owner) == (made.take(np.array([row]))["classes"] == [["person"]])


def test_the_rows_of_held_out_classes_are_divided_class_by_class(tmp_path, tiny_tokenizer_folder):
    target = target_of(tmp_path, tiny_tokenizer_folder, whole="test", held_out={"validation": 0.2, "test": 0.3})
    parts = [target.train, target.validation, target.test]
    assert [len(p) for p in parts] == [6, 2, 4]  # of 6 rows a class, round(0.2 * 6) and round(0.3 * 6)
    for rows, each in zip(parts, (3, 1, 2), strict=True):
        assert sorted(classes_of(target, rows)) == sorted(list(target.classes) * each)
    together = np.concatenate(parts)
    assert len(np.unique(together)) == 12
    made = Prepared(Path(target.folder))
    assert set(together) == set(made.rows("test"))
    again = target_of(tmp_path, tiny_tokenizer_folder, whole="test", held_out={"validation": 0.2, "test": 0.3})
    assert all(np.array_equal(a, b) for a, b in zip(parts, (again.train, again.validation, again.test), strict=True))


def test_a_corpus_that_says_nothing_of_splits_is_divided_whole(tmp_path, tiny_tokenizer_folder):
    kind, backbone = Tasks.model_validate(CLASSIFY), Backbone(name=tiny_tokenizer_folder)
    corpus = Corpus.model_validate(FILE)
    with pytest.raises(UserError, match="nothing says which rows train"):
        prepare(corpus, kind, backbone, 0, tmp_path, on_ray=False, say=lambda _: None)
    made = prepare(corpus, kind, backbone, 0, tmp_path, on_ray=False, say=lambda _: None, whole=True)
    target = Target.of(made.folder, kind, Finetune(task=("ferry",)), 0)
    assert target.classes == ("buy_ticket", "delay", "pets")
    assert len(target.train) + len(target.validation) + len(target.test) == 18


def test_a_column_says_which_rows_train_and_which_test(tmp_path, tiny_tokenizer_folder):
    folds = {"train": 0, "dev": 1, "test": 2}
    rows = [{**row, "fold": list(folds)[i % 3]} for i, row in enumerate(INTENTS)]
    (tmp_path / "rows.jsonl").write_bytes(as_jsonl(rows))
    corpus = {**FILE, "path": str(tmp_path / "rows.jsonl")}
    split = {"column": "fold", "train": "train", "validation": "dev", "test": "test"}
    target = target_of(tmp_path, tiny_tokenizer_folder, corpus, split=split, task="library")
    for name, found in zip(folds, (target.train, target.validation, target.test), strict=True):
        wanted = sorted(r["label"] for r in rows if r["fold"] == name and r["domain"] == "library")
        assert sorted(classes_of(target, found)) == wanted


def test_a_draw_holds_so_many_rows_of_each_class_and_smaller_draws(tmp_path, tiny_tokenizer_folder):
    target = target_of(tmp_path, tiny_tokenizer_folder, whole="train", held_out={"validation": 0, "test": 0.2})
    draws = [set(target.drawn(shots, None, 0, 0).tolist()) for shots in (1, 2, 3, 5, 9)]
    assert [len(d) for d in draws] == [2 * n for n in (1, 2, 3, 5, 5)]  # two classes; none has more than 5 rows
    for small, large in pairwise(draws):
        assert small <= large
    for shots, draw in zip((1, 2, 3, 5), draws, strict=False):
        names = classes_of(target, np.array(sorted(draw)))
        assert all(names.count(c) == shots for c in target.classes)
    assert set(target.drawn(2, None, 0, 1).tolist()) != draws[1]
    some = [set(target.drawn(None, n, 0, 0).tolist()) for n in (1, 4, 100)]
    assert [len(s) for s in some] == [1, 4, 10]
    assert some[0] <= some[1] <= some[2] == set(target.drawn(None, None, 0, 0).tolist())


def test_sentences_with_several_types_count_for_each_of_them(tmp_path, tiny_tokenizer_folder):
    corpus = {"kind": "files", "path": {"train": str(DATA / "entities.conll"), "test": str(DATA / "entities.conll")}}
    made, kind = ready(tmp_path, tiny_tokenizer_folder, corpus, FIND)
    target = Target.of(made.folder, kind, Finetune(patience=None), 0)
    held = {row: set(made.take(np.array([row]))["classes"][0]) for row in target.train.tolist()}
    assert len(held) == len(SENTENCES)
    there = {c: sum(c in h for h in held.values()) for c in target.classes}
    for shots in (1, 2, 3):
        drawn = target.drawn(shots, None, 0, 0).tolist()
        for name in target.classes:
            assert sum(name in held[row] for row in drawn) >= min(shots, there[name])
        assert all(held[row] for row in drawn)  # none that holds nothing
        assert len(drawn) <= shots * len(target.classes)


def test_every_pass_takes_each_row_once_in_an_order_of_its_own():
    rows = np.arange(100, 110)
    passes = [np.concatenate([batch(rows, 4, 3 * epoch + i, 7, 0) for i in (1, 2, 3)]) for epoch in (0, 1)]
    assert [len(batch(rows, 4, i, 7, 0)) for i in (1, 2, 3, 4)] == [4, 4, 2, 4]
    for found in passes:
        assert sorted(found) == rows.tolist()
    assert passes[0].tolist() != passes[1].tolist()
    assert batch(rows, 4, 1, 7, 1).tolist() != passes[0][:4].tolist()
    assert np.array_equal(batch(rows, 4, 1, 7, 0), passes[0][:4])


def test_what_early_stopping_looks_at_is_the_same_for_every_repeat(tmp_path, tiny_tokenizer_folder):
    target = target_of(tmp_path, tiny_tokenizer_folder, whole="train", held_out={"validation": 0.5, "test": 0.2})
    assert set(target.watched(2, 0).tolist()) < set(target.validation.tolist())
    assert len(target.watched(2, 0)) == 2
    assert np.array_equal(target.watched(2, 0), target.watched(2, 0))
    assert np.array_equal(target.watched(None, 0), target.validation)
    assert np.array_equal(target.watched(99, 0), target.validation)


def test_what_is_said_of_a_task_names_classes_without_a_training_row(tmp_path, tiny_tokenizer_folder):
    rows = [
        {**row, "fold": "test" if row["label"] == "pets" or i % 3 == 0 else "train"} for i, row in enumerate(INTENTS)
    ]
    (tmp_path / "rows.jsonl").write_bytes(as_jsonl(rows))
    split = {"column": "fold", "train": "train", "test": "test"}
    target = target_of(tmp_path, tiny_tokenizer_folder, {**FILE, "path": str(tmp_path / "rows.jsonl")}, split=split)
    said: list[str] = []
    target.account(said.append)
    assert "6 classes" in said[0]
    assert said[1:] == ["1 classes have no training row, and cannot be learned: pets"]
