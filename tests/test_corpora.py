"""Corpora give the same rows whatever the file's format, and whatever way it is named."""

import gzip
from pathlib import Path

import pytest

from raymeta.corpora import Corpus
from raymeta.corpora.files import Files
from raymeta.corpora.hub import Hub
from raymeta.corpora.quickstart import Quickstart, marked_words
from raymeta.errors import UserError
from tests.small import FORMATS, INTENTS, SENTENCES, as_conll, as_csv, as_jsonl, as_parquet, read

PAIRS = [(row["text"], row["label"]) for row in INTENTS]


def pairs(corpus: Corpus) -> list[tuple[str, str]]:
    return [(row.values["text"], row.values["label"]) for row in read(corpus, ("text", "label"))]


@pytest.mark.parametrize("name", FORMATS)
def test_rows_are_the_same_in_every_format(name, tmp_path):
    (tmp_path / name).write_bytes(FORMATS[name](INTENTS))
    assert pairs(Files(path=str(tmp_path / name))) == PAIRS


@pytest.mark.parametrize("name", FORMATS)
def test_a_row_keeps_quotes_commas_newlines_and_other_scripts(name, tmp_path):
    texts = [
        'she said "hi", twice',
        "two\nlines",
        "naïve café",
        "日本語 テキスト",
        "🎉",
        " padded ",
        "a\\b",
        "tab\there",
    ]
    (tmp_path / name).write_bytes(FORMATS[name]([{"text": t, "label": "x"} for t in texts]))
    assert [text for text, _ in pairs(Files(path=str(tmp_path / name)))] == texts


def test_a_byte_order_mark_is_no_part_of_the_first_column(tmp_path):
    (tmp_path / "rows.csv").write_bytes(b"\xef\xbb\xbf" + as_csv(INTENTS))
    assert pairs(Files(path=str(tmp_path / "rows.csv"))) == PAIRS


def test_the_format_can_be_named_where_the_ending_tells_nothing(tmp_path):
    (tmp_path / "rows.data").write_bytes(as_jsonl(INTENTS))
    assert pairs(Files(path=str(tmp_path / "rows.data"), format="jsonl")) == PAIRS


def test_columns_are_read_by_the_names_that_the_run_gives(tmp_path):
    rows = [{"utterance": r["text"], "intent": r["label"], "domain": r["domain"]} for r in INTENTS]
    (tmp_path / "rows.csv").write_bytes(as_csv(rows))
    named = Files(path=str(tmp_path / "rows.csv"), columns={"text": "utterance", "label": "intent", "task": "domain"})
    found = read(named, ("text", "label"))
    assert [r.values for r in found] == [{"text": r["text"], "label": r["label"], "task": r["domain"]} for r in INTENTS]


def test_a_path_is_a_file_a_list_a_folder_or_a_uri(tmp_path, monkeypatch):
    folder = tmp_path / "with space"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(as_jsonl(INTENTS[:10]))
    (folder / "b.csv.gz").write_bytes(gzip.compress(as_csv(INTENTS[10:20])))
    (folder / "deeper").mkdir()
    (folder / "deeper" / "c.parquet").write_bytes(as_parquet(INTENTS[20:]))
    (folder / "README.md").write_text("no data")
    (folder / "_SUCCESS.csv").write_text("no data")
    (folder / ".hidden").mkdir()
    (folder / ".hidden" / "d.csv").write_text("no data")
    files = [str(folder / name) for name in ("a.jsonl", "b.csv.gz", "deeper/c.parquet")]
    assert pairs(Files(path=files)) == PAIRS
    assert pairs(Files(path=str(folder))) == PAIRS
    assert pairs(Files(path=folder.as_uri())) == PAIRS
    assert pairs(Files(path=[Path(f).as_uri() for f in files])) == PAIRS
    monkeypatch.setenv("SOME_FOLDER", str(folder))
    assert pairs(Files(path="$SOME_FOLDER/a.jsonl")) == PAIRS[:10]
    assert pairs(Files(path="${SOME_FOLDER}")) == PAIRS
    monkeypatch.setenv("HOME", str(folder))
    assert pairs(Files(path="~/a.jsonl")) == PAIRS[:10]


def test_one_file_a_split_tells_each_row_its_split(tmp_path):
    for name, rows in (("a.csv", INTENTS[:12]), ("b.csv", INTENTS[12:24]), ("c.csv", INTENTS[24:])):
        (tmp_path / name).write_bytes(as_csv(rows))
    path = {"train": [str(tmp_path / "a.csv"), str(tmp_path / "b.csv")], "test": str(tmp_path / "c.csv")}
    shards = Files(path=path).shards()
    assert [(Path(s.name).name, s.split) for s in shards] == [("a.csv", "train"), ("b.csv", "train"), ("c.csv", "test")]
    assert [s.order for s in shards] == [0, 1, 2]


