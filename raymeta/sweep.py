"""A sweep: what is searched for a run, over which space and clusters, how, and by what it is judged."""

import hashlib
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError

from raymeta import population, yaml12
from raymeta.cluster import Profile
from raymeta.component import Section
from raymeta.config import Run
from raymeta.errors import UserError, told
from raymeta.objective import Objective
from raymeta.searchers import Point
from raymeta.space import Distribution, Space


class Sweep(Section):
    """Everything that a sweep needs to know."""

    run: Run
    """What the space's settings are put into."""
    space: Space
    """What is searched."""
    space_name: str
    """What the space is called."""
    trials: int = Field(12, ge=1)
    """Points of the space that are tried; with several clusters, each on every one."""
    searcher: Literal["random", "grid", "optuna"] = "random"
    """How points are chosen: by chance, each in turn, or near those that came out well (TPE)."""
    scheduler: Literal["none", "asha", "pbt"] = "none"
    """Whether runs that fall behind are stopped early (`asha`, Li et al. 2018): of those that reach a rung, the better third
    goes on; rungs are at `grace_steps`, three times that, nine times ... Or take over from better ones, whose settings they change
    a little (`pbt`, Jaderberg et al. 2017), every `interval_steps`."""
    grace_steps: int | None = Field(None, ge=1)
    """Steps that every run may take; absent: up to its first validation."""
    interval_steps: int | None = Field(None, ge=1)
    """pbt: steps between two comparisons of the runs; absent: those between two validations."""
    objective: str = ""
    """What decides; absent: the validation metric of the last stage that trains."""
    mode: Literal["max", "min"] | None = None
    """Whether more is better; absent: less is for what ends in loss, perplexity or a duration, else more."""
    clusters: tuple[str, ...] = ()
    """Profiles to run on, side by side; absent: the run's own."""
    max_concurrent: int | None = Field(None, ge=1)
    """Most runs at once; absent: as many as the cluster has room for."""
    budget_s: float | None = Field(None, gt=0)
    """Seconds after which nothing new is awaited; absent: none."""

    @classmethod
    def of(cls, values: dict[str, Any]) -> Self:
        """The sweep with these settings; raises UserError that names every setting that is wrong."""
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise UserError("\n".join(told(error))) from error

    @property
    def judge(self) -> Objective:
        """The objective, read."""
        return Objective.of(self.objective, self.run)

    @property
    def minimize(self) -> bool:
        """Whether less is better."""
        return self.judge.less_is_better if self.mode is None else self.mode == "min"

    @property
    def folder(self) -> Path:
        """The sweep's own folder: of the same name for everything but how long and how wide it is searched."""
        values = self.model_dump(
            mode="json",
            include={
                "space": True,
                "searcher": True,
                "scheduler": True,
                "grace_steps": True,
                "mode": True,
                "clusters": True,
            },
        )
        run = self.run.model_dump(mode="json", exclude={"storage", "description", "save"})
        if self.scheduler == "pbt":  # whose runs depend on each other
            values |= {"trials": self.trials, "interval_steps": self.interval}
        whole = {**values, "objective": str(self.judge), "run": run}
        name = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()[:8]
        return self.run.root / "sweeps" / f"{self.run.name}-{Path(self.space_name).stem}-{name}"

    def yaml(self) -> str:
        """The sweep as text that `of` takes again, with what is left to choose by itself as it was chosen."""
        chosen = {"objective": str(self.judge), "mode": "min" if self.minimize else "max"}
        return yaml12.dump({**self.model_dump(mode="json"), **chosen})

    @property
    def interval(self) -> int:
        """pbt: steps between two comparisons."""
        return self.interval_steps or self.judge.first_step(self.run)

    def member(self, number: int, since: int, settings: Point) -> Run:
        """pbt: the run of a member of the population that began at the step `since`, with these settings."""
        return self.run.changed({"name": population.name_of(self.run, number, since), **settings})

    def run_of(self, point: Point, cluster: str) -> Run:
        """The run of a point on a cluster ('': as the run says), under a name that tells clusters apart."""
        where = {"cluster": cluster} if cluster else {}
        words = [cluster] if len(self.clusters) > 1 else []
        words += [f"{p.rpartition('.')[2]}{v}" for p, v in point.items() if p == "cluster" or p.startswith("cluster.")]
        suffix = "".join("-" + re.sub(r"[^A-Za-z0-9._]+", "-", word).strip("-") for word in words)
        return self.run.changed({"name": self.run.name + suffix, **where, **point})

    def check(self) -> dict[str, Distribution]:
        """The distributions to draw from; raises UserError for what would not work, before anything starts."""
        settings = self.space.of(self.run, self.space_name)
        if len(set(self.clusters)) < len(self.clusters):
            raise UserError(f"cluster: {', '.join(self.clusters)}: a cluster is named twice")
        searched = [p for p in settings if p == "cluster" or p.startswith("cluster.")]
        if self.clusters and "cluster" in searched:
            raise UserError(f"cluster: the space {self.space_name} searches the cluster itself; leave --cluster out")
        for name in self.clusters:
            self.run.changed({"cluster": name})
        if len({p.address for p in self.profiles(settings) if "cluster" in searched}) > 1:
            raise UserError(
                f"space {self.space_name}: its clusters have different addresses, and one search runs on one; name them with --cluster instead"
            )
        judge = self.judge
        if self.scheduler == "asha" and not judge.along_the_way:
            raise UserError(
                f"scheduler: asha stops runs by what they come to on the way, and {judge} is known at their end; use none, or another objective"
            )
        if self.scheduler == "pbt":
            if len(self.clusters) > 1:
                raise UserError(
                    "scheduler: pbt has one population, on one cluster; name one --cluster, or use another scheduler"
                )
            if judge.stage != "metatrain":
                raise UserError(
                    f"scheduler: pbt compares meta-training on its way, and the objective is {judge}; choose one of metatrain"
                )
            every = self.run.validation.every if judge.split else 1
            population.check(settings, self.run, self.trials, self.interval, every)
        return settings

    def profiles(self, settings: dict[str, Distribution]) -> Iterator[Profile]:
        """Every profile that a trial may have, a searched setting at each of its extremes."""
        for cluster in self.clusters or ("",):
            yield self.run_of({}, cluster).cluster
            for path, distribution in settings.items():
                if path == "cluster" or path.startswith("cluster."):
                    yield from (self.run_of({path: v}, cluster).cluster for v in distribution.extremes)
