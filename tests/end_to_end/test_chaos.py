"""Three of chaos' runs: whatever process is killed, nothing is lost. `python -m tests.end_to_end.chaos` does twenty."""

import subprocess
import sys

import pytest

from tests.end_to_end.commands import ROOT


@pytest.mark.slow
def test_runs_that_lose_a_process_end_as_the_undisturbed_one_does() -> None:
    """In a process of its own, since a simulated cluster takes a process's Ray over."""
    victims = ("controller", "raylet", "data")
    words = ["--workers", "1", "--runs", str(len(victims)), "--seed", "1", "--victims", *victims]
    done = subprocess.run(
        [sys.executable, "-m", "tests.end_to_end.chaos", *words], cwd=ROOT, capture_output=True, text=True, timeout=1200
    )
    table = [line.split() for line in done.stdout.splitlines()]
    assert done.returncode == 0, done.stdout + done.stderr
    assert [row[1] for row in table if len(row) > 1 and row[1] in victims] == list(victims)
    assert "3 of 3 runs lost nothing; left behind: no process" in done.stdout