@pytest.mark.parametrize("name", FORMATS)
def test_rows_may_be_chosen_by_their_values_for_all_files_or_for_each_split(name, tmp_path):
    rows = [{**row, "part": i % 3} for i, row in enumerate(INTENTS)]
    path = str(tmp_path / name)
    (tmp_path / name).write_bytes(FORMATS[name](rows))
    assert pairs(Files(path=path, where={"part": [0, 2]})) == [p for i, p in enumerate(PAIRS) if i % 3 != 1]
    label = INTENTS[0]["label"]
    both = Files(path=path, where={"part": 0, "label": label})
    assert pairs(both) == [p for i, p in enumerate(PAIRS) if i % 3 == 0 and p[1] == label]
    apart = Files(path={"train": path, "test": path}, where={"train": {"part": 0}, "test": {"part": ["1"]}})
    assert pairs(apart) == PAIRS[0::3] + PAIRS[1::3]
    assert next(r.values.keys() for r in read(apart, ("text",))) == {"text"}
    assert Files.model_validate(apart.model_dump()) == apart


def test_rows_that_are_not_chosen_keep_the_others_numbers(tmp_path):
    (tmp_path / "rows.jsonl").write_bytes(as_jsonl([{**row, "part": i % 2} for i, row in enumerate(INTENTS)]))
    found = read(Files(path=str(tmp_path / "rows.jsonl"), where={"part": 1}), ("text",))
    assert [row.number for row in found] == list(range(2, len(INTENTS) + 1, 2))


@pytest.mark.parametrize(
    ("path", "where", "says"),
    [
        ("rows.csv", {"lable": "a"}, "corpus.where: 'lable' is not a column of .*did you mean 'label'"),
        ("rows.csv", {"train": {"label": "a"}}, "'train' is no split of corpus.path"),
        ({"train": "rows.csv"}, {"test": {"label": "a"}}, "'test' is no split of corpus.path"),
        ({"train": "rows.csv"}, {"train": {"label": "a"}, "label": "a"}, "for every split, or columns alone"),
    ],
)
def test_a_wrong_choice_of_rows_is_named(path, where, says, tmp_path, monkeypatch):
    (tmp_path / "rows.csv").write_bytes(as_csv(INTENTS))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=says):
        read(Files(path=path, where=where), ("text",))


def test_a_large_parquet_file_is_read_in_parts_that_cover_it_once(tmp_path, monkeypatch):
    monkeypatch.setattr("raymeta.corpora.files._ROWS_A_SHARD", 10)
    (tmp_path / "rows.parquet").write_bytes(as_parquet(INTENTS, row_group_size=4))
    corpus = Files(path=str(tmp_path / "rows.parquet"))
    assert len(corpus.shards()) == 3
    assert pairs(corpus) == PAIRS
    assert [row.number for row in read(corpus, ("text", "label"))] == list(range(36))


def test_a_row_is_numbered_by_its_line_in_a_text_file(tmp_path):
    lines = as_jsonl(INTENTS[:4]).decode().splitlines()
    (tmp_path / "rows.jsonl").write_text("\n".join([lines[0], "", lines[1], "{oops", lines[2]]))
    found = read(Files(path=str(tmp_path / "rows.jsonl")), ("text", "label"))
    assert [(row.number, row.fault is None) for row in found] == [(1, True), (3, True), (4, False), (5, True)]


def test_a_quote_that_never_closes_is_a_fault_and_swallows_no_row_in_silence(tmp_path):
    (tmp_path / "rows.csv").write_text('text,label\nfine,a\n"never closed,b\nmore,c\n')
    found = read(Files(path=str(tmp_path / "rows.csv")), ("text", "label"))
    assert found[0].values == {"text": "fine", "label": "a"}
    assert any("not CSV" in (row.fault or "") for row in found[1:])


def test_csv_goes_on_after_a_row_that_is_not_csv(tmp_path):
    (tmp_path / "rows.csv").write_text('text,label\n"shut" too soon,b\nfine,a\n')
    found = read(Files(path=str(tmp_path / "rows.csv")), ("text", "label"))
    assert "not CSV" in str(found[0].fault)
    assert [row.number for row in found] == [2, 3]
    assert found[1].values == {"text": "fine", "label": "a"}


@pytest.mark.parametrize("between", [" ", "\t", "   "])
@pytest.mark.parametrize("name", ["rows.conll", "rows.bio", "rows.txt", "rows.conll.gz"])
def test_conll_columns_are_sentences_of_words_and_tags(name, between, tmp_path):
    text = as_conll(SENTENCES, between)
    (tmp_path / name).write_bytes(gzip.compress(text) if name.endswith(".gz") else text)
    found = read(Files(path=str(tmp_path / name)), ("tokens", "tags"))
    assert [(row.values["tokens"], row.values["tags"]) for row in found] == SENTENCES


def test_conll_skips_document_marks_and_comments_but_not_words_like_them(tmp_path):
    text = "-DOCSTART- -X- O\n\n# id 7 domain=en\nEU NNP B-org\n# SYM O\n\n\n# SYM O\n7 CD O\n"
    (tmp_path / "rows.conll").write_text(text)
    found = read(Files(path=str(tmp_path / "rows.conll")), ("tokens", "tags"))
    assert [row.values["tokens"] for row in found] == [["EU", "#"], ["#", "7"]]
    assert [row.values["tags"] for row in found] == [["B-org", "O"], ["O", "O"]]
    assert [row.number for row in found] == [4, 8]


