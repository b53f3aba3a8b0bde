"""What a sweep judges its runs by: a metric of one of their stages, read from what the stage writes."""

from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Self

from raymeta.config import Run
from raymeta.errors import UserError, did_you_mean
from raymeta.metrics import Estimate
from raymeta.track import rows

_RECENT = 20


@dataclass(frozen=True)
class Reading:
    """What a run has come to at a step of a stage; `ci95` is None where the value is no mean over episodes."""

    step: int
    value: float
    ci95: float | None = None


@dataclass(frozen=True)
class Objective:
    """`STAGE.validation.METRIC`: the best checkpoint's by the run's own measure; `STAGE.COLUMN`: the median of the newest
    20 rows of training; `evaluate.METRIC`: the meta-trained model's on held-out classes."""

    stage: str
    column: str
    of_validation: bool

    @classmethod
    def of(cls, text: str, run: Run) -> Self:
        """The objective that is written so, or, where nothing is written, the validation metric of the last stage that
        trains; raises UserError where the run has none such."""
        stages = stages_of(run)
        text = text or f"{stages[-2]}.validation.{run.metric}"
        stage, _, rest = text.partition(".")
        if stage not in stages:
            raise UserError(
                f"objective: {text!r} names no stage of the run{did_you_mean(stage, stages)} (stages: {', '.join(stages)})"
            )
        kind, _, column = rest.partition(".")
        if kind == "validation" and stage == "metatrain" and not run.validation.every:
            raise UserError(
                f"objective: {text} needs validation, and validation.every is 0; set it to some outer steps, or choose another objective"
            )
        if stage == "evaluate" or kind != "validation":
            kind, column = "", rest
        if not column:
            raise UserError(
                f"objective: {text!r} names no metric; write metatrain.validation.{run.metric}, metatrain.tasks_per_s or evaluate.{run.metric}"
            )
        return cls(stage, column, kind == "validation")

    def __str__(self) -> str:
        return ".".join([self.stage, *(["validation"] if self.of_validation else []), self.column])

    @property
    def along_the_way(self) -> bool:
        """Whether there is a value before the stage has ended."""
        return self.stage != "evaluate"

    @property
    def less_is_better(self) -> bool:
        """Whether its name says so: a loss, a perplexity, a duration."""
        name = self.column.rpartition("/")[2]
        return name.endswith(("loss", "perplexity", "_s")) and not name.endswith("per_s")

    def steps(self, run: Run) -> int:
        """Steps of its stage."""
        return run.outer.steps

    def readings(self, run: Run) -> list[Reading]:
        """What the run came to at each step so far; raises UserError where its rows have no such column."""
        found = rows(metrics_file(run, self.stage))
        if self.of_validation:
            found = [row for row in found if row.get("split") == "validation"]
            self._check(found)
            best = [row for row in found if row["best"]]
            newest = [(row, next(b for b in reversed(best) if b["step"] <= row["step"])) for row in found]
            return [Reading(row["step"], b[self.column], b.get(f"{self.column}_ci95")) for row, b in newest]
        found = [row for row in found if "split" not in row]
        self._check(found)
        values = [row[self.column] for row in found]
        return [Reading(row["step"], median(values[max(0, i - _RECENT) : i])) for i, row in enumerate(found, start=1)]

    def measured(self, evaluation: dict[str, Any]) -> Reading:
        """The value in an evaluation; raises UserError where it has no such metric."""
        self._check([evaluation["metrics"]])
        found = evaluation["metrics"][self.column]
        return Reading(0, found["mean"], found["ci95"])

    def _check(self, found: list[dict[str, Any]]) -> None:
        if found and self.column not in found[-1]:
            known = [
                k
                for k, v in found[-1].items()
                if k not in ("step", "split", "best", "episodes") and not k.endswith("_ci95")
            ]
            raise UserError(
                f"objective: the rows of {self.stage} have no {self.column!r}{did_you_mean(self.column, known)} (there are: {', '.join(known)})"
            )

    def text(self, value: float | None, ci95: float | None = None) -> str:
        """A value for people: a score in percent, with its interval."""
        if value is None:
            return "-"
        if self.less_is_better or self.column.endswith("per_s"):
            return f"{value:.4g}"
        return f"{100 * value:.1f}" if ci95 is None else str(Estimate(value, ci95))


def stages_of(run: Run) -> list[str]:
    """The stages that the run names, in order."""
    return [*(["pretrain"] if run.pretrain else []), "metatrain", "evaluate"]


def metrics_file(run: Run, stage: str) -> Path:
    """Where a stage that trains writes a row a step."""
    return (run.pretrained if stage == "pretrain" else run.folder) / "metrics.jsonl"


@dataclass(frozen=True)
class Cost:
    """What a run's training took: seconds of its workers, tasks a second at the median step."""

    worker_s: float
    tasks_per_s: float | None


def cost(run: Run, stage: str) -> Cost:
    """The cost of the stages up to `stage`, by the rows that they wrote: steps, and validations on the way."""
    names = stages_of(run)
    worker_s, pace = 0.0, None
    for name in names[: names.index(stage) + 1]:
        if name == "evaluate":
            continue
        found = rows(metrics_file(run, name))
        worker_s += run.cluster.most * sum(row.get("step_s", 0.0) + row.get("validation_s", 0.0) for row in found)
        paces = [row["tasks_per_s"] for row in found if "tasks_per_s" in row]
        pace = median(paces) if name == "metatrain" and paces else pace
    return Cost(worker_s, pace)
