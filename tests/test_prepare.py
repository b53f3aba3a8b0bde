"""A prepared corpus holds the rows that went in, in the splits that the run asks for, on any cluster."""

import json
import random
from pathlib import Path

import numpy as np
import pytest

from raymeta import prepare as module
from raymeta import store
from raymeta.corpora import Corpus
from raymeta.episodes import SPLITS
from raymeta.model import Backbone
from raymeta.prepare import prepare
from raymeta.sorting import sort
from raymeta.store import Prepared
from raymeta.tasks import Tasks
from tests.small import DATA, INTENTS, SENTENCES, as_conll, as_jsonl, ready

INTENT_FILE = {"kind": "files", "path": str(DATA / "intents.jsonl"), "columns": {"task": "domain"}}
ENTITY_FILE = {"kind": "files", "path": str(DATA / "entities.conll")}
LABELS = sorted({row["label"] for row in INTENTS})


def intents(**split: object) -> dict[str, object]:
    return {"kind": "classification", "ways": 2, "queries": 1, "split": split}


def classes_of(prepared: Prepared) -> dict[str, list[str]]:
    """Split -> the classes that episodes of it can draw."""
    pools = {name: prepared.pool(name) for name in SPLITS if name in prepared.summary["splits"]}
    return {name: [pool.classes[c] for c in sorted(set(pool.cell_class.tolist()))] for name, pool in pools.items()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_the_rows_that_went_in_come_out(tmp_path, tiny_tokenizer_folder, monkeypatch):
    monkeypatch.setattr(store, "FILE_ROWS", 10)
    prepared, _ = ready(tmp_path, tiny_tokenizer_folder, INTENT_FILE, intents(column="fold", train="train", test="dev"))
    assert len(list(prepared.folder.glob("rows-*.arrow"))) == 4
    tokenizer = Backbone(name=tiny_tokenizer_folder).tokenizer()
    table = prepared.take(np.arange(36))
    found = sorted((tuple(ids), classes[0]) for ids, classes in zip(table["ids"], table["classes"], strict=True))
    assert found == sorted((tuple(tokenizer(row["text"])["input_ids"]), row["label"]) for row in INTENTS)


def test_every_posting_is_a_row_of_its_class_and_task(tmp_path, tiny_tokenizer_folder):
    prepared, _ = ready(tmp_path, tiny_tokenizer_folder, INTENT_FILE, intents(column="fold", train="train", test="dev"))
    pool = prepared.pool("train")
    domain = {row["label"]: row["domain"] for row in INTENTS}
    for c, name in enumerate(pool.classes):
        rows = pool.rows_of(c)
        assert len(rows) == (6 if name in ("renew_loan", "opening_hours", "buy_ticket", "delay") else 0)
        assert len(rows) == 0 or {held[0] for held in prepared.take(rows)["classes"]} == {name}
        for t, task in enumerate(pool.tasks):
            assert len(pool.rows_of(c, t)) == (len(rows) if domain[name] == task else 0)


def test_the_words_of_entities_come_out_with_their_types(tmp_path, tiny_tokenizer_folder):
    split = {"kind": "entities", "ways": 2, "split": {"of": "class", "test": ["price"]}}
    prepared, tasks = ready(tmp_path, tiny_tokenizer_folder, ENTITY_FILE, split)
    pool = prepared.pool("test")
    price = pool.classes.index("price")
    rows = pool.rows_of(price).copy()
    examples = tasks.examples(prepared.take(rows), rows, ["price"])
    only = [tags for _, tags in SENTENCES if {t[2:] for t in tags if t != "O"} == {"price"}]
    assert examples.extra["words"].sum() == sum(len(tags) for tags in only)
    assert int((examples.extra["tags"] == 1).sum()) == sum(t == "B-price" for tags in only for t in tags)
    assert int((examples.extra["tags"] == 2).sum()) == sum(t == "I-price" for tags in only for t in tags)


def test_a_column_assigns_rows_to_splits(tmp_path, tiny_tokenizer_folder):
    prepared, _ = ready(tmp_path, tiny_tokenizer_folder, INTENT_FILE, intents(column="fold", train="train", test="dev"))
    assert classes_of(prepared) == {
        "train": ["buy_ticket", "delay", "opening_hours", "renew_loan"],
        "test": ["lost_card", "pets"],
    }
    both = intents(column="label", train=["delay", "pets"], validation="lost_card", test="buy_ticket")
    prepared, _ = ready(tmp_path, tiny_tokenizer_folder, INTENT_FILE, both)
    assert classes_of(prepared) == {"train": ["delay", "pets"], "validation": ["lost_card"], "test": ["buy_ticket"]}
    assert prepared.summary["in_no_split"] == 12


def test_numbers_of_classes_are_drawn_by_the_seed(tmp_path, tiny_tokenizer_folder):
    found = []
    for seed in range(6):
        prepared, _ = ready(tmp_path, tiny_tokenizer_folder, INTENT_FILE, intents(validation=1, test=2), seed)
        classes = classes_of(prepared)
        assert {name: len(c) for name, c in classes.items()} == {"train": 3, "validation": 1, "test": 2}
        assert sorted(c for cs in classes.values() for c in cs) == LABELS
        found.append(tuple(classes["test"]))
    assert len(set(found)) > 1
    prepared, _ = ready(tmp_path, tiny_tokenizer_folder, INTENT_FILE, intents(train=2, test=1))
    assert {name: len(c) for name, c in classes_of(prepared).items()} == {"train": 2, "test": 1}


def test_lists_name_classes_or_tasks(tmp_path, tiny_tokenizer_folder):
    prepared, _ = ready(tmp_path, tiny_tokenizer_folder, INTENT_FILE, intents(validation=["pets"], test=["delay"]))
    assert classes_of(prepared)["test"] == ["delay"]
    assert "pets" not in classes_of(prepared)["train"]
    prepared, _ = ready(tmp_path, tiny_tokenizer_folder, INTENT_FILE, intents(of="task", test=["ferry"]))
    assert classes_of(prepared) == {
        "train": ["lost_card", "opening_hours", "renew_loan"],
        "test": ["buy_ticket", "delay", "pets"],
    }


def test_one_file_a_split_needs_nothing_else_and_validation_can_be_carved_out_of_the_training_file(
    tmp_path, tiny_tokenizer_folder
):
    (tmp_path / "a.jsonl").write_bytes(as_jsonl(INTENTS[:24]))
    (tmp_path / "b.jsonl").write_bytes(as_jsonl(INTENTS[18:]))
    files = {"kind": "files", "path": {"train": str(tmp_path / "a.jsonl"), "test": str(tmp_path / "b.jsonl")}}
    prepared, _ = ready(tmp_path, tiny_tokenizer_folder, files, intents())
    in_a, in_b = ({row["label"] for row in rows} for rows in (INTENTS[:24], INTENTS[18:]))
    assert classes_of(prepared) == {"train": sorted(in_a), "test": sorted(in_b)}
    assert prepared.summary["shared"] == {"test": 1}
    shared = next(iter(in_a & in_b))
    prepared, _ = ready(tmp_path, tiny_tokenizer_folder, files, intents(validation=[shared]))
    assert classes_of(prepared) == {
        "train": sorted(in_a - {shared}),
        "validation": [shared],
        "test": sorted(in_b),
    }


def test_a_sentence_whose_types_belong_to_different_splits_is_in_none(tmp_path, tiny_tokenizer_folder):
    split = {"kind": "entities", "ways": 2, "split": {"of": "class", "validation": ["day"], "test": ["price"]}}
    prepared, _ = ready(tmp_path, tiny_tokenizer_folder, ENTITY_FILE, split)
    assert classes_of(prepared) == {"train": ["person", "venue"], "validation": ["day"], "test": ["price"]}
    held = [{t[2:] for t in tags if t != "O"} for _, tags in SENTENCES]
    whole = [h for h in held if h and (h <= {"person", "venue"} or h in ({"day"}, {"price"}))]
    assert prepared.summary["rows"] == len(whole)
    assert prepared.summary["in_no_split"] == len(SENTENCES) - len(whole)


@pytest.mark.parametrize(
    ("corpus", "tasks"),
    [
        (INTENT_FILE, intents(validation=1, test=2)),
        (ENTITY_FILE, {"kind": "entities", "ways": 2, "split": {"of": "class", "test": 2}}),
    ],
    ids=["intents", "entities"],
)
def test_the_prepared_corpus_is_the_same_whoever_finishes_first_and_whatever_the_chunks(
    corpus, tasks, tmp_path, tiny_tokenizer_folder, monkeypatch
):
    kind, backbone, made = Tasks.model_validate(tasks), Backbone(name=tiny_tokenizer_folder), []
    source = Corpus.model_validate(corpus)
    shards, columns = source.check(kind.roles, None)
    for chunk, shuffled in ((2048, False), (5, False), (5, True), (1, True)):
        monkeypatch.setattr(module, "_CHUNK", chunk)
        building = tmp_path / f"{chunk}-{shuffled}"
        (building / "parts").mkdir(parents=True)
        work = module._Encode(str(building / "parts"), kind, backbone)
        chunks = [c for shard in shards for c in module.Read(source, columns)(shard)]
        if shuffled:
            random.Random(0).shuffle(chunks)
        parts = [work(c) for c in chunks]
        work(chunks[0])  # a task that runs twice changes nothing
        parts.sort(key=lambda p: (p.order, p.number))
        sort(building, parts, source, kind.split, 0, [s.name for s in shards])
        for part in (building / "parts").iterdir():
            part.unlink()
        (building / "parts").rmdir()
        made.append(contents(building))
    assert all(m == made[0] for m in made)


def test_a_second_run_uses_what_is_there_and_a_changed_file_is_prepared_anew(tmp_path, tiny_tokenizer_folder):
    path = tmp_path / "rows.conll"
    path.write_bytes(as_conll(SENTENCES))
    files = {"kind": "files", "path": str(path)}
    tasks = {"kind": "entities", "ways": 2, "split": {"of": "class", "test": 2}}
    first, _ = ready(tmp_path / "p", tiny_tokenizer_folder, files, tasks)
    stamp = (first.folder / "index.json").stat().st_mtime_ns
    again, _ = ready(tmp_path / "p", tiny_tokenizer_folder, files, {**tasks, "shots": 3})
    assert again.folder == first.folder
    assert (again.folder / "index.json").stat().st_mtime_ns == stamp
    path.write_bytes(as_conll(SENTENCES[:-1]))
    assert ready(tmp_path / "p", tiny_tokenizer_folder, files, tasks)[0].folder != first.folder
    shorter = ready(tmp_path / "p", tiny_tokenizer_folder, files, tasks, max_length=32)[0]
    assert shorter.folder != first.folder
    assert not list((tmp_path / "p").glob(".building-*"))


def test_what_was_cut_is_counted(tmp_path, tiny_tokenizer_folder):
    prepared, _ = ready(tmp_path, tiny_tokenizer_folder, INTENT_FILE, intents(test=3), max_length=16)
    tokenizer = Backbone(name=tiny_tokenizer_folder).tokenizer()
    assert prepared.summary["cut"] == sum(len(tokenizer(row["text"])["input_ids"]) > 16 for row in INTENTS)


def test_types_of_the_quickstarts_test_domains_are_never_trained(tmp_path, tiny_tokenizer_folder):
    from raymeta.config import Run

    run = Run.load("quickstart")
    corpus, tasks = (s.model_dump(mode="json") for s in (run.corpus, run.tasks))
    prepared, _ = ready(tmp_path, tiny_tokenizer_folder, corpus, tasks)
    classes = classes_of(prepared)
    assert len(classes["test"]) == 15
    assert not set(classes["test"]) & {*classes["train"], *classes["validation"]}
    assert not set(classes["validation"]) & set(classes["train"])
    assert prepared.summary["shared"] == {}
    assert prepared.summary["set_aside"] == 0
    assert json.loads((prepared.folder / "index.json").read_text())["in_no_split"] == 0


def test_texts_of_the_test_split_that_are_trained_on_are_told(tmp_path, tiny_tokenizer_folder):
    rows = [{"text": f"text {i}", "label": f"c{i % 2}", "fold": "train"} for i in range(8)]
    rows += [{"text": f"text {i}", "label": f"d{i % 2}", "fold": "test"} for i in range(6, 12)]
    (tmp_path / "rows.jsonl").write_bytes(as_jsonl(rows))
    corpus = Corpus.model_validate({"kind": "files", "path": str(tmp_path / "rows.jsonl")})
    tasks = Tasks.model_validate(intents(column="fold", train="train", test="test"))
    said: list[str] = []
    for _ in range(2):  # of a corpus that was prepared before, too
        prepared = prepare(
            corpus, tasks, Backbone(name=tiny_tokenizer_folder), 0, tmp_path, on_ray=False, say=said.append
        )
    assert prepared.summary["leaked"] == {"test": 2}
    assert said.count("2 of the 6 rows of the test split have the very text of a row of the train split") == 2
