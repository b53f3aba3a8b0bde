"""What a sweep judges its runs by: a metric of one of their stages, read from what the stage writes."""

from dataclasses import dataclass
from pathlib import Path
from statistics import mean, median
from typing import Any, Self

from raymeta.config import Run
from raymeta.errors import UserError, did_you_mean
from raymeta.metrics import Estimate
from raymeta.stages.finetune import finished as finetuned
from raymeta.track import rows

_RECENT = 20


@dataclass(frozen=True)
class Reading:
    """What a run has come to at a step of a stage; `ci95` is None where the value is no mean over episodes.

    now: what it is at this very step, where `value` is of the best checkpoint so far.
    """

    step: int
    value: float
    ci95: float | None = None
    now: float | None = None


@dataclass(frozen=True)
class Objective:
    """`STAGE.validation.METRIC`: the best checkpoint's by the run's own measure (pretrain: the newest); `STAGE.COLUMN`: the
    median of the newest 20 rows of training; `evaluate.METRIC`: the meta-trained model's on held-out classes;
    `finetune.validation.METRIC`, `finetune.test.METRIC`: the mean over its target tasks."""

    stage: str
    column: str
    split: str = ""

    @classmethod
    def of(cls, text: str, run: Run) -> Self:
        """The objective that is written so, or, where nothing is written, the validation metric of the last stage that
        trains; raises UserError where the run has none such."""
        stages = stages_of(run)
        usual = {
            "metatrain": f"metatrain.validation.{run.metric}",
            "finetune": f"finetune.validation.{_target_metric(run)}",
            "evaluate": f"evaluate.{run.metric}",
            "pretrain": "pretrain.validation.loss",
        }
        text = text or usual[stages[-2]]
        stage, _, rest = text.partition(".")
        if stage not in stages:
            raise UserError(
                f"objective: {text!r} names no stage of the run{did_you_mean(stage, stages)} (stages: {', '.join(stages)})"
            )
        splits = {
            "pretrain": ["validation"],
            "metatrain": ["validation"],
            "finetune": ["validation", "test"],
            "evaluate": [],
        }
        split, _, column = rest.partition(".")
        if split not in splits[stage]:
            split, column = "", rest
        if not column or (stage == "finetune" and not split):
            raise UserError(f"objective: {text!r} names no metric of {stage}; write one like {usual[stage]}")
        every = {"metatrain": run.validation.every, "pretrain": run.pretrain.validation_every if run.pretrain else 0}
        if split and not every.get(stage, 1):
            raise UserError(
                f"objective: {text} needs validation on the way, and {'validation.every' if stage == 'metatrain' else 'pretrain.validation_every'} "
                "is 0; set it to some steps, or choose another objective"
            )
        return cls(stage, column, split)

    def __str__(self) -> str:
        return ".".join([self.stage, *([self.split] if self.split else []), self.column])

    @property
    def along_the_way(self) -> bool:
        """Whether there is a value before the stage has ended."""
        return self.stage in ("pretrain", "metatrain")

    @property
    def less_is_better(self) -> bool:
        """Whether its name says so: a loss, a perplexity, a duration."""
        name = self.column.rpartition("/")[2]
        return name.endswith(("loss", "perplexity", "_s")) and not name.endswith("per_s")

    def steps(self, run: Run) -> int:
        """Steps of its stage."""
        return run.pretrain.steps if run.pretrain and self.stage == "pretrain" else run.outer.steps

    def first_step(self, run: Run) -> int:
        """Steps until it is known for the first time."""
        every = run.pretrain.validation_every if run.pretrain and self.stage == "pretrain" else run.validation.every
        return max(1, min(self.steps(run), every or self.steps(run)))

    def readings(self, run: Run) -> list[Reading]:
        """What the run came to at each step so far; raises UserError where its rows have no such column."""
        found = rows(_metrics_file(run, self.stage))
        if self.split:
            found = [row for row in found if row.get("split") == "validation"]
            self._check(found)
            best = [row for row in found if row.get("best", True)]
            newest = [(row, next(b for b in reversed(best) if b["step"] <= row["step"])) for row in found]
            return [
                Reading(row["step"], b[self.column], b.get(f"{self.column}_ci95"), row[self.column])
                for row, b in newest
            ]
        found = [row for row in found if "split" not in row and row["step"]]
        self._check(found)
        values = [row[self.column] for row in found]
        return [Reading(row["step"], median(values[max(0, i - _RECENT) : i])) for i, row in enumerate(found, start=1)]

    def at_the_end(self, run: Run, evaluation: dict[str, Any] | None) -> Reading | None:
        """The value that a finished stage gives beside its rows, or None; raises UserError where it has no such metric."""
        if self.stage == "evaluate":
            assert evaluation is not None
            each = [evaluation["metrics"]]
        elif self.stage == "finetune":
            each = [result.found.get(self.split, {}) for result in finetuned(run) or []]
        else:
            return None
        self._check(each)
        found = [one[self.column] for one in each]
        return Reading(0, mean(f["mean"] for f in found), found[0]["ci95"] if len(found) == 1 else None)

    def _check(self, found: list[dict[str, Any]]) -> None:
        if found and self.column not in found[-1]:
            known = [
                k
                for k, v in found[-1].items()
                if k not in ("step", "split", "best", "episodes")
                and not k.endswith("_ci95")
                and not isinstance(v, list | str)
            ]
            raise UserError(
                f"objective: {self.stage}{f'.{self.split}' if self.split else ''} has no {self.column!r}{did_you_mean(self.column, known)} "
                f"(there are: {', '.join(known) or 'none'})"
            )

    @property
    def percent(self) -> bool:
        """Whether it is a score, which people read in percent."""
        return not self.less_is_better and not self.column.endswith("per_s")

    def text(self, value: float | None, ci95: float | None = None) -> str:
        """A value for people: a score in percent, with its interval."""
        if value is None:
            return "-"
        if not self.percent:
            return f"{value:.4g}"
        return f"{100 * value:.1f}" if ci95 is None else str(Estimate(value, ci95))


