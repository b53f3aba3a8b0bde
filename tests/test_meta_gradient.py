"""Meta-gradients against central differences in float64, and every exact way against every other."""

import gc
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from raymeta import hypergradient
from raymeta.algorithms.maml import Maml
from raymeta.inner import Fast, Inner
from tests.tiny import (
    FAMILIES,
    TASKS,
    double,
    double_inside,
    episode,
    meta_gradient,
    query_loss,
    relative,
    save_model,
    slope_errors,
)

ADAPTS: dict[str, Any] = {"all": "all", "head": "head", "body": "body", "last": {"last": 1}, "layers": {"layers": [0]}}
HEADS = ("prototype", "zero", "learned")


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {family: save_model(family, Path(tmp_path_factory.mktemp(family))) for family in FAMILIES}


@pytest.mark.parametrize("steps", [1, 3])
@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("adapt", ADAPTS)
def test_meta_gradient_matches_central_differences(folders: dict[str, str], adapt: str, head: str, steps: int) -> None:
    if (adapt, head) == ("body", "zero"):
        with pytest.raises(ValueError, match="can never move"):
            double(folders["bert"], adapt="body", head="zero")
        return
    network = double(folders["bert"], adapt=ADAPTS[adapt], head=head)
    maml, episodes, params = Maml(inner_lr=0.3, inner_steps=steps), [episode()], network.params()
    grads = meta_gradient(maml, network, episodes, params)
    errors = slope_errors(lambda p: query_loss(maml, network, episodes, p), params, grads)
    assert max(errors.values()) < 1e-6, errors


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_matches_central_differences(folders: dict[str, str], family: str, steps: int) -> None:
    with double_inside():
        network = double(folders[family])
        maml, episodes, params = Maml(inner_lr=0.1, inner_steps=steps), [episode()], network.params()
        grads = meta_gradient(maml, network, episodes, params)
        errors = slope_errors(lambda p: query_loss(maml, network, episodes, p), params, grads)
    assert max(errors.values()) < 5e-6, errors


