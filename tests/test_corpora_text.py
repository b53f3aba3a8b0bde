"""Plain text is read document by document, and each is known by the line it begins on."""

import gzip

import pytest

from raymeta.corpora import Corpus
from raymeta.corpora.text import Text
from raymeta.errors import UserError
from tests.small import read

POEM = "The sea is calm.\r\nThe tide is full.\r\n\r\n\r\nListen!\r\n  \r\nBegin, and cease,\r\nand then again begin"
BLOCKS = [
    (1, "The sea is calm.\r\nThe tide is full."),
    (5, "Listen!"),
    (7, "Begin, and cease,\r\nand then again begin"),
]
LINES = [
    (1, "The sea is calm."),
    (2, "The tide is full."),
    (5, "Listen!"),
    (7, "Begin, and cease,"),
    (8, "and then again begin"),
]
DOCUMENTS = {"block": BLOCKS, "line": LINES, "file": [(1, POEM)]}


def found(corpus: Corpus) -> list[tuple[int, str]]:
    return [(row.number, row.values["text"]) for row in read(corpus, ("text",))]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_document_is_a_block_of_lines_a_line_or_a_file(document, tmp_path):
    (tmp_path / "poem.txt").write_bytes(POEM.encode())
    (tmp_path / "poem.txt.gz").write_bytes(gzip.compress(POEM.encode()))
    for name in ("poem.txt", "poem.txt.gz"):
        assert found(Text(path=str(tmp_path / name), document=document)) == DOCUMENTS[document]


def test_a_folder_is_all_its_files_and_a_list_is_read_in_its_order(tmp_path):
    for name, text in (("b.txt", "two\n"), ("a.md", "one\n"), (".hidden", "no\n")):
        (tmp_path / name).write_text(text)
    assert found(Text(path=str(tmp_path))) == [(1, "one"), (1, "two")]
    listed = Corpus.model_validate({"kind": "text", "path": [str(tmp_path / "b.txt"), str(tmp_path / "a.md")]})
    assert found(listed) == [(1, "two"), (1, "one")]


def test_the_file_can_be_the_task(tmp_path):
    (tmp_path / "a.txt").write_text("one\n")
    rows = read(Text(path=str(tmp_path), columns={"task": "file"}), ("text",))
    assert [row.values for row in rows] == [{"text": "one", "task": str(tmp_path / "a.txt")}]


def test_text_that_is_not_utf_8_is_a_fault_of_its_document(tmp_path):
    (tmp_path / "a.txt").write_bytes("good\n\ncaf\xe9\n\ngood too".encode("latin-1"))
    faults = [row.fault for row in read(Text(path=str(tmp_path)), ("text",))]
    assert faults == [None, "text is not UTF-8", None]


@pytest.mark.parametrize(
    ("content", "says"), [(None, "there is no file or folder"), (b"", "is empty"), (b"a\x00b", "is not UTF-8 text")],
    ids=["missing", "empty", "binary"],
)  # fmt: skip
def test_a_file_that_is_no_text_is_one_message(content, says, tmp_path):
    if content is not None:
        (tmp_path / "a.txt").write_bytes(content)
    with pytest.raises(UserError, match=says):
        Text(path=str(tmp_path / "a.txt")).check(("text",), None)
