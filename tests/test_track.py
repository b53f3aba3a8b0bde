"""metrics.jsonl goes on without a gap or a repeat, and the console says each thing once."""

import json
from pathlib import Path

import pytest

from raymeta.track import Follow, Track, rows, step_line, validation_line


def steps(path: Path) -> list[int]:
    return [row["step"] for row in rows(path)]


def train_row(step: int) -> dict[str, object]:
    return {
        "step": step,
        "query_loss": 0.5,
        "query_accuracy": 0.75,
        "grad_norm": 0.1,
        "tasks_per_s": 8.0,
        "step_s": 0.5,
    }


def test_a_resumed_run_goes_on_without_a_gap_or_a_repeat(tmp_path):
    path = tmp_path / "metrics.jsonl"
    first = Track(path)
    for step in range(1, 8):
        first.row(**train_row(step))
    first.row(step=5, split="validation", accuracy=0.5)
    again = Track(path, step=5)  # the newest checkpoint was of step 5
    assert steps(path) == [1, 2, 3, 4, 5, 5]
    for step in range(6, 10):
        again.row(**train_row(step))
    assert steps(path) == [1, 2, 3, 4, 5, 5, 6, 7, 8, 9]
    assert not path.with_suffix(".tmp").exists()


@pytest.mark.parametrize("rest", ['{"step": 4, "query', "\x00\x00", "[1]\n", "\n\n", '{"other": 1}\n'])
def test_half_a_row_of_a_process_that_was_ended_is_dropped(rest, tmp_path):
    path = tmp_path / "metrics.jsonl"
    track = Track(path)
    for step in (1, 2, 3):
        track.row(step=step)
    with path.open("a") as file:
        file.write(rest)
    Track(path, step=3).row(step=4)
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 2, 3, 4]


def test_bytes_that_are_no_text_are_dropped(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"step": 1}\n\xff\xfe\n')
    Track(path, step=1).row(step=2)
    assert steps(path) == [1, 2]


def test_a_run_that_starts_anew_drops_what_an_earlier_one_wrote(tmp_path):
    path = tmp_path / "metrics.jsonl"
    Track(path).row(step=1)
    Track(path, step=0).row(step=1, fresh=True)
    assert rows(path) == [{"step": 1, "fresh": True}]


def test_numbers_come_back_as_they_were(tmp_path):
    path = tmp_path / "metrics.jsonl"
    values = {"step": 1, "loss": 0.1 + 0.2, "rate": 3e-5, "tasks": 4}
    Track(path).row(**values)
    Track(path, step=1)
    assert rows(path) == [values]


def test_the_console_follows_the_file_and_says_nothing_twice(tmp_path):
    path = tmp_path / "metrics.jsonl"
    earlier = Track(path)
    for step in range(1, 9):
        earlier.row(**train_row(step))
    earlier.row(step=4, split="validation", accuracy=0.5, accuracy_ci95=0.1, episodes=10, best=True)
    said: list[str] = []
    with Follow(path, steps=10, metric="accuracy", say=said.append, every_s=0.0):
        track = Track(path, step=6)
        for step in range(7, 11):
            track.row(**train_row(step))
        track.row(step=10, split="validation", accuracy=0.6, accuracy_ci95=0.1, episodes=10, best=True)
    assert [line.split()[1] for line in said if line.startswith("step ")][-2:] == ["9/10", "10/10"]
    assert [line for line in said if line.startswith("validation")] == [
        "validation at step 10: accuracy 60.0 ± 10.0 % (10 episodes)  (best so far)"
    ]
    assert len(said) == len(set(said))
    assert not any(line.startswith(("step 1/", "step 2/", "step 5/")) for line in said)


def test_a_step_is_one_line():
    line = step_line(train_row(120), 2000, eta_s=240.0)
    assert line == "step 120/2000  query loss 0.500  accuracy 0.750  grad 0.10  8.0 tasks/s  eta 4 min"
    assert "\n" not in line
    row = {"step": 9, "accuracy": 0.5, "accuracy_ci95": 0.01, "episodes": 100}
    assert validation_line(row, "accuracy") == "validation at step 9: accuracy 50.0 ± 1.0 % (100 episodes)"


def test_a_task_that_was_left_out_is_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    said: list[str] = []
    with Follow(path, steps=1, metric="accuracy", say=said.append):
        Track(path).row(**train_row(1), left_out=[17])
    assert any("task 17" in line and "not finite" in line for line in said)
