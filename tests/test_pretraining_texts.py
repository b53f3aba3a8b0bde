"""What is read for pre-training: no text of a class, task or file that is held out, each document once, bad rows set aside."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from raymeta.corpora import Corpus
from raymeta.errors import UserError
from raymeta.pretraining.texts import Collected, Origin, collect
from raymeta.pretraining.tokens import SENTENCE, WORD, TokenStore, flags, tokenized
from raymeta.pretraining.vocabulary import SPECIAL
from raymeta.stages.pretrain import own_text
from raymeta.tasks import Tasks
from tests.pretrained import TEXT, run_of, text_of, tokenizer_of
from tests.small import INTENTS, SENTENCES, as_conll, as_jsonl, as_parquet, ready
from tests.small import read as rows_of

STORED = TEXT + "\n" + "\n\n".join(f"It says [MASK] and </s> {i}." for i in range(20))
BY_CLASS = {"of": "class", "train": 2, "validation": 2, "test": 2}


def collected(folder: Path, *origins: Origin, held_out: float = 0.3, seed: int = 0) -> Collected:
    place = folder / f"collected-{len(list(folder.iterdir()))}" / "parts"
    place.mkdir(parents=True)
    return collect(place, origins, seed, held_out, on_ray=False)


def own(corpus: Corpus, split: dict[str, Any], kind: str = "classification", **more: Any) -> Origin:
    return Origin(corpus, Tasks.model_validate({"kind": kind, "split": split, **more}))


def read(found: Collected) -> set[str]:
    return {*found.texts(0), *found.texts(1)}


def files(folder: Path, rows: list[dict[str, Any]], **columns: str) -> Corpus:
    (folder / "rows.jsonl").write_bytes(as_jsonl(rows))
    return Corpus.model_validate({"kind": "files", "path": str(folder / "rows.jsonl"), "columns": columns})


@pytest.mark.parametrize("seed", range(4))
def test_own_text_is_that_of_training_classes_drawn_as_for_episodes(seed, tmp_path, tiny_tokenizer_folder):
    corpus = files(tmp_path, INTENTS)
    found = collected(tmp_path, own(corpus, BY_CLASS), seed=seed)
    made, _ = ready(
        tmp_path / "prepared",
        tiny_tokenizer_folder,
        corpus.model_dump(),
        {"kind": "classification", "split": BY_CLASS},
        seed,
    )
    pool = made.pool("train")
    training = {pool.classes[c] for c in pool.cell_class}
    assert len(training) == 2
    assert read(found) == {row["text"] for row in INTENTS if row["label"] in training}
    assert set(found.found[0]["classes"]) == training
    assert found.found[0]["other_rows"] == sum(row["label"] not in training for row in INTENTS)


def test_own_text_of_sentences_is_none_that_holds_a_type_of_another_split(tmp_path):
    (tmp_path / "a.conll").write_bytes(as_conll(SENTENCES))
    corpus = Corpus.model_validate({"kind": "files", "path": str(tmp_path / "a.conll")})
    split = {"of": "class", "train": 2, "validation": 1, "test": 1}
    found = collected(tmp_path, own(corpus, split, "entities"), held_out=0.6)
    training = set(found.found[0]["classes"])
    texts = [(" ".join(words), {tag[2:] for tag in tags if tag != "O"}) for words, tags in SENTENCES]
    assert read(found) == {text for text, types in texts if types and types <= training}
    assert any(types & training and not types <= training for _, types in texts)


def test_own_text_goes_by_tasks_columns_and_files_as_the_split_does(tmp_path):
    rows = [{**row, "part": ["train", "dev", "x"][i % 3]} for i, row in enumerate(INTENTS)]
    corpus = files(tmp_path, rows, task="domain")
    by_column = collected(tmp_path, own(corpus, {"column": "part", "train": "train", "test": "dev"}))
    assert read(by_column) == {row["text"] for row in rows if row["part"] == "train"}
    domains = sorted({row["domain"] for row in rows})
    by_task = collected(tmp_path, own(corpus, {"of": "task", "test": (domains[0],)}))
    assert read(by_task) == {row["text"] for row in rows if row["domain"] != domains[0]}
    for name in ("train", "test"):
        (tmp_path / f"{name}.parquet").write_bytes(
            as_parquet([r for r in rows if r["part"] == name.replace("test", "dev")])
        )
    paths = {name: str(tmp_path / f"{name}.parquet") for name in ("train", "test")}
    by_file = Corpus.model_validate({"kind": "files", "path": paths})
    assert read(collected(tmp_path, own(by_file, {}))) == read(by_column)
    assert read(collected(tmp_path, Origin(by_file, None))) == read(by_column)  # named for its text, too


def test_own_text_of_tasks_whose_classes_are_words_is_all_text_for_training(tmp_path):
    rows = [{**row, "part": ["train", "dev"][i % 2]} for i, row in enumerate(INTENTS)]
    corpus = files(tmp_path, rows)
    words = own(corpus, {"of": "class", "validation": 5}, "smlmt")
    assert read(collected(tmp_path, words)) == {row["text"] for row in rows}
    by_column = own(corpus, {"column": "part", "train": "train", "validation": "dev"}, "smlmt")
    assert read(collected(tmp_path, by_column)) == {row["text"] for row in rows if row["part"] == "train"}


def test_a_document_that_occurs_twice_is_read_once_and_is_on_one_side(tmp_path):
    texts = [f"text {i % 40}" for i in range(100)]
    one = files(tmp_path, [{"text": t} for t in texts])
    (tmp_path / "other.txt").write_text("\n".join([*texts[:10], "more"]), encoding="utf-8")
    other = Corpus.model_validate({"kind": "text", "path": str(tmp_path / "other.txt"), "document": "line"})
    found = collected(tmp_path, Origin(one, None), Origin(other, None))
    sides = [list(found.texts(0)), list(found.texts(1))]
    assert sorted(sides[0] + sides[1]) == sorted({*texts, "more"})
    assert [f["repeated"] for f in found.found] == [60, 10]
    again = collected(tmp_path, Origin(other, None), Origin(one, None))
    assert {*again.texts(1)} == {*sides[1]}  # whatever the order, and whatever else is read
    assert 5 <= len(sides[1]) <= 20


def test_documents_of_several_columns_are_their_texts_on_lines_of_their_own(tmp_path):
    rows = [{"q": f"why {i}?", "c": ["because", "of", "this"], "turns": ["hello you", "hi"], "n": 3} for i in range(9)]
    corpus = files(tmp_path, rows, a="q", b="c", c="turns")
    assert f"{rows[0]['q']}\nbecause of this\nhello you\nhi" in read(collected(tmp_path, Origin(corpus, None)))


def test_bad_rows_are_set_aside_with_their_reason(tmp_path):
    rows = [{"text": f"text {i}"} for i in range(30)] + [{"text": " "}, {"text": None}, {"text": 7}]
    corpus = files(tmp_path, rows).model_copy(update={"bad_rows": 0.2})
    found = collected(tmp_path, Origin(corpus, None))
    assert found.found[0]["bad"] == 3
    named = [json.loads(line) for line in (found.folder.parent / "quarantine.jsonl").read_text().splitlines()]
    assert [(n["row"], n["reason"]) for n in named] == [(31 + i, "there is no text in it") for i in range(3)]
    strict = Origin(corpus.model_copy(update={"bad_rows": 0.05}), None, "pretrain.corpus[1]")
    with pytest.raises(UserError, match=r"pretrain\.corpus\[1\]\.bad_rows: 3 of 33 rows cannot be used"):
        collected(tmp_path, strict)


def test_text_without_a_column_of_that_name_is_one_message(tmp_path):
    with pytest.raises(
        UserError,
        match=r"no column of .*rows.jsonl is called text; name those that hold text .*there are: utterance, x",
    ):
        collected(tmp_path, Origin(files(tmp_path, [{"utterance": "a", "x": 1}]), None, "pretrain.corpus"))
    with pytest.raises(UserError, match="validation_share: of 1 documents"):
        collected(tmp_path, Origin(files(tmp_path, [{"text": "a"}]), None), held_out=0.0)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[TokenStore, str]:
    folder = tmp_path_factory.mktemp("store")
    (folder / "a.txt").write_text(STORED)
    run = run_of("roberta", folder, corpus={"kind": "text", "path": str(folder / "a.txt")})
    return text_of(run), str(folder)


def test_a_store_holds_the_documents_of_each_side_as_the_tokenizer_cuts_them(store):
    made, _ = store
    tokenizer = tokenizer_of(str(made.folder))
    texts = []
    for side in ("train", "validation"):
        held = made.documents(side)
        assert made.summary[side] == {"documents": len(held.start) - 1, "tokens": len(held.tokens)}
        assert held.start[-1] == len(held.tokens) == len(held.flags)
        texts += [tokenizer.decode(held.tokens[a:b]) for a, b in zip(held.start[:-1], held.start[1:], strict=True)]
    assert sorted(texts) == sorted(block.strip("\n").lower() for block in STORED.split("\n\n"))


def test_the_names_of_special_tokens_in_a_text_are_text(store):
    made, _ = store
    special = [tokenizer_of(str(made.folder)).convert_tokens_to_ids(s) for s in SPECIAL["roberta"].values()]
    for side in ("train", "validation"):
        assert not np.isin(made.documents(side).tokens, special).any()


def test_words_and_sentences_begin_where_a_reader_says(store):
    made, _ = store
    tokenizer = tokenizer_of(str(made.folder))
    text = 'The ship left at 5.30 a.m. already. "Where is it?" asked he; no.\nNobody (not one) knew! Then e.g. this.'
    encoded = tokenizer.backend_tokenizer.encode(text, add_special_tokens=False)
    found = flags(text, encoded)

    def parted(bit: int) -> list[str]:
        begins = [o[0] for o, f in zip(encoded.offsets, found, strict=True) if f & bit]
        return [text[a:b].strip() for a, b in zip(begins, [*begins[1:], None], strict=True)]

    assert parted(SENTENCE) == [
        "The ship left at 5.30 a.m. already.", '"Where is it?" asked he; no.', "Nobody (not one) knew!", "Then e.g. this.",
    ]  # fmt: skip
    words = parted(WORD)
    assert words[:4] == ["The", "ship", "left", "at"]
    assert "Nobody" in words
    assert "".join(words) == text.replace(" ", "").replace("\n", "")


def test_the_same_text_is_cut_once(store):
    made, folder = store
    corpus = {"kind": "text", "path": f"{folder}/a.txt"}
    stamp = (made.folder / "index.json").stat().st_mtime_ns
    assert text_of(run_of("roberta", Path(folder), corpus=corpus, steps=9, length=16)).folder == made.folder
    assert (made.folder / "index.json").stat().st_mtime_ns == stamp
    tokenizer = {"kind": "byte_bpe", "size": 390}
    assert text_of(run_of("roberta", Path(folder), corpus=corpus, tokenizer=tokenizer)).folder != made.folder
    assert text_of(run_of("roberta", Path(folder), corpus=corpus, validation_share=0.4)).folder != made.folder


def test_a_user_is_told_what_is_read(tmp_path):
    rows = [{"text": f"a text of number {i % 20}"} for i in range(60)]
    (tmp_path / "rows.jsonl").write_bytes(as_jsonl([*rows, {"text": ""}]))
    run = run_of("gpt2", tmp_path, corpus=["own", {"kind": "files", "path": str(tmp_path / "rows.jsonl")}])
    said: list[str] = []
    assert run.pretrain
    tokenized(run.pretrain, run.model, own_text(run), 0, tmp_path / "prepared", False, said.append)
    own_rows = len(rows_of(run.corpus, ("text", "label")))
    assert own_rows == 576
    assert "documents with" in said[0]
    assert said[1] == "  from own rows of classification: 320 documents, 256 rows of other splits left out"
    assert said[2] == "  from pretrain.corpus[1] (files): 20 documents, 40 repeated ones left out, 1 bad rows set aside"
    assert "quarantine.jsonl" in said[3]
