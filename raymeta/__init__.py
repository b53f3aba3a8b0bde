"""raymeta teaches a pretrained language model to learn a new NLP task from a handful of labelled examples.

In a notebook, `import raymeta as rm`: each name below is imported when it is first used, so that importing raymeta is fast.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raymeta.config import Run
    from raymeta.learner import Adapted, Learner

__version__ = "0.1.0"

_PLACES = {"Run": "raymeta.config", "Learner": "raymeta.learner", "Adapted": "raymeta.learner"}


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'raymeta' has no attribute {name!r}")
    return getattr(import_module(_PLACES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_PLACES]


__all__ = ["Adapted", "Learner", "Run"]
