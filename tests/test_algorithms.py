"""Algorithms are what their papers say: identities between them, and plain loops without the engine."""

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import functional_call
from torch.nn.utils.rnn import pad_sequence
from transformers import BertModel

from raymeta.algorithms import Algorithm
from raymeta.algorithms.imaml import Imaml
from raymeta.algorithms.maml import Maml
from raymeta.algorithms.meta_sgd import MetaSgd
from raymeta.algorithms.protonet import Protonet
from raymeta.algorithms.reptile import Reptile
from raymeta.episodes import Episode, Examples
from raymeta.hypergradient import unrolled
from raymeta.inner import Step
from raymeta.layers import Params
from raymeta.model import Network
from raymeta.tasks.classification import Classification
from tests.tiny import (
    TASKS,
    WAYS,
    double,
    episode,
    meta_gradient,
    query_loss,
    relative,
    save_model,
    slope_errors,
    whole,
)

SCALE = 0.2


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_model("bert", Path(tmp_path_factory.mktemp("bert")))


@pytest.fixture(scope="module")
def learned(bert: str) -> Network:
    return double(bert, head="learned")


class Plain:
    """MAML in plain torch: the model as transformers loads it, one padded text a row, and autograd; nothing of the engine."""

    def __init__(self, folder: str, prototypes: bool) -> None:
        keywords = {"add_pooling_layer": False, "attn_implementation": "eager", "dtype": torch.float64}
        self.module = BertModel.from_pretrained(folder, **keywords).eval()
        self.prototypes = prototypes

    def features(self, params: Params, examples: Examples) -> Tensor:
        texts = examples.ids.split(examples.lengths.tolist())
        ids = pad_sequence(texts, batch_first=True)
        mask = pad_sequence([torch.ones_like(t) for t in texts], batch_first=True)
        body = {n: p for n, p in params.items() if not n.startswith("head.")}
        states = functional_call(self.module, body, args=(), kwargs={"input_ids": ids, "attention_mask": mask})[0]
        return (states * mask.unsqueeze(-1)).sum(1) / mask.sum(1, keepdim=True)

    def loss(self, params: Params, examples: Examples) -> Tensor:
        logits = F.linear(self.features(params, examples), params["head.weight"], params["head.bias"])
        return F.cross_entropy(logits, examples.extra["labels"])

    def start(self, params: Params, support: Examples) -> Params:
        if not self.prototypes:
            return params
        means = F.one_hot(support.extra["labels"]).double().T @ self.features(params, support) * WAYS / len(support)
        return {**params, "head.weight": 2 * SCALE * means, "head.bias": -SCALE * means.square().sum(1)}

    def meta_gradient(self, params: Params, task: Episode, lr: float, steps: int, order: int) -> Params:
        leaves = {n: p.clone().requires_grad_() for n, p in params.items()}
        # nodes of their own: an inner gradient is that of the adapted parameters, not of what the head was made from
        fast = {n: p.view_as(p) for n, p in self.start(leaves, task.support).items()}
        for _ in range(steps):
            grads = torch.autograd.grad(self.loss(fast, task.support), list(fast.values()), create_graph=True)
            grads = [g if order == 2 else g.detach() for g in grads]
            fast = {n: p - lr * g for (n, p), g in zip(fast.items(), grads, strict=True)}
        return self.slope(self.loss(fast, task.query), leaves)

    def support_gradient(self, params: Params, task: Episode) -> Params:
        leaves = {n: p.clone().requires_grad_() for n, p in params.items()}
        return self.slope(self.loss(self.start(leaves, task.support), task.support), leaves)

    @staticmethod
    def slope(loss: Tensor, leaves: Params) -> Params:
        return dict(zip(leaves, torch.autograd.grad(loss, list(leaves.values())), strict=True))


HEADS = {"learned": "learned", "prototype": {"kind": "prototype", "scale": SCALE}}


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("head", HEADS)
def test_maml_and_fomaml_are_what_a_plain_loop_gives(bert, head, order):
    network = double(bert, head=HEADS[head])
    params, task = network.params(), episode(shots=2)
    for steps in (0, 1, 3):
        wanted = Plain(bert, head == "prototype").meta_gradient(params, task, 0.2, steps, order)
        found = meta_gradient(Maml(inner_lr=0.2, inner_steps=steps, order=order), network, [task], params)
        assert relative(found, wanted) < 1e-10, steps


def test_proto_maml_without_inner_steps_is_a_prototypical_network(bert):
    network = double(bert)
    params, episodes = network.params(), [episode(0, 2), episode(1, 1)]
    wanted = meta_gradient(Protonet(), network, episodes, params)
    for settings in ({}, {"order": 1}, {"second_order": "recomputed"}, {"second_order": "finite_difference"}):
        found = meta_gradient(Maml(inner_steps=0, **settings), network, episodes, params)
        assert relative(found, wanted) < 1e-12, settings


