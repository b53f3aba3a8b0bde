"""What is computed for a task: how it adapts, and the gradient that teaches the meta-parameters.

An algorithm is one file here, or a user's own (`kind: my_module:MyAlgorithm`). It sees tasks only through `Inner`.
"""

from abc import abstractmethod
from collections.abc import Sequence

from raymeta.component import Component
from raymeta.episodes import Episode
from raymeta.hypergradient import MetaStep
from raymeta.inner import Fast, Inner, TaskLoss
from raymeta.layers import Params
from raymeta.model import Network


class Algorithm(Component, family="raymeta.algorithms", noun="algorithm", usual="maml"):
    """A meta-learning algorithm."""

    def init(self, network: Network) -> Params:
        """Meta-parameters of its own, by name, each starting with `rates`: those that learn more than weights have some."""
        return {}

    def check(self, network: Network) -> None:
        """Raises UserError where the algorithm does not suit the model or its head."""
        return

    def remarks(self, network: Network, tasks: TaskLoss, episode: Episode, params: Params) -> list[str]:
        """What `raymeta check` should say of the algorithm on this model, measured on a sample episode."""
        return []

    def at_once(self, network: Network, episodes: Sequence[Episode]) -> int:
        """How many of these tasks a worker computes together."""
        return 1

    def bound(
        self,
        network: Network,
        tasks: TaskLoss,
        episodes: Sequence[Episode],
        seed: int | None = None,
        learn: bool = True,
    ) -> Inner:
        """The episodes bound to the network as this algorithm computes them best; `learn`: for a meta-gradient."""
        return Inner(network, tasks, episodes, seed, twice=False)

    @abstractmethod
    def adapt(self, inner: Inner, local: Params, steps: int | None = None) -> Fast:
        """The parameters adapted to the tasks, from their support sets alone; `steps` overrides the setting."""

    @abstractmethod
    def meta_step(self, inner: Inner, params: Params, step: int) -> MetaStep:
        """Query losses after adaptation, and the gradient of their sum in the meta-parameters, at outer step `step`."""
