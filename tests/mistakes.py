"""What the tests of bad input share: a mistake is a Case, and `told` is what the command line says to it."""

import json
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from raymeta.cli import main

DATA = Path(__file__).parent / "data"
ROWS = (DATA / "intents.jsonl").read_text(encoding="utf-8")
SPLITS = {
    "intents": "{of: class, train: 2, validation: 2, test: 2}",
    "entities": "{of: class, train: 2, validation: 1, test: 1}",
}
RUNS = {
    "intents": {
        "corpus": {"kind": "files", "path": str(DATA / "intents.jsonl")},
        "tasks": {
            "kind": "classification", "ways": 2, "shots": 1, "queries": 1,
            "split": {"of": "class", "train": 2, "validation": 2, "test": 2},
        },
    },
    "entities": {
        "corpus": {"kind": "files", "path": str(DATA / "entities.conll")},
        "tasks": {
            "kind": "entities", "ways": 2, "shots": 1, "queries": 1,
            "split": {"of": "class", "train": 2, "validation": 2},
        },
        "evaluate": {"split": "validation"},
    },
}  # fmt: skip
"""A good run of each task kind, but for its model and its storage."""


@dataclass(frozen=True)
class Case:
    """Overrides of a good run (`{here}`: the test's folder), the files they need, and what the message must say."""

    name: str
    overrides: list[str]
    says: list[str]
    files: dict[str, str | bytes] = field(default_factory=dict)
    kind: str = "intents"


def data_case(name: str, file: str, content: str | bytes, says: list[str], *more: str, kind: str = "intents") -> Case:
    """A case whose corpus is one file."""
    return Case(name, [f"corpus.path={{here}}/{file}", *more], says, {file: content}, kind)


def jsonl(*rows: object) -> str:
    """Rows as JSON lines."""
    return "".join(json.dumps(row) + "\n" for row in rows)


def write(folder: Path, files: dict[str, str | bytes]) -> None:
    """Writes each file under `folder`."""
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content.encode() if isinstance(content, str) else content)


def run_file(folder: Path, model: str, kind: str = "intents") -> Path:
    """A YAML file of a good run on `model`, which keeps its results in `folder`."""
    path = folder / "run.yaml"
    values = {"model": {"name": model}, "storage": str(folder / "results"), "cluster": "local-debug", **RUNS[kind]}
    path.write_text(yaml.safe_dump(values), encoding="utf-8")
    return path


def told(arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Exit status and standard error of `raymeta` with these arguments, in this process."""
    status, _, message = command(arguments, monkeypatch, capsys)
    return status, message


def command(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> tuple[int, str, str]:
    """Exit status, standard output and standard error of `raymeta` with these arguments, in this process."""
    monkeypatch.setattr("sys.argv", ["raymeta", *arguments])
    capsys.readouterr()
    status = 0
    try:
        main()
    except SystemExit as stop:
        status = int(stop.code or 0)
    said = capsys.readouterr()
    return status, said.out, said.err


def assert_told(
    case: Case, folder: Path, model: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> str:
    """Runs `raymeta check` on the case; gives its message, once it is known to be one."""
    write(folder, case.files)
    path = run_file(folder, model, case.kind)
    overrides = [o.replace("{here}", str(folder)) for o in case.overrides]
    status, message = told(["check", str(path), *overrides], monkeypatch, capsys)
    assert status == 2, message
    assert_is_a_message(message)
    for words in case.says:
        assert words in message
    return message


def assert_is_a_message(text: str) -> None:
    """One message of raymeta's own, without a traceback or a library's inner words."""
    assert text.startswith("raymeta: ")
    assert text.count("raymeta: ") == 1
    for word in (
        "Traceback",
        "pydantic",
        "validation error",
        "Input should be",
        "function-",
        "literal_error",
        "type=",
        "tuple[",
    ):
        assert word not in text
    assert text.count("\n") <= 3
    assert len(text) < 900