class Straight(Classification):
    """A loss that is linear in the scores: minus the right class's."""

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        return -logits.gather(2, targets.unsqueeze(2)).mean((1, 2))


def test_fomaml_is_maml_where_the_loss_is_linear_in_the_parameters(bert):
    network = double(bert, adapt="head", head="learned", trained="adapted")
    params, tasks = network.params(), Straight(ways=WAYS)

    def grads(order: int) -> Params:
        maml = Maml(inner_lr=0.3, inner_steps=3, order=order)
        return maml.meta_step(maml.bound(network, tasks, [episode()]), params, 1).grads

    first, second = grads(1), grads(2)
    assert set(first) == {"head.weight", "head.bias"}
    assert relative(second, first) < 1e-12
    bent = [meta_gradient(Maml(inner_lr=0.3, inner_steps=3, order=o), network, [episode()], params) for o in (1, 2)]
    assert relative(bent[1], bent[0]) > 1e-3  # cross-entropy is not linear


def test_the_losses_of_several_steps_weigh_one_together_even_at_first_and_fade_to_the_last(learned):
    maml = Maml(inner_steps=4, multi_step_loss=10)
    at = {step: maml.loss_weights(step) for step in range(1, 11)}
    assert at[1] == pytest.approx([0.25] * 4)
    assert all(math.isclose(sum(w), 1) and min(w) > 0 for w in at.values())
    assert [w[0] for w in at.values()] == sorted((w[0] for w in at.values()), reverse=True)
    assert at[10][-1] > 0.9
    assert maml.loss_weights(11) is None


@pytest.mark.parametrize("way", ["unrolled", "recomputed"])
def test_the_gradient_of_several_losses_is_the_weighted_sum_of_theirs(learned, way):
    params, task = learned.params(), episode()
    maml = Maml(inner_lr=0.2, inner_steps=3, multi_step_loss=10, second_order=way)
    each = [meta_gradient(Maml(inner_lr=0.2, inner_steps=k), learned, [task], params) for k in (1, 2, 3)]
    weights = maml.loss_weights(4)
    wanted = {n: sum(w * g[n] for w, g in zip(weights, each, strict=True)) for n in params}
    assert relative(meta_gradient(maml, learned, [task], params, step=4), wanted) < 1e-12
    assert relative(meta_gradient(maml, learned, [task], params, step=11), each[-1]) < 1e-12


def test_annealing_is_first_order_before_and_second_order_after(learned):
    params, task = learned.params(), [episode()]
    maml = Maml(inner_lr=0.2, inner_steps=2, anneal_order_at=5)
    first, second = (meta_gradient(Maml(inner_lr=0.2, inner_steps=2, order=o), learned, task, params) for o in (1, 2))
    assert relative(second, first) > 1e-2
    assert relative(meta_gradient(maml, learned, task, params, step=5), first) < 1e-12
    assert relative(meta_gradient(maml, learned, task, params, step=6), second) < 1e-12


ONE_STEP: dict[str, Any] = {"maml": Maml, "meta_sgd": MetaSgd, "reptile": Reptile, "imaml": Imaml}


def one_step(algorithm: Algorithm, network: Network, params: Params) -> tuple[Params, Params]:
    """The adapted parameters of two tasks before and after an inner step."""
    inner = algorithm.bound(network, TASKS, [episode(0), episode(1)], learn=False)
    local = inner.opened(params, learn=False)
    with torch.no_grad():
        return inner.start(local).moving(), algorithm.adapt(inner, local, steps=1).moving()


@pytest.mark.parametrize("kind", ONE_STEP)
def test_l2_adds_twice_its_weight_times_the_parameters_to_the_inner_gradient(learned, kind):
    plain, decayed = (ONE_STEP[kind](inner_lr=0.2, l2=l2) for l2 in (0.0, 0.1))
    if kind == "maml":
        plain = plain.model_copy(update={"linear": "materialised"})
    params = {**learned.params(), **{n: p.double() for n, p in plain.init(learned).items()}}
    before, without = one_step(plain, learned, params)
    after = one_step(decayed, learned, params)[1]
    for name, old in before.items():
        torch.testing.assert_close(
            after[name], without[name] - 0.2 * 2 * 0.1 * old, rtol=0, atol=1e-7
        )  # rates: float32


