"""Every algorithm learns, several tasks at once as well as one by one; a task that is not finite does not count."""

import math
from pathlib import Path

import pytest
import torch

from raymeta.algorithms import Algorithm
from raymeta.algorithms.imaml import Imaml
from raymeta.algorithms.maml import Maml
from raymeta.algorithms.meta_sgd import MetaSgd
from raymeta.algorithms.protonet import Protonet
from raymeta.algorithms.reptile import Reptile
from raymeta.config import Run
from raymeta.episodes import Episode, Examples
from raymeta.model import Backbone
from raymeta.outer import Outer, OuterLoop
from raymeta.stages.metatrain import _learned
from raymeta.workers import Workers
from tests.tiny import TASKS, VOCABULARY, WAYS, double, episode, meta_gradient, relative, save_model


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model("bert", Path(tmp_path_factory.mktemp("bert")))


@pytest.mark.parametrize("adapt", ["all", "head", {"last": 1}], ids=str)
@pytest.mark.parametrize("kind", [MetaSgd, Reptile, Imaml, Protonet], ids=lambda k: k.__name__)
def test_several_tasks_at_once_give_the_sum_of_what_each_gives(bert, kind, adapt):
    network = double(bert, adapt=adapt)
    algorithm, episodes = kind(), [episode(0, 1, 2), episode(1, 2, 1), episode(2, 3, 3)]
    params = {**network.params(), **{n: p.double() for n, p in algorithm.init(network).items()}}
    each = [meta_gradient(algorithm, network, [e], params) for e in episodes]
    wanted = {n: sum(g[n] for g in each) for n in params}
    assert relative(meta_gradient(algorithm, network, episodes, params), wanted) < 1e-12


@pytest.mark.parametrize(
    ("settings", "shots", "expected"),
    [
        ({"inner_steps": 1}, 1, 4),
        ({"inner_steps": 1}, 30, 1),  # enough tokens of its own
        ({"inner_steps": 3}, 1, 2),  # weights of three steps are kept for each task
        ({"inner_steps": 7}, 1, 1),
        ({"inner_steps": 7, "order": 1}, 1, 4),
        ({"inner_steps": 1, "tasks_at_once": 3}, 30, 3),
    ],
    ids=str,
)
def test_short_tasks_of_a_model_that_is_not_tiny_are_computed_together(tmp_path, settings, shots, expected):
    network = Backbone(name=save_model("bert", tmp_path, layers=1, hidden=160)).load(WAYS)
    assert Maml(**settings).at_once(network, [kindred(0, shots), kindred(1, shots)]) == expected


def kindred(number: int, shots: int = 2) -> Episode:
    """An episode whose classes have words of their own, so that there is something to learn."""
    random = torch.Generator().manual_seed(number)
    span = (VOCABULARY - 2) // WAYS

    def texts(count: int) -> Examples:
        labels = torch.arange(count * WAYS) % WAYS
        lengths = torch.randint(3, 7, (len(labels),), generator=random)
        first = (2 + span * labels).repeat_interleave(lengths)
        ids = first + torch.randint(span, (int(lengths.sum()),), generator=random)
        return Examples(ids, lengths, torch.arange(len(labels)), {"labels": labels})

    return Episode(number, "train", tuple("abc"), texts(shots), texts(shots))


LEARNERS: dict[str, Algorithm] = {
    "maml": Maml(inner_lr=0.1, inner_steps=2),
    "fomaml": Maml(inner_lr=0.1, inner_steps=2, order=1),
    "maml++": Maml(inner_lr=0.1, inner_steps=2, learn="layer_and_step", multi_step_loss=5, anneal_order_at=2),
    "finite differences": Maml(inner_lr=0.1, inner_steps=2, second_order="finite_difference"),
    "meta_sgd": MetaSgd(inner_lr=0.1),
    "reptile": Reptile(inner_lr=0.1, inner_steps=3),
    "imaml": Imaml(inner_lr=0.1, inner_steps=3, conjugate_steps=3),
    "protonet": Protonet(),
}


@pytest.mark.parametrize("name", LEARNERS)
def test_every_algorithm_learns_a_few_episodes(bert, name):
    algorithm, episodes = LEARNERS[name], [kindred(n) for n in range(3)]
    network = double(bert, head={"kind": "prototype", "scale": 0.1}).to(torch.device("cpu"), torch.float32)
    algorithm.check(network)
    outer = OuterLoop(
        Outer(lr=0.01, steps=20, schedule="constant"),
        {**network.params(), **algorithm.init(network)},
        network.embedding,
    )
    losses = []
    for step in range(20):
        inner = algorithm.bound(network, TASKS, episodes)
        assert outer.add(algorithm.meta_step(inner, outer.params, step + 1), 0.0)
        losses.append(outer.update().query_loss)
    assert losses[-1] < 0.8 * losses[0], losses


def test_a_task_that_is_not_finite_is_left_out_and_named_and_the_others_count(bert):
    episodes = [episode(number) for number in (3, 4, 5)]
    run = Run.of(
        {
            "name": "x", "model": {"name": bert}, "corpus": {"kind": "quickstart", "part": "intents"},
            "tasks": {"kind": "classification", "ways": WAYS, "shots": 1, "queries": 2},
            "algorithm": {"kind": "maml", "tasks_at_once": 3, "inner_steps": 2},
        }
    )  # fmt: skip
    network = double(bert)
    words = [set(torch.cat([e.support.ids, e.query.ids]).tolist()) for e in episodes]
    spoiled = next(iter(words[1] - words[0] - words[2]))  # a word of the second task alone
    params = dict(network.params())
    params[network.embedding] = params[network.embedding].clone()
    params[network.embedding][spoiled] = math.nan
    outer, clean = (OuterLoop(Outer(), params, network.embedding) for _ in range(2))
    assert _learned(run, network, outer, params, episodes, Workers()) == [4]
    assert _learned(run, network, clean, params, [episodes[0], episodes[2]], Workers()) == []
    torch.testing.assert_close(outer.grad, clean.grad, rtol=1e-10, atol=1e-12)
    assert outer.update().tasks == 2
