"""Prototypical networks.

Snell, Swersky and Zemel 2017, https://arxiv.org/abs/1703.05175: query items are classified by their distance to the mean
support feature of each class (equation 2); nothing adapts but that mean, and the encoder is what is learned.
"""

from raymeta.algorithms import Algorithm
from raymeta.errors import UserError
from raymeta.hypergradient import MetaStep, unrolled
from raymeta.inner import Fast, Inner, Step
from raymeta.layers import Params
from raymeta.model import Network


class Protonet(Algorithm):
    """Learns an encoder in which the nearest class mean is right; the cheapest to train and to adapt."""

    def check(self, network: Network) -> None:
        if not network.head.reads_support:
            raise UserError(
                f"algorithm: protonet classifies by class means; set model.head to prototype, not {network.head.kind}"
            )

    def adapt(self, inner: Inner, local: Params, steps: int | None = None) -> Fast:
        return inner.start(local)

    def meta_step(self, inner: Inner, params: Params, step: int) -> MetaStep:
        return unrolled(inner, params, 0, lambda local, t: Step(lambda name: 0.0))
