"""Search spaces: which settings of a run a sweep tries, and from which distribution each value comes."""

import math
from pathlib import Path
from typing import Any, Literal, Self, get_args

import numpy as np
from pydantic import ValidationError, model_validator

from raymeta import yaml12
from raymeta.cluster import shipped
from raymeta.component import Section
from raymeta.config import Run
from raymeta.errors import UserError, did_you_mean, told

Kind = Literal["loguniform", "uniform", "quniform", "randint", "choice", "grid"]
KINDS: tuple[str, ...] = get_args(Kind)
_BOUNDS = {"loguniform": "[low, high]", "uniform": "[low, high]", "quniform": "[low, high, step]", "randint": "[low, high]"}  # fmt: skip
_DIGITS = 4


class Distribution(Section):
    """Where a setting's value comes from: one of Ray Tune's distributions, written `{loguniform: [1e-4, 1e-1]}`."""

    kind: Kind
    """`loguniform`, `uniform`: [low, high]; `quniform`: [low, high, step]; `randint`: [low, high], high left out;
    `choice`: any of a list; `grid`: each of a list, in turn."""
    values: tuple[Any, ...]
    """What the kind is given."""

    @model_validator(mode="before")
    @classmethod
    def _written_short(cls, value: Any) -> Any:
        if isinstance(value, dict) and set(value) == {"kind", "values"}:
            return value
        if not isinstance(value, dict) or len(value) != 1:
            raise ValueError(
                f"give one distribution, like {{loguniform: [1e-4, 1e-1]}}, not {value!r} (kinds: {', '.join(KINDS)})"
            )
        (kind, values), *_ = value.items()
        if kind not in KINDS:
            raise ValueError(f"no distribution {kind!r}{did_you_mean(kind, KINDS)} (kinds: {', '.join(KINDS)})")
        if not isinstance(values, list | tuple):
            raise ValueError(f"{kind} wants a list ({_BOUNDS.get(kind, 'of values')}), not {values!r}")
        return {"kind": kind, "values": tuple(values)}

    @model_validator(mode="after")
    def _makes_sense(self) -> Self:
        wrong = f"{self.kind} of {list(self.values)}"
        if self.listed:
            if not self.values:
                raise ValueError(f"{wrong}: give at least one value")
            if any(v in self.values[:i] for i, v in enumerate(self.values)):
                raise ValueError(f"{wrong}: a value is given twice")
            return self
        numbers = [
            v for v in self.values if isinstance(v, int | float) and not isinstance(v, bool) and math.isfinite(v)
        ]
        count = 3 if self.kind == "quniform" else 2
        if len(numbers) != count or len(self.values) != count:
            raise ValueError(f"{wrong}: give {count} numbers, {_BOUNDS[self.kind]}")
        if self.kind == "randint" and not all(isinstance(v, int) for v in numbers):
            raise ValueError(f"{wrong}: give whole numbers, {_BOUNDS[self.kind]}")
        low, high, *step = numbers
        if low >= high:
            raise ValueError(f"{wrong}: the low end must be less than the high end")
        if self.kind == "loguniform" and low <= 0:
            raise ValueError(f"{wrong}: the low end must be greater than 0; use uniform, or a choice, where 0 is meant")
        if step and not 0 < step[0] <= high - low:
            raise ValueError(f"{wrong}: the step must be greater than 0 and at most {high - low:g}")
        return self

    @property
    def listed(self) -> bool:
        """Whether the values are those that may come, and not bounds."""
        return self.kind in ("choice", "grid")

    @property
    def options(self) -> list[Any] | None:
        """Every value that may come, where they can be counted; else None."""
        if self.listed:
            return list(self.values)
        return list(range(*self.values)) if self.kind == "randint" else None

    @property
    def extremes(self) -> list[Any]:
        """Values among which a wrong one would be: every listed one, or both ends."""
        if self.listed:
            return list(self.values)
        low, high = self.values[:2]
        return [low, high - 1 if self.kind == "randint" else high]

    def domain(self) -> Any:
        """The distribution as Ray Tune's; for a list, of the places in it, since its values may be mappings."""
        from ray import tune

        if self.listed:
            return tune.choice(list(range(len(self.values))))
        return getattr(tune, self.kind)(*self.values)

    def value(self, drawn: Any) -> Any:
        """The setting's value for what `domain` gave: numbers of few digits, so that a run can be written down."""
        if self.listed:
            return self.values[int(drawn)]
        if self.kind == "randint":
            return int(drawn)
        low, high = self.values[:2]
        digits = 12 if self.kind == "quniform" else _DIGITS  # quniform's are few already, but for float's dust
        return min(max(float(f"{float(drawn):.{digits}g}"), float(low)), float(high))

    def drawn(self, value: Any) -> Any:
        """What `domain` would have given for `value`."""
        return self.values.index(value) if self.listed else value

    def draw(self, rng: np.random.Generator) -> Any:
        """A value by chance."""
        return self.value(self.domain().sample(random_state=rng))


