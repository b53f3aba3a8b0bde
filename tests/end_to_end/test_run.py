"""`raymeta run`: all stages, on any profile."""

from typing import Any

import pytest

from raymeta.config import Run
from raymeta.pipeline import run_all
from raymeta.stages.evaluate import ROWS
from raymeta.stages.metatrain import Result
from tests.end_to_end.conftest import workers


def numbers(evaluation: dict[str, Any]) -> dict[str, float]:
    """Every mean and interval of an evaluation."""
    return {
        f"{row}.{name}.{of}": value
        for row in ROWS
        if row in evaluation
        for name, estimate in evaluation[row].items()
        for of, value in estimate.items()
    }


def test_two_workers_on_ray_measure_what_this_process_measures(
    settings: dict[str, Any], alone: Result, on_two: Result
) -> None:
    here = run_all(Run.of({**settings, "name": "alone"}))
    there = run_all(Run.of({**settings, "name": "on-two", "cluster": workers(2)}))
    assert here["episodes"] == there["episodes"] == 10
    assert any(0 < value < 1 for name, value in numbers(here).items() if name.endswith("mean"))
    # the parameters differ by float summation; a word on the brink between two types would show as 0.1 or more
    assert numbers(here) == pytest.approx(numbers(there), abs=1e-6)
    assert here["untrained"] == there["untrained"]
    assert here["prototype"] == there["prototype"]
