"""raymeta teaches a pretrained language model to learn a new NLP task from a handful of labelled examples.

In a notebook, `import raymeta as rm`: each name below is imported when it is first used, so that importing raymeta is fast.
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raymeta.config import Run
    from raymeta.learner import Adapted, Learner
    from raymeta.notebook import episodes, evaluate
    from raymeta.pipeline import run_all
    from raymeta.stages.metatrain import metatrain

__version__ = "0.1.0"

_PLACES = {
    "Adapted": "raymeta.learner", "Learner": "raymeta.learner", "Run": "raymeta.config",
    "evaluate": "raymeta.notebook", "metatrain": "raymeta.stages.metatrain", "run_all": "raymeta.pipeline",
}  # fmt: skip


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'raymeta' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """This package, in which `episodes` is the function, though a module has that name too."""

    @property
    def episodes(self) -> Any:
        return import_module("raymeta.notebook").episodes

    @episodes.setter
    def episodes(self, module: ModuleType) -> None:
        """Importing the module sets it, and changes nothing."""


sys.modules[__name__].__class__ = _Package

__all__ = ["Adapted", "Learner", "Run", "episodes", "evaluate", "metatrain", "run_all"]
