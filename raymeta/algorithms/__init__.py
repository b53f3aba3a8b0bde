"""What is computed for one task: how it adapts, and the gradient that teaches the meta-parameters.

An algorithm is one file here, or a user's own (`kind: my_module:MyAlgorithm`). It sees a task only through `Inner`.
"""

from abc import abstractmethod

from raymeta.component import Component
from raymeta.hypergradient import MetaStep
from raymeta.model import Fast, Inner, Params


class Algorithm(Component, family="raymeta.algorithms", noun="algorithm", usual="maml"):
    """A meta-learning algorithm."""

    @property
    def needs_second_order(self) -> bool:
        """Whether the model must be differentiable twice (which fused attention is not)."""
        return False

    @abstractmethod
    def adapt(self, inner: Inner, local: Params, steps: int | None = None) -> Fast:
        """The parameters adapted to the task, from its support set alone; `steps` overrides the setting."""

    @abstractmethod
    def meta_step(self, inner: Inner, params: Params) -> MetaStep:
        """The task's query loss after adaptation and its gradient in the meta-parameters."""
