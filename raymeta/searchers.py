"""Which settings a sweep tries next: point 0, 1, 2, ... of a space, no two of them alike."""

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import numpy as np

from raymeta.errors import UserError
from raymeta.space import Distribution

Point = dict[str, Any]
"""The dotted name of a setting -> its value."""
_ATTEMPTS = 100


class Searcher(ABC):
    """Gives the points of a space by number. `seed` and, for those that learn, what was told decide which they are."""

    def __init__(self, settings: Mapping[str, Distribution], seed: int, minimize: bool = False) -> None:
        self.settings, self.seed, self.minimize = dict(settings), seed, minimize
        self.points: list[Point] = []

    def known(self, point: Point, value: float | None = None) -> None:
        """Takes the next point as given, with what it came to if that is known: how a sweep goes on."""
        self.points.append(point)

    def point(self, number: int) -> Point | None:
        """Point `number`, as soon as those before it are there; None where no other is left."""
        while len(self.points) <= number:
            for attempt in range(_ATTEMPTS):
                found = self._next(len(self.points), attempt)
                if found is None or found not in self.points:
                    break
            if found is None or found in self.points:
                return None
            self.points.append(found)
        return self.points[number]

    def tell(self, number: int, value: float | None) -> None:
        """What point `number` came to; None where it came to nothing."""
        return

    @abstractmethod
    def _next(self, number: int, attempt: int) -> Point | None: ...


class Random(Searcher):
    """Points by chance. Settings with a `grid` go through its product, over and over."""

    def __init__(self, settings: Mapping[str, Distribution], seed: int, minimize: bool = False) -> None:
        super().__init__(settings, seed, minimize)
        grids = {path: d.values for path, d in self.settings.items() if d.kind == "grid"}
        self._cells = [dict(zip(grids, cell, strict=True)) for cell in itertools.product(*grids.values())]

    def _next(self, number: int, attempt: int) -> Point | None:
        if len(self._cells) > 1 and number >= len(self._cells) and len(self._cells[0]) == len(self.settings):
            return None  # nothing is left to chance
        rng = np.random.default_rng([self.seed, number, attempt])
        cell = self._cells[number % len(self._cells)]
        return {path: cell[path] if path in cell else d.draw(rng) for path, d in self.settings.items()}


class Grid(Searcher):
    """Every combination of the listed values, the last setting's changing fastest."""

    def __init__(self, settings: Mapping[str, Distribution], seed: int, minimize: bool = False) -> None:
        super().__init__(settings, seed, minimize)
        endless = [f"{path} ({d.kind})" for path, d in self.settings.items() if d.options is None]
        if endless:
            raise UserError(
                f"searcher: grid needs values that can be counted, and {', '.join(endless)} has no end of them; "
                "use random or optuna, or write grid, choice or randint in the space"
            )
        self._all = list(itertools.product(*(d.options or [] for d in self.settings.values())))

    def _next(self, number: int, attempt: int) -> Point | None:
        return dict(zip(self.settings, self._all[number], strict=True)) if number < len(self._all) else None


class Optuna(Searcher):
    """Tree-structured Parzen estimator (Bergstra et al. 2011), by Optuna: points near those that came out well."""

    def __init__(self, settings: Mapping[str, Distribution], seed: int, minimize: bool = False) -> None:
        super().__init__(settings, seed, minimize)
        try:
            import optuna
        except ImportError as error:
            raise UserError("searcher: optuna is not installed; pip install 'raymeta[tune]', or use random") from error
        from ray.tune.search.optuna import OptunaSearch

        grids = [path for path, d in self.settings.items() if d.kind == "grid"]
        if grids:
            raise UserError(
                f"searcher: optuna does not go through a grid ({', '.join(grids)}); write choice in the space, or use random or grid"
            )
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._distributions = OptunaSearch.convert_search_space({p: d.domain() for p, d in self.settings.items()})
        self._study = optuna.create_study(
            direction="minimize" if minimize else "maximize", sampler=optuna.samplers.TPESampler(seed=seed)
        )
        self._asked: dict[int, Any] = {}
        self._values: dict[int, float | None] = {}

    def known(self, point: Point, value: float | None = None) -> None:
        import optuna

        number = len(self.points)
        super().known(point)
        params = {path: d.drawn(point[path]) for path, d in self.settings.items()}
        if value is None:  # it may be told yet
            self._study.enqueue_trial(params)
            self._asked[number] = self._study.ask(self._distributions)
        else:
            self._values[number] = value
            self._study.add_trial(
                optuna.trial.create_trial(params=params, distributions=self._distributions, value=value)
            )

    def _next(self, number: int, attempt: int) -> Point | None:
        import optuna

        trial = self._study.ask(self._distributions)
        found = {path: d.value(trial.params[path]) for path, d in self.settings.items()}
        if found in self.points:  # told what is known of it, it is proposed less
            value = self._values.get(self.points.index(found))
            state = optuna.trial.TrialState.COMPLETE if value is not None else optuna.trial.TrialState.PRUNED
            self._study.tell(trial, value, state)
        else:
            self._asked[number] = trial
        return found

    def tell(self, number: int, value: float | None) -> None:
        import optuna

        trial = self._asked.pop(number, None)
        if trial is not None:
            self._values[number] = value
            self._study.tell(trial, value, None if value is not None else optuna.trial.TrialState.FAIL)


SEARCHERS: dict[str, type[Searcher]] = {"random": Random, "grid": Grid, "optuna": Optuna}
"""Every searcher by name."""