class Space(Section):
    """What a sweep searches."""

    description: str = ""
    """One line for `raymeta ls spaces`."""
    algorithms: tuple[str, ...] | None = None
    """The kinds of algorithm whose runs it suits; absent: all."""
    settings: dict[str, Distribution]
    """The dotted name of a setting of the run -> where its values come from. A setting of a stage that the run leaves out
    is left out."""

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if not self.settings:
            raise ValueError("settings: name at least one setting to search")
        return self

    def of(self, run: Run, name: str) -> dict[str, Distribution]:
        """The settings to search in `run`, outer ones before those inside them; raises UserError where the space,
        called `name`, does not suit it: every value that may come is one that the run may have."""
        kind = run.algorithm.kind
        if self.algorithms is not None and kind not in self.algorithms:
            raise UserError(
                f"space {name}: it is for the algorithms {', '.join(self.algorithms)}, and the run's is {kind}; choose another space"
            )
        found = {
            path: distribution
            for path, distribution in sorted(self.settings.items(), key=lambda pair: pair[0].count("."))
            if not left_out(run, path)
        }
        if not found:
            raise UserError(
                f"space {name}: the run leaves out {', '.join(sorted({p.split('.')[0] for p in self.settings}))}, and nothing else is searched"
            )
        for path, distribution in found.items():
            for value in distribution.extremes:
                try:
                    run.changed({path: value})
                except UserError as error:
                    raise UserError(f"space {name}: {error}") from error
        return found


def left_out(run: Run, path: str) -> bool:
    """Whether `path` is a setting of a stage that the run does not have."""
    section = path.split(".")[0]
    return "." in path and section in Run.model_fields and getattr(run, section) is None


def spaces() -> dict[str, Path]:
    """The search spaces there are, by name."""
    found: dict[str, Path] = {}
    for folder in shipped("tune_spaces"):
        for path in sorted(folder.glob("*.yaml")):
            found.setdefault(path.stem, path)
    return found


def load(where: str) -> Space:
    """The space of a name or in a file; raises UserError."""
    known = spaces()
    path = known.get(where) or Path(where).expanduser()
    if not path.is_file():
        raise UserError(
            f"space: no space {where!r}{did_you_mean(where, known)} (spaces: {', '.join(known)}; or a path to a YAML file)"
        )
    try:
        return Space.model_validate(yaml12.read(path, "space"))
    except ValidationError as error:
        raise UserError("\n".join(f"space {where}: {line}" for line in told(error))) from error


def shown(value: Any) -> str:
    """A value for a table's cell: a component by its kind and what it sets."""
    if isinstance(value, dict):
        kind = str(value.get("kind", ""))
        rest = ", ".join(f"{k}={shown(v)}" for k, v in value.items() if k != "kind")
        return f"{kind}({rest})" if rest else kind
    return f"{value:g}" if isinstance(value, float) else str(value)