def test_conll_words_of_odd_white_space_stay_words(tmp_path):
    (tmp_path / "rows.conll").write_text("1\u00a0000 B-n\n\u2028 O\n\u200b O\n", encoding="utf-8")
    found = read(Files(path=str(tmp_path / "rows.conll")), ("tokens", "tags"))
    assert [row.values for row in found] == [{"tokens": ["1\u00a0000", "\u2028", "\u200b"], "tags": ["B-n", "O", "O"]}]


def test_conll_columns_are_chosen_by_number(tmp_path):
    (tmp_path / "rows.conll").write_text("1 EU B-org x\n2 is O y\n")
    found = read(Files(path=str(tmp_path / "rows.conll"), columns={"tokens": 1, "tags": -2}), ("tokens", "tags"))
    assert found[0].values == {"tokens": ["EU", "is"], "tags": ["B-org", "O"]}


def test_a_fingerprint_changes_with_the_file(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_bytes(as_csv(INTENTS))
    before = Files(path=str(path)).fingerprint()
    assert Files(path=str(path)).fingerprint() == before
    path.write_bytes(as_csv(INTENTS[:-1]))
    assert Files(path=str(path)).fingerprint() != before


def test_a_local_folder_is_read_as_the_hub_would_and_class_numbers_become_names(tmp_path):
    from datasets import ClassLabel, Dataset, Features, Sequence, Value

    labels = ClassLabel(names=["no", "yes"])
    tags = ClassLabel(names=["O", "B-x", "I-x"])
    features = Features(
        {"text": Value("string"), "label": labels, "tokens": Sequence(Value("string")), "tags": Sequence(tags)}
    )
    rows = [{"text": "t", "label": i % 2, "tokens": ["a", "b"], "tags": [1, 2]} for i in range(4)]
    for split in ("train", "test"):
        (tmp_path / split).mkdir()
        Dataset.from_list(rows, features=features).to_parquet(str(tmp_path / split / f"{split}-0.parquet"))
    corpus = Hub(name=str(tmp_path))
    assert [s.split for s in corpus.shards()] == ["train", "test"]
    assert [r.values["label"] for r in read(corpus, ("text", "label"))] == ["no", "yes"] * 4
    assert read(corpus, ("tokens", "tags"))[0].values["tags"] == ["B-x", "I-x"]
    before = corpus.fingerprint()
    Dataset.from_list(rows[:3], features=features).to_parquet(str(tmp_path / "test" / "test-0.parquet"))
    assert corpus.fingerprint() != before


def test_a_hub_folder_of_plain_files_is_read_by_split(tmp_path):
    (tmp_path / "train.jsonl").write_bytes(as_jsonl(INTENTS[:30]))
    (tmp_path / "test.jsonl").write_bytes(as_jsonl(INTENTS[30:]))
    corpus = Hub(name=str(tmp_path), splits={"train": "train", "validation": "test"})
    assert [(s.split, s.place) for s in corpus.shards()] == [("train", "train"), ("validation", "test")]
    assert pairs(corpus) == PAIRS
    with pytest.raises(UserError, match="has no split 'tst'; did you mean 'test'"):
        Hub(name=str(tmp_path), splits={"train": "tst"}).shards()


def test_a_hub_name_that_is_not_there_says_what_to_do_without_a_network():
    with pytest.raises(UserError, match=r"someone/nothing.*Without a network, download it elsewhere.*local folder"):
        Hub(name="someone/nothing").shards()


def test_the_quickstart_has_16_domains_of_45_sentences_with_5_types_of_their_own():
    corpus = Quickstart()
    types: dict[str, set[str]] = {}
    counts: dict[str, int] = {}
    for row in read(corpus, ("tokens", "tags")):
        domain = row.values["task"]
        counts[domain] = counts.get(domain, 0) + 1
        types.setdefault(domain, set()).update(tag[2:] for tag in row.values["tags"] if tag != "O")
        assert len(row.values["tokens"]) == len(row.values["tags"]) > 0
    assert list(counts.values()) == [45] * 16
    assert [len(t) for t in types.values()] == [5] * 16
    assert len(set().union(*types.values())) == 80


def test_the_quickstart_has_36_intents_of_16_different_texts():
    found: dict[str, set[str]] = {}
    for row in read(Quickstart(part="intents"), ("text", "label")):
        found.setdefault(row.values["label"], set()).add(row.values["text"])
    assert len(found) == 36
    assert {len(texts) for texts in found.values()} == {16}


def test_marked_words_become_words_and_tags():
    words, tags = marked_words("We left [Port Ness](port) at 7:30, didn't we?")
    assert words == ["We", "left", "Port", "Ness", "at", "7:30", ",", "didn't", "we", "?"]
    assert tags == ["O", "O", "B-port", "I-port", "O", "O", "O", "O", "O", "O"]