@pytest.mark.parametrize("adapt", ADAPTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_exact_way_gives_the_same_gradient(folders: dict[str, str], family: str, adapt: str) -> None:
    with double_inside():
        network = double(folders[family], adapt=ADAPTS[adapt])
        assert network.swapped, "each family's layers are known to the dual form"
        params, episodes = network.params(), [episode(n) for n in range(3)]
        for steps in (1, 2, 3):
            common = {"inner_lr": 0.2, "inner_steps": steps, "tasks_at_once": 1}
            one_by_one = [meta_gradient(Maml(**common, linear="materialised"), network, [e], params) for e in episodes]
            wanted = {n: sum(g[n] for g in one_by_one) for n in params}
            ways = [
                {"second_order": way, "linear": linear}
                for way in ("unrolled", "recomputed")
                for linear in ("materialised", "dual")
            ]
            for settings in ways:
                maml = Maml(**common, **settings)
                parts = [meta_gradient(maml, network, [e], params) for e in episodes]
                assert relative({n: sum(p[n] for p in parts) for n in params}, wanted) < 1e-12, settings
                if network.batches:
                    assert relative(meta_gradient(maml, network, episodes, params), wanted) < 1e-12, (
                        "at once",
                        settings,
                    )


def test_the_gradient_with_dropout_is_that_of_the_masks_it_drew(folders: dict[str, str]) -> None:
    network = double(folders["bert"], dropout=0.2)
    episodes, params = [episode()], network.params()
    maml = Maml(inner_lr=0.3, inner_steps=2, linear="materialised")
    grads = meta_gradient(maml, network, episodes, params, seed=5)
    assert relative(meta_gradient(maml, network, episodes, params, seed=6), grads) > 1e-3
    assert relative(meta_gradient(maml, network, episodes, params), grads) > 1e-3
    for settings in (
        {"second_order": "recomputed"},
        {"linear": "dual"},
        {"linear": "dual", "second_order": "recomputed"},
    ):
        other = maml.model_copy(update=settings)
        assert relative(meta_gradient(other, network, episodes, params, seed=5), grads) < 1e-12, settings
    errors = slope_errors(lambda p: query_loss(maml, network, episodes, p, seed=5), params, grads)
    assert max(errors.values()) < 5e-6, errors


@pytest.mark.parametrize("learn", ["global", "layer", "layer_and_step"])
@pytest.mark.parametrize("linear", ["materialised", "dual"])
def test_learned_rates_have_the_right_gradient(folders: dict[str, str], learn: str, linear: str) -> None:
    network = double(folders["bert"])
    maml = Maml(inner_lr=0.2, inner_steps=2, learn=learn, linear=linear)
    params = {**network.params(), "rates": maml.init(network)["rates"].double()}
    grads = meta_gradient(maml, network, [episode()], params)
    errors = slope_errors(lambda p: query_loss(maml, network, [episode()], p), params, grads)
    assert max(errors.values()) < 5e-6, errors
    assert float(grads["rates"].abs().min()) > 0
    again = meta_gradient(maml.model_copy(update={"second_order": "recomputed"}), network, [episode()], params)
    assert relative(again, grads) < 1e-12


@pytest.mark.parametrize("settings", [{"l2": 0.05}, {"clip": 0.05}, {"l2": 0.02, "clip": 0.1}])
def test_l2_and_clipping_are_differentiated_through(folders: dict[str, str], settings: dict[str, float]) -> None:
    network = double(folders["bert"])
    maml, episodes, params = Maml(inner_lr=0.3, inner_steps=2, **settings), [episode(), episode(1)], network.params()
    grads = meta_gradient(maml, network, episodes, params)
    errors = slope_errors(lambda p: query_loss(maml, network, episodes, p), params, grads)
    assert max(errors.values()) < 5e-6, errors
    again = meta_gradient(maml.model_copy(update={"second_order": "recomputed"}), network, episodes, params)
    assert relative(again, grads) < 1e-12
    assert relative(meta_gradient(Maml(inner_lr=0.3, inner_steps=2), network, episodes, params), grads) > 1e-4


@pytest.mark.parametrize("many", [1, 1000], ids=["gradients kept", "multiplied out"])
@pytest.mark.parametrize("family", ["bert", "gpt2"])
def test_finite_differences_come_near_the_exact_gradient(
    folders: dict[str, str], family: str, many: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raymeta.hypergradient._MANY", many)
    for adapt in ("all", {"last": 1}):
        network = double(folders[family], adapt=adapt)
        params, episodes = network.params(), [episode()]
        exact = meta_gradient(Maml(inner_lr=0.2, inner_steps=3), network, episodes, params)
        near = meta_gradient(
            Maml(inner_lr=0.2, inner_steps=3, second_order="finite_difference"), network, episodes, params
        )
        first = meta_gradient(Maml(inner_lr=0.2, inner_steps=3, order=1), network, episodes, params)
        assert relative(near, exact) < 2e-3
        assert relative(near, exact) < 0.1 * relative(first, exact)


@pytest.mark.parametrize("trained", ["all", "adapted"])
@pytest.mark.parametrize("adapt", ADAPTS)
@pytest.mark.parametrize("head", HEADS)
def test_finite_differences_come_near_the_exact_gradient_of_every_head_and_of_what_does_not_adapt(
    folders: dict[str, str], head: str, adapt: str, trained: str
) -> None:
    if (head, adapt) == ("zero", "body"):
        pytest.skip("a head of zeros sends no gradient to the body, and is refused")
    network = double(folders["bert"], adapt=ADAPTS[adapt], head=head, trained=trained)
    params, episodes = network.params(), [episode(), episode(1)]
    maml = Maml(inner_lr=0.1, inner_steps=2, learn="layer_and_step")
    params = params | maml.init(network)
    params = {n: p.double() for n, p in params.items()}
    exact = meta_gradient(maml, network, episodes, params)
    near = meta_gradient(maml.model_copy(update={"second_order": "finite_difference"}), network, episodes, params)
    assert {n for n, g in near.items() if g.any()} == {n for n, g in exact.items() if g.any()}
    assert relative(near, exact) < 2e-3


def test_finite_differences_are_the_same_whether_gradients_are_kept_or_multiplied_out_twice(
    folders: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = double(folders["bert"])
    params, episodes = network.params(), [episode(), episode(1)]
    maml = Maml(inner_lr=0.2, inner_steps=3, second_order="finite_difference", learn="layer")
    found = []
    for many in (1, 1000):
        monkeypatch.setattr("raymeta.hypergradient._MANY", many)
        everything = params | maml.init(network)
        found.append(meta_gradient(maml, network, episodes, everything))
    assert relative(found[0], found[1]) < 1e-8


def test_tasks_of_different_sizes_can_be_computed_at_once(folders: dict[str, str]) -> None:
    network = double(folders["bert"])
    episodes, params = [episode(0, 1, 2), episode(1, 2, 1), episode(2, 3, 3)], network.params()
    for order in (1, 2):
        maml = Maml(inner_lr=0.2, inner_steps=2, order=order)
        parts = [meta_gradient(maml, network, [e], params) for e in episodes]
        assert (
            relative(meta_gradient(maml, network, episodes, params), {n: sum(p[n] for p in parts) for n in params})
            < 1e-12
        )


def test_what_the_outer_loop_does_not_train_has_no_gradient(folders: dict[str, str]) -> None:
    network, free = (double(folders["bert"], adapt={"last": 1}, trained=t) for t in ("adapted", "all"))
    params, maml = network.params(), Maml(inner_lr=0.2, inner_steps=2)
    found = maml.meta_step(maml.bound(network, TASKS, [episode()]), params, 1)
    assert {n for n in found.grads if n in network.base} <= network.adapted
    wanted = meta_gradient(maml, free, [episode()], params)
    assert relative(found.grads, {n: wanted[n] for n in found.grads}) < 1e-12


def test_second_order_works_on_a_model_whose_default_attention_cannot_be_differentiated_twice(tmp_path: Path) -> None:
    network = double(save_model("bert", tmp_path))
    assert network.sdpa
    grads = meta_gradient(Maml(inner_steps=2), network, [episode()], network.params())
    assert all(bool(g.isfinite().all()) for g in grads.values())


def test_two_tasks_at_once_differ_in_nothing_that_layer_norm_would_spoil(folders: dict[str, str]) -> None:
    """The batched layer norm's own double backward is wrong; ours keeps the affine part outside of it."""
    network = double(folders["bert"], adapt={"layers": [1]})
    params, episodes = network.params(), [episode(), episode(1)]
    maml = Maml(inner_lr=0.5, inner_steps=2)
    grads = meta_gradient(maml, network, episodes, params)
    errors = slope_errors(lambda p: query_loss(maml, network, episodes, p), params, grads)
    assert max(e for layer, e in errors.items() if "LayerNorm" in layer) < 1e-6


def test_a_model_that_checkpoints_its_activations_is_refused(folders: dict[str, str]) -> None:
    from transformers import BertModel

    from raymeta.errors import UserError
    from raymeta.model import Backbone, Network

    module = BertModel.from_pretrained(folders["bert"])
    module.gradient_checkpointing_enable()
    with pytest.raises(UserError, match="gradient checkpointing"):
        Network(Backbone(name=folders["bert"]), module, 3, 0, "mean", "all")


@pytest.mark.parametrize("family", FAMILIES)
def test_packed_rows_give_what_padded_ones_do(folders: dict[str, str], family: str) -> None:
    network = double(folders[family])
    params, episodes = network.params(), [episode(shots=2)]
    dense = query_loss(Maml(inner_steps=1), network, episodes, params).detach()
    assert network.packs
    assert network.batches
    network.packs = False
    plain = query_loss(Maml(inner_steps=1), network, episodes, params).detach()
    assert float((dense - plain).abs()) < 1e-6


def test_the_graph_of_a_step_is_freed_without_the_garbage_collector(folders: dict[str, str]) -> None:
    network = double(folders["bert"])
    params = network.params()
    gc.collect()
    gc.disable()
    try:
        for way in ("unrolled", "recomputed", "finite_difference"):
            maml = Maml(inner_lr=0.1, inner_steps=2, second_order=way, linear="materialised")
            counts = []
            for _ in range(3):
                meta_gradient(maml, network, [episode()], params)
                counts.append(sum(isinstance(o, Tensor) for o in gc.get_objects()))
            assert counts[0] == counts[1] == counts[2], way
    finally:
        gc.enable()


@pytest.mark.parametrize("way", ["unrolled", "recomputed", "finite_difference"])
def test_the_last_adapted_weights_are_let_go_before_the_way_back(
    folders: dict[str, str], way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    network = double(folders["bert"])
    last: list[StorageWeakRef] = []
    alive: list[int] = []
    through = hypergradient._through
    query_logits = Inner.query_logits

    def answered(inner: Inner, fast: Fast) -> Tensor:
        last.extend(StorageWeakRef(fast.own[f"{layer}.weight"].untyped_storage()) for layer in fast.fused)
        return query_logits(inner, fast)

    def counted(*given: Any, **more: Any) -> Any:
        alive.append(sum(not weight.expired() for weight in last))
        return through(*given, **more)

    monkeypatch.setattr(Inner, "query_logits", answered)
    monkeypatch.setattr(hypergradient, "_through", counted)
    maml = Maml(inner_lr=0.1, inner_steps=2, second_order=way, linear="materialised")
    meta_gradient(maml, network, [episode()], network.params())
    assert last
    assert set(alive) == {0}
