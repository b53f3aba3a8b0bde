"""The stages that a run names, in order; those that are done are not done again."""

from typing import Any

from raymeta.config import Run
from raymeta.stages.evaluate import evaluate
from raymeta.stages.metatrain import metatrain


def run_all(run: Run) -> dict[str, Any]:
    """Meta-trains and evaluates, resuming at the first unfinished stage; gives the evaluation."""
    result = metatrain(run)
    return evaluate(run, result.best)