def stages_of(run: Run) -> list[str]:
    """The stages that the run names, in order."""
    there = {"pretrain": run.pretrain, "metatrain": True, "finetune": run.finetune, "evaluate": True}
    return [name for name, section in there.items() if section]


def _target_metric(run: Run) -> str:
    own = run.finetune.tasks if run.finetune else None
    return (own or run.parts[0].tasks).metric


def _metrics_file(run: Run, stage: str) -> Path:
    """Where pre-training or meta-training writes a row a step."""
    return (run.pretrained if stage == "pretrain" else run.folder) / "metrics.jsonl"


@dataclass(frozen=True)
class Cost:
    """What a run's training took: seconds of its workers, tasks a second at the median step of meta-training."""

    worker_s: float
    tasks_per_s: float | None


def cost(run: Run, stage: str) -> Cost:
    """The cost of the stages up to `stage`, by the rows that they wrote: steps, and validations on the way."""
    names = stages_of(run)
    files: dict[str, list[Path]] = {n: [_metrics_file(run, n)] for n in ("pretrain", "metatrain") if n in names}
    if stage in ("finetune", "evaluate") and run.finetune:
        files["finetune"] = sorted(run.folder.glob("finetune-*/metrics.jsonl"))
    through = names[: names.index(stage) + 1]
    found = {name: [row for file in there for row in rows(file)] for name, there in files.items() if name in through}
    spent = sum(row.get("step_s", 0.0) + row.get("validation_s", 0.0) for each in found.values() for row in each)
    paces = [row["tasks_per_s"] for row in found.get("metatrain", []) if "tasks_per_s" in row]
    return Cost(run.cluster.most * spent, median(paces) if paces else None)