def test_a_clipped_inner_gradient_is_never_longer_than_the_limit_and_a_short_one_is_left_alone(learned):
    def pull(clip: float | None) -> tuple[Tensor, Params]:
        maml = Maml(inner_lr=0.2, clip=1e9 if clip is None else clip, linear="materialised")
        before, after = one_step(maml, learned, learned.params())
        pulls = {n: (before[n] - after[n]).expand(2, *after[n].shape[1:]) / 0.2 for n in after}
        return torch.stack([p.flatten(1).square().sum(1) for p in pulls.values()]).sum(0).sqrt(), pulls

    free, whole_pulls = pull(None)
    shortest, longest = sorted(free.tolist())
    between = (shortest + longest) / 2
    lengths, pulls = pull(between)
    assert sorted(lengths.tolist()) == pytest.approx([shortest, between])
    long = int(free.argmax())
    for name, whole_pull in whole_pulls.items():  # its direction stays
        torch.testing.assert_close(pulls[name][long], whole_pull[long] * between / longest)
        torch.testing.assert_close(pulls[name][1 - long], whole_pull[1 - long])


@pytest.mark.parametrize("head", HEADS)
def test_reptile_with_one_step_is_gradient_descent_on_the_support_loss(bert, head):
    network = double(bert, head=HEADS[head])
    params, task = network.params(), episode(shots=2)
    found = meta_gradient(Reptile(inner_lr=0.2, inner_steps=1), network, [task], params)
    assert relative(found, Plain(bert, head == "prototype").support_gradient(params, task)) < 1e-10


def test_reptile_moves_towards_where_its_inner_loop_ends(bert, learned):
    params, task, plain = learned.params(), episode(), Plain(bert, False)
    fast = params
    for _ in range(4):
        grads = plain.support_gradient(fast, task)
        fast = {n: p - 0.1 * grads[n] for n, p in fast.items()}
    wanted = {n: (params[n] - fast[n]) / 0.1 for n in params}
    assert relative(meta_gradient(Reptile(inner_lr=0.1, inner_steps=4), learned, [task], params), wanted) < 1e-10


ADAPTS: dict[str, Any] = {"all": "all", "head": "head", "body": "body", "last": {"last": 1}}


def unrolled_proximal(network: Network, params: Params, task: Episode, imaml: Imaml) -> Params:
    """The gradient through every step of the same inner loop, held to an anchor that is differentiated too."""
    inner = imaml.bound(network, TASKS, [task])

    def how(local: Params, t: int) -> Step:
        moving = {n: p for n, p in local.items() if n in network.adapted or n.startswith("head.")}
        anchor = {n: p if n == network.embedding else p.unsqueeze(0) for n, p in moving.items()}
        return Step(lambda name: imaml.inner_lr, imaml.l2, proximal=imaml.proximal, anchor=anchor)

    found = unrolled(inner, params, imaml.inner_steps, how)
    return whole(found.grads, found.rows, network, params)


@pytest.mark.parametrize("adapt", ADAPTS)
def test_imaml_comes_to_the_gradient_through_its_whole_inner_loop_as_its_solver_converges(bert, adapt):
    network = double(bert, adapt=ADAPTS[adapt], head="learned")
    params, task = network.params(), episode()
    imaml = Imaml(inner_lr=0.1, inner_steps=40, proximal=5.0, l2=0.01)
    wanted = unrolled_proximal(network, params, task, imaml)
    errors = []
    for steps in (1, 2, 3, 4, 16):
        solver = imaml.model_copy(update={"conjugate_steps": steps})
        errors.append(relative(meta_gradient(solver, network, [task], params), wanted))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 1e-8, errors


def test_meta_sgd_has_the_right_gradient_in_weights_and_rates(learned):
    algorithm, task = MetaSgd(inner_lr=0.2, inner_steps=2, l2=0.02), [episode()]
    params = {**learned.params(), **{n: p.double() for n, p in algorithm.init(learned).items()}}
    random = torch.Generator().manual_seed(0)
    for name in params:
        if name.startswith("rates"):
            params[name] = params[name] * torch.rand(params[name].shape, generator=random).double()
    grads = meta_gradient(algorithm, learned, task, params)
    errors = slope_errors(lambda p: query_loss(algorithm, learned, task, p), params, grads)
    assert max(errors.values()) < 5e-6, errors
    again = meta_gradient(algorithm.model_copy(update={"second_order": "recomputed"}), learned, task, params)
    assert relative(again, grads) < 1e-12


def test_meta_sgd_with_equal_rates_is_maml_and_its_rates_gradients_add_up_to_that_of_one_rate(learned):
    elementwise, one = MetaSgd(inner_lr=0.2, inner_steps=2), Maml(inner_lr=0.2, inner_steps=2, learn="global")
    grads, wanted = (
        meta_gradient(a, learned, [episode()], {**learned.params(), **{n: torch.full_like(p.double(), 0.2) for n, p in a.init(learned).items()}})
        for a in (elementwise, one)
    )  # fmt: skip
    assert relative({n: grads[n] for n in learned.params()}, {n: wanted[n] for n in learned.params()}) < 1e-12
    total = sum(float(g.sum()) for n, g in grads.items() if n.startswith("rates."))
    assert total == pytest.approx(float(wanted["rates"]), rel=1e-10)
