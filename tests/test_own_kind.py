"""The README's kind of task of a user's own runs as it stands there."""

import json
import re
from pathlib import Path

import pytest

from raymeta.config import Run
from raymeta.learner import Learner
from raymeta.stages.metatrain import finished
from tests.mistakes import command
from tests.small import as_jsonl

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
FIRST = (
    "please play music",
    "the bank is in the city",
    "show me the table",
    "we have a book",
    "find the room today",
    "stop it now",
)


def of_the_readme(name: str) -> str:
    """The README's file of this name."""
    return next(
        block for block in re.findall(r"```\w+\n(.*?)```", README, re.DOTALL) if block.startswith(f"# {name}\n")
    )


@pytest.fixture
def own(tmp_path, monkeypatch):
    """A folder with the README's files and rows of six classes, where raymeta is started."""
    for name in ("pairs.py", "pairs.yaml"):
        (tmp_path / name).write_text(of_the_readme(name), encoding="utf-8")
    rows = [
        {"first": FIRST[(i + c) % 6], "second": " ".join([FIRST[i % 6], *["now"] * c]), "label": f"class {c}"}
        for c in range(6) for i in range(9)
    ]  # fmt: skip
    (tmp_path / "pairs.jsonl").write_bytes(as_jsonl([*rows, {"first": "a", "second": " ", "label": "class 1"}]))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path


def test_a_kind_in_a_file_outside_the_package_runs_from_yaml(own, tiny_tokenizer_folder, monkeypatch, capsys):
    quick = [
        "outer.steps=2",
        "validation.every=2",
        "validation.episodes=2",
        "evaluate.episodes=3",
        "cluster=local-debug",
    ]
    overrides = [f"model.name={tiny_tokenizer_folder}", *quick]
    status, out, message = command(["check", "pairs.yaml", *overrides], monkeypatch, capsys)
    assert (status, message) == (0, "")
    assert "kind: pairs:Pairs" in out
    status, out, message = command(["run", "pairs.yaml", *overrides], monkeypatch, capsys)
    assert (status, message) == (0, "")
    assert "1 bad rows were set aside (1 x text is empty)" in out
    assert re.search(r"meta-trained +\d+\.\d ± ", out)
    run = Run.load("pairs.yaml", *overrides)
    folder = finished(run).folder
    assert json.loads((folder / "evaluation.json").read_text())["ways"] == 2
    adapted = Learner.from_pretrained(folder).adapt(["a", "in"], ["the bank", "music"], ["yes", "no"])
    assert set(adapted.predict(["a"], ["the bank"])) <= {"yes", "no"}
