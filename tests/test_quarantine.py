"""A few bad rows are set aside: counted, named with their file, row and reason, and no others are touched."""

import json
from pathlib import Path

import pytest

from tests.mistakes import command, run_file, told
from tests.small import FORMATS, INTENTS, SENTENCES, as_conll, as_jsonl, as_parquet

BAD_TEXT = {**INTENTS[0], "text": " "}
NO_LABEL = {**INTENTS[0], "label": ""}
FIRST_ROW = {"parquet": 0, "jsonl": 1, "json": 1, "csv": 2, "tsv": 2}


def checked(
    folder: Path, model: str, file: str, content: bytes, monkeypatch, capsys, kind: str = "intents", share: float = 0.5
) -> tuple[str, list[dict[str, object]], dict[str, object]]:
    """What `raymeta check` prints of a corpus in one file, its quarantine.jsonl, and its index.json."""
    (folder / file).write_bytes(content)
    path = run_file(folder, model, kind)
    arguments = ["check", str(path), f"corpus.path={folder / file}", f"corpus.bad_rows={share}"]
    status, out, message = command(arguments, monkeypatch, capsys)
    assert status == 0, message
    prepared = next((folder / "results" / "prepared").iterdir())
    lines = (prepared / "quarantine.jsonl").read_text(encoding="utf-8").splitlines()
    return (
        out,
        [json.loads(line) for line in lines],
        json.loads((prepared / "index.json").read_text()),
    )


@pytest.mark.parametrize("name", FORMATS)
def test_bad_rows_are_set_aside_counted_and_named(name, tmp_path, tiny_tokenizer_folder, monkeypatch, capsys):
    rows = [*INTENTS[:10], BAD_TEXT, *INTENTS[10:], NO_LABEL]
    out, quarantine, index = checked(
        tmp_path, tiny_tokenizer_folder, name, FORMATS[name](rows), monkeypatch, capsys, share=0.06
    )
    first = FIRST_ROW[name.removesuffix(".gz").rsplit(".", 1)[1]]
    assert quarantine == [
        {"file": str(tmp_path / name), "row": 10 + first, "reason": "text is empty"},
        {"file": str(tmp_path / name), "row": 37 + first, "reason": "label is empty"},
    ]
    assert index["set_aside"] == 2
    assert index["rows"] == 36
    assert "2 bad rows were set aside (1 x text is empty, 1 x label is empty)" in out
    assert str(next((tmp_path / "results" / "prepared").iterdir()) / "quarantine.jsonl") in out


def test_more_than_the_allowed_share_is_refused(tmp_path, tiny_tokenizer_folder, monkeypatch, capsys):
    (tmp_path / "rows.jsonl").write_bytes(as_jsonl([*INTENTS, BAD_TEXT, BAD_TEXT]))
    path = run_file(tmp_path, tiny_tokenizer_folder)
    status, message = told(["check", str(path), f"corpus.path={tmp_path / 'rows.jsonl'}"], monkeypatch, capsys)
    assert status == 2
    assert "2 of 38 rows cannot be used, more than the share 0.05" in message
    assert "2 x text is empty" in message
    assert f"{tmp_path / 'rows.jsonl'} row 37" in message


def test_broken_lines_of_json_are_set_aside(tmp_path, tiny_tokenizer_folder, monkeypatch, capsys):
    good = as_jsonl(INTENTS)
    bad = b'{"text": "caf\xe9", "label": "x"}\n{"text": \n[1, 2]\n{"text": "no label"}\n' + b"[" * 100_000 + b"\n"
    _, quarantine, index = checked(
        tmp_path, tiny_tokenizer_folder, "rows.jsonl", good + bad, monkeypatch, capsys, share=0.2
    )
    reasons = [str(line["reason"]) for line in quarantine]
    assert [line["row"] for line in quarantine] == [37, 38, 39, 40, 41]
    assert reasons[0] == "text is not UTF-8"
    assert reasons[1].startswith("not JSON: ")
    assert reasons[2] == "a JSON list, not an object"
    assert reasons[3] == "label is missing, not a string or a whole number"
    assert reasons[4].startswith("not JSON: ")
    assert index["rows"] == 36


def test_short_long_and_broken_lines_of_csv(tmp_path, tiny_tokenizer_folder, monkeypatch, capsys):
    good = FORMATS["rows.csv"](INTENTS)
    bad = b'short\nlong,pets,y,z,more\ncaf\xe9,x,y,z\n"shut" too soon,x,y,z\n'
    _, quarantine, index = checked(tmp_path, tiny_tokenizer_folder, "rows.csv", good + bad, monkeypatch, capsys)
    assert [(line["row"], str(line["reason"])[:8]) for line in quarantine] == [
        (38, "label is"),
        (40, "text is "),
        (41, "not CSV:"),
    ]
    assert index["rows"] + index["in_no_split"] == 37


def test_bad_sentences_of_conll(tmp_path, tiny_tokenizer_folder, monkeypatch, capsys):
    good = as_conll(SENTENCES)
    bad = b"\nalone\nEU B-org\n\ncaf\xe9 O\n\nEU X-\n"
    _, quarantine, _ = checked(
        tmp_path, tiny_tokenizer_folder, "rows.conll", good + bad, monkeypatch, capsys, kind="entities"
    )
    lines = good.count(b"\n")
    assert [(line["row"], line["reason"]) for line in quarantine] == [
        (lines + 2, f"line {lines + 2} has 1 columns, not 2"),
        (lines + 5, "tokens is not UTF-8"),
        (lines + 7, "tag 'X-' is not O, B-, I-, E- or S- and a type"),
    ]


@pytest.mark.parametrize("write", [as_parquet, as_jsonl])
def test_tags_of_another_length_than_the_tokens(write, tmp_path, tiny_tokenizer_folder, monkeypatch, capsys):
    rows = [{"tokens": w, "tags": t} for w, t in SENTENCES]
    rows.insert(3, {"tokens": ["a", "b"], "tags": ["O"]})
    name = "rows.parquet" if write is as_parquet else "rows.jsonl"
    _, quarantine, _ = checked(
        tmp_path, tiny_tokenizer_folder, name, write(rows), monkeypatch, capsys, kind="entities", share=0.05
    )
    assert [(line["row"], line["reason"]) for line in quarantine] == [
        (3 if write is as_parquet else 4, "2 tokens but 1 tags")
    ]


def test_bad_rows_of_several_files_are_named_by_their_file(tmp_path, tiny_tokenizer_folder, monkeypatch, capsys):
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "a.jsonl").write_bytes(as_jsonl([BAD_TEXT, *INTENTS[:20]]))
    (folder / "b.csv").write_bytes(FORMATS["rows.csv"]([*INTENTS[20:], BAD_TEXT]))
    path = run_file(tmp_path, tiny_tokenizer_folder)
    command(["check", str(path), f"corpus.path={folder}", "corpus.bad_rows=0.1"], monkeypatch, capsys)
    file = next((tmp_path / "results" / "prepared").iterdir()) / "quarantine.jsonl"
    found = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [(Path(str(f["file"])).name, f["row"]) for f in found] == [("a.jsonl", 1), ("b.csv", 18)]
