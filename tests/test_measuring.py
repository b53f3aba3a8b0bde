"""An evaluation that is stopped goes on with the rows that are left, and says how far it is."""

from pathlib import Path
from typing import Any

import pytest

from raymeta.stages import evaluate as stage
from raymeta.stages.evaluate import SO_FAR, evaluate
from raymeta.stages.measuring import Measuring, Scores
from raymeta.stages.metatrain import metatrain
from raymeta.workers import Workers
from tests.test_finetune import run_of


def test_rows_are_measured_once_for_what_is_asked(tmp_path: Path) -> None:
    path, calls = tmp_path / SO_FAR, []

    def of(key: str) -> Any:
        def measure(tick: Any) -> Scores:
            calls.append(key)
            tick()
            return [{"accuracy": 1 / 3}]

        return measure

    first = Measuring(path, {"episodes": 5}, Workers())
    assert first.row(("a",), 5, of("a")) == [{"accuracy": 1 / 3}]
    again = Measuring(path, {"episodes": 5}, Workers())
    assert again.row(("a",), 5, of("a")) == [{"accuracy": 1 / 3}]
    again.row(("b",), 5, of("b"))
    assert calls == ["a", "b"]
    Measuring(path, {"episodes": 6}, Workers()).row(("a",), 6, of("a"))
    assert calls == ["a", "b", "a"]


def test_a_stopped_evaluation_goes_on_with_the_next_row(
    tmp_path: Path, tiny_tokenizer_folder: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = run_of(tmp_path, tiny_tokenizer_folder, {}, evaluate={"episodes": 6, "shots": [1, 2]})
    start = metatrain(run).best
    unbroken = evaluate(run, start)
    (run.folder / "evaluation.json").unlink()
    measured: list[str] = []
    of_row = stage._row

    def row(name: str, *given: Any) -> Any:
        if len(measured) == 4:
            raise MemoryError
        measured.append(name)
        return of_row(name, *given)

    monkeypatch.setattr(stage, "_row", row)
    with pytest.raises(Exception):  # noqa: B017, PT011 - whatever a worker dies of
        evaluate(run, start)
    assert (run.folder / SO_FAR).is_file()
    assert not (run.folder / "evaluation.json").exists()
    measured.clear()
    capsys.readouterr()
    assert evaluate(run, start) == unbroken
    assert measured == ["untrained", "prototype"]
    assert "episode 36/36  2-shot, frozen nearest prototype" in capsys.readouterr().out
    assert not (run.folder / SO_FAR).exists()
