"""A mistake in data is one message with exit status 2; a few bad rows are set aside, counted and named."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tests.mistakes import ROWS, Case, assert_told, data_case, jsonl


def good_parquet() -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.Table.from_pylist([json.loads(line) for line in ROWS.splitlines()]), sink)
    return sink.getvalue().to_pybytes()


EMPTY_TEXTS = jsonl(*({"text": " ", "label": str(i % 6)} for i in range(36)))
UNEVEN = "".join(json.dumps({"tokens": ["a", "b"], "tags": ["O"] * (1 + i % 2)}) + "\n" for i in range(10))

CORPORA = [
    Case("missing file", ["corpus.path={here}/none.csv"], ["corpus.path", "there is no file", "none.csv"]),
    Case("missing file of a split", ["corpus.path={train: none.csv}"], ["corpus.path", "none.csv"]),
    Case("no path", ["corpus={kind: files}"], ["corpus.path", "missing"]),
    Case("unknown split of a path", ["corpus.path={dev: x.csv}"], ["corpus.path", "'dev' is not a split"]),
    Case("folder with nothing", ["corpus.path={here}/d"], ["corpus.path", "holds no file"], {"d/notes.md": "x"}),
    Case("unknown ending", ["corpus.path={here}/x.dat"], ["corpus.path", "x.dat", "corpus.format"], {"x.dat": "x"}),
    Case("unknown scheme", ["corpus.path=foo://x/y.csv"], ["corpus.path", "foo://x/y.csv"]),
    Case("missing column", ["corpus.columns.text=utterance"], ["'utterance' is not a column", "columns: text, label"]),
    Case("near column", ["corpus.columns.text=texts"], ["corpus.columns", "did you mean 'text'"]),
    Case("unknown role", ["corpus.columns.tag=x"], ["corpus.columns", "no role 'tag'", "roles: text, label"]),
    Case(
        "hub name without a network", ["corpus={kind: hub, name: someone/some-data}"], ["corpus.name", "local folder"]
    ),
    data_case("empty jsonl", "x.jsonl", "", ["x.jsonl is empty"]),
    data_case("empty csv", "x.csv", "", ["x.csv is empty"]),
    data_case("blank csv", "x.csv", "\n\n", ["x.csv", "name the columns"]),
    data_case("csv of a header alone", "x.csv", "text,label\n", ["corpus", "no row"]),
    data_case("empty conll", "x.conll", "", ["x.conll is empty"], kind="entities"),
    data_case("blank conll", "x.conll", "\n\n", ["corpus", "no row"], kind="entities"),
    data_case("jsonl that is not JSON", "x.jsonl", "text,label\na,b\n", ["x.jsonl", "no JSON object"]),
    data_case("one JSON list", "x.json", "[{}]\n", ["x.json", "JSON", "one a line"]),
    data_case("all texts empty", "x.jsonl", EMPTY_TEXTS, ["36 of 36 rows", "text is empty", "x.jsonl row 1"]),
    data_case("numbers for texts", "x.jsonl", ROWS.replace('"text": "', '"text": 7, "was": "'), ["text is int '7'"]),
    data_case("no parquet", "x.parquet", "text,label\n", ["x.parquet is not readable as Parquet"]),
    data_case("empty parquet", "x.parquet", b"", ["x.parquet", "Parquet"]),
    data_case("truncated parquet", "x.parquet", good_parquet()[:-300], ["x.parquet is not readable as Parquet"]),
    data_case("damaged parquet", "x.parquet", good_parquet()[:4] + bytes(500) + good_parquet()[504:], ["x.parquet"]),
    data_case("broken gzip", "x.jsonl.gz", ROWS, ["x.jsonl.gz", "could not be read"]),
    data_case("uneven tags", "x.jsonl", UNEVEN, ["5 of 10 rows", "2 tokens but 1 tags"], kind="entities"),
    data_case("tags as text", "x.jsonl", jsonl({"tokens": "a b", "tags": "O O"}), ["not a list"], kind="entities"),
    data_case("Latin-1", "x.csv", "text,label\ncaf\xe9,a\n".encode("latin-1"), ["1 of 1 rows", "text is not UTF-8"]),
    data_case("Latin-1 words", "x.conll", "caf\xe9 O\n\n".encode("latin-1"), ["tokens is not UTF-8"], kind="entities"),
    data_case("UTF-16 words", "x.conll", "a O\n".encode("utf-16"), ["x.conll is not UTF-8"], kind="entities"),
    data_case("words alone", "x.conll", "a\nb\n\n", ["line 1 has 1 columns, not 2"], kind="entities"),
    data_case(
        "no third column", "x.conll", "a O\n\n", ["has 2 columns, not 4"], "corpus.columns={tags: 3}", kind="entities"
    ),
    data_case(
        "named column of words",
        "x.conll",
        "a O\n",
        ["'ner' is not a column of", "columns: tokens, tags"],
        "corpus.columns={tags: ner}",
        kind="entities",
    ),
    data_case("a tag that is none", "x.conll", "a X-\n\n", ["tag 'X-' is not O, B-, I-"], kind="entities"),
    data_case("labels that are fractions", "x.jsonl", jsonl({"text": "a", "label": 0.5}), ["label is float '0.5'"]),
    data_case("another format", "x.csv", ROWS, ["x.csv is not readable as Parquet"], "corpus.format=parquet"),
    data_case("UTF-16", "x.csv", "text,label\na,b\n".encode("utf-16"), ["x.csv is not UTF-8", "iconv"]),
    data_case("binary", "x.jsonl", bytes(range(256)) * 4, ["x.jsonl is not UTF-8 text"]),
]


SPLITS = [
    Case("too few classes", ["tasks.ways=3"], ["tasks.ways", "3 ways", "train split has 2 classes", "lower tasks.ways"]),
    Case("too few examples", ["tasks.shots=6"], ["tasks.ways", "at least 7 examples", "has 6", "tasks.shots"]),
    Case("too few in a range", ["tasks.shots=[1, 9]"], ["tasks.ways", "at least 10 examples"]),
    Case("too few to measure", ["evaluate.shots=[1, 6]"], ["tasks.ways", "test split", "at least 7 examples"]),
    Case("too few in one task", ["tasks.classes_from=task", "tasks.ways=3", "corpus.columns={task: domain}"],
         ["tasks.ways", "within one task", "classes_from"]),
    Case("classes of an unknown task", ["tasks.classes_from=task"], ["tasks.classes_from", "corpus.columns"]),
    Case("split of an unknown task", ["tasks.split.of=task"], ["tasks.split.of", "corpus.columns"]),
    Case("no split", ["tasks.split={}"], ["tasks.split", "nothing says which rows train"]),
    Case("split column missing", ["tasks.split={column: folds, train: a}"], ["tasks.split.column", "did you mean 'fold'"]),
    Case("split value that is not there", ["tasks.split={column: fold, train: train, test: tst}"],
         ["tasks.split.test", "'fold' never holds 'tst'", "dev, train"]),
    Case("number for a column", ["tasks.split={column: fold, train: 3}"], ["tasks.split.train", "not a number (3)"]),
    Case("value without a column", ["tasks.split={train: dev}"], ["tasks.split.train", "without `column`", "'dev'"]),
    Case("no class to train", ["tasks.split.train=0"], ["tasks.split.train", "at least 1"]),
    Case("more classes than there are", ["tasks.split.test=5"], ["tasks.split.test", "5 classes", "2 left"]),
    Case("class listed twice", ["tasks.split={train: [delay, pets], test: [pets]}"], ["'pets' is listed twice"]),
    Case("class that is not there", ["tasks.split={test: [pet]}"], ["tasks.split.test", "'pet'", "did you mean 'pets'"]),
    Case("no class to validate", ["tasks.split={test: 2}"], ["validation split", "validation.every to 0"]),
    Case("no class to test", ["tasks.split={validation: 2}"], ["no row belongs to the test split"]),
    Case("too few types", ["tasks.ways=5"], ["tasks.ways", "5 ways", "train split has 2 classes"], kind="entities"),
    Case("too few mentions", ["tasks.shots=9"], ["tasks.shots", "could not be filled", "lower"], kind="entities"),
]  # fmt: skip


@pytest.mark.parametrize("case", [*CORPORA, *SPLITS], ids=lambda case: case.name)
def test_a_mistake_in_data_is_one_message(case, tmp_path, tiny_tokenizer_folder, monkeypatch, capsys):
    assert_told(case, tmp_path, tiny_tokenizer_folder, monkeypatch, capsys)
