"""The stages that a run names, in order; those that are done are not done again."""

from typing import Any

from raymeta.config import Run
from raymeta.stages.evaluate import evaluate
from raymeta.stages.metatrain import metatrain
from raymeta.stages.pretrain import pretrain


def run_all(run: Run) -> dict[str, Any]:
    """Pre-trains where the run says so, meta-trains and evaluates, from the first unfinished stage on; gives the evaluation."""
    evaluation = run_to(run, "evaluate")
    assert evaluation is not None
    return evaluation


def run_to(run: Run, last: str) -> dict[str, Any] | None:
    """As `run_all`, but ends after the stage `last`; gives the evaluation, if that is the last."""
    if run.pretrain:
        pretrain(run)
    if last == "pretrain":
        return None
    result = metatrain(run)
    return evaluate(run, result.best) if last == "evaluate" else None
