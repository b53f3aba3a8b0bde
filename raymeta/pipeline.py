"""The stages that a run names, in order; those that are done are not done again."""

from typing import Any

from raymeta.cluster import connect
from raymeta.config import Run
from raymeta.stages.evaluate import evaluate
from raymeta.stages.finetune import finetune, targets
from raymeta.stages.metatrain import finished, metatrain
from raymeta.stages.pretrain import pretrain


def run_all(run: Run) -> dict[str, Any]:
    """Pre-trains where the run says so, meta-trains, fine-tunes where it says so, and evaluates, from the first unfinished
    stage on; gives the evaluation."""
    evaluation = run_to(run, "evaluate")
    assert evaluation is not None
    return evaluation


def run_to(run: Run, last: str, until: int | None = None) -> dict[str, Any] | None:
    """As `run_all`, but ends after the stage `last`; gives the evaluation, if that is the last.

    until: the outer step at which meta-training, the stage `last`, pauses.
    """
    if run.pretrain:
        print(pretrain(run).text())
    if last == "pretrain":
        return None
    if last != "metatrain" and run.finetune and finished(run) is None:
        connect(run.cluster, run.root)
        targets(run, not run.cluster.in_process, _silent)  # what is wrong with them is said before anything is trained
    result = metatrain(run, until)
    if last == "metatrain":
        return None
    for tuned in finetune(run) if run.finetune else ():
        print(f"\n{tuned.text()}\nwritten to {tuned.folder}")
    return evaluate(run, result.best) if last == "evaluate" else None


def _silent(line: str) -> None:
    """For what the stage itself will say."""
