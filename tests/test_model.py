"""Low-rank adapters, bfloat16, and what `raymeta check` says of an approximation."""

import re
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from raymeta import checkpoint
from raymeta.algorithms import Algorithm
from raymeta.algorithms.imaml import Imaml
from raymeta.algorithms.maml import Maml
from raymeta.algorithms.meta_sgd import MetaSgd
from raymeta.algorithms.reptile import Reptile
from raymeta.config import Run
from raymeta.errors import UserError
from raymeta.layers import Params
from raymeta.model import Backbone, Network
from raymeta.outer import Outer, OuterLoop
from raymeta.pipeline import run_all
from tests.mistakes import RUNS, command, run_file
from tests.tiny import (
    FAMILIES,
    TASKS,
    WAYS,
    double,
    double_inside,
    episode,
    meta_gradient,
    query_loss,
    relative,
    save_model,
    slope_errors,
)

LORA = {"lora": {"rank": 2, "alpha": 4}}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {family: save_model(family, Path(tmp_path_factory.mktemp(family))) for family in FAMILIES}


def moved(network: Network) -> Params:
    """The network's parameters, its adapters away from their start: while B is zero, A has no gradient."""
    random = torch.Generator().manual_seed(0)
    return {
        n: p + 0.2 * torch.randn(p.shape, generator=random, dtype=p.dtype) if n in network.adapted else p
        for n, p in network.params().items()
    }


# low-rank adapters


@pytest.mark.parametrize(
    ("family", "trained"), [*((family, "adapted") for family in FAMILIES), ("bert", "all"), ("gpt2", "all")]
)
def test_adapters_of_every_family_have_the_right_gradient_and_every_exact_way_gives_it(folders, family, trained):
    pytest.importorskip("peft", reason="needs the extra `lora`")
    with double_inside():
        network = double(folders[family], adapt=LORA, trained=trained)
        assert network.swapped, "peft's layers are known to the dual form"
        params, episodes = moved(network), [episode(0), episode(1, 2)]
        maml = Maml(inner_lr=0.2, inner_steps=2, linear="materialised")
        parts = [meta_gradient(maml, network, [e], params) for e in episodes]
        grads = {n: sum(p[n] for p in parts) for n in params}
        free = {n: params[n] for n in params if trained == "all" or n in network.adapted}
        assert all(bool(grads[n].any()) == (n in free) for n in params if ".key." not in n and "k_lin" not in n)

        errors = slope_errors(
            lambda given: query_loss(maml, network, episodes[:1], {**params, **given}),
            free,
            {n: parts[0][n] for n in free},
        )
        assert max(errors.values()) < 5e-6, errors
        for settings in (
            {"second_order": "recomputed"}, {"linear": "dual"}, {"linear": "dual", "second_order": "recomputed"},
        ):  # fmt: skip
            other = maml.model_copy(update=settings)
            parts = [meta_gradient(other, network, [e], params) for e in episodes]
            assert relative({n: sum(p[n] for p in parts) for n in params}, grads) < 1e-12, settings
            if network.batches:
                assert relative(meta_gradient(other, network, episodes, params), grads) < 1e-12, ("at once", settings)


def test_a_model_with_new_adapters_is_the_model_without_and_seeds_draw_them(folders):
    pytest.importorskip("peft", reason="needs the extra `lora`")
    plain, one, same, other = (
        Backbone.model_validate({"name": folders["bert"], "adapt": adapt}).load(WAYS, seed)
        for adapt, seed in (("all", 0), (LORA, 0), (LORA, 0), (LORA, 1))
    )
    still = Maml(inner_steps=0)
    assert torch.equal(*(query_loss(still, n, [episode()], n.params()).detach() for n in (one, same)))
    torch.testing.assert_close(*(query_loss(still, n, [episode()], n.params()).detach() for n in (plain, one)))
    of_a, of_b = ({n for n in one.adapted if f".lora_{m}." in n} for m in "AB")
    assert of_a | of_b == one.adapted
    assert not any(bool(one.base[n].any()) for n in of_b)
    assert all(torch.equal(one.base[n], same.base[n]) and not torch.equal(one.base[n], other.base[n]) for n in of_a)


@pytest.mark.parametrize(("targets", "each"), [("all-linear", 3 * 16 + 16 + 2 * 24), (["query", "value"], 2 * 16)])
def test_adapters_have_rank_times_in_plus_out_parameters(folders, targets, each):
    pytest.importorskip("peft", reason="needs the extra `lora`")
    network = double(folders["bert"], adapt={"lora": {"rank": 3, "targets": targets}})
    assert sum(network.base[n].numel() for n in network.adapted) == 2 * 3 * each  # two layers of hidden size 8
    assert network.cut == 0
    assert set(network.trainable()) == set(network.params())
    small = double(folders["bert"], adapt=LORA, trained="adapted", head="learned")
    assert set(small.trainable()) == small.adapted | {"head.weight", "head.bias"}


def test_layers_that_a_model_lacks_are_named_with_those_it_has(folders):
    pytest.importorskip("peft", reason="needs the extra `lora`")
    with pytest.raises(
        UserError, match=r"targets: .* 'querry'; did you mean 'query'\? \(layers: dense, key, query, value"
    ):
        double(folders["bert"], adapt={"lora": {"targets": ["querry"]}})


def test_without_peft_the_message_names_the_extra(folders, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(UserError, match=r"model.adapt.lora needs the package peft.*raymeta\[lora\]"):
        double(folders["bert"], adapt=LORA)


ALGORITHMS: dict[str, Algorithm] = {
    "maml": Maml(inner_lr=0.1, inner_steps=3),
    "dual": Maml(inner_lr=0.1, inner_steps=3, linear="dual"),
    "finite differences": Maml(inner_lr=0.1, inner_steps=2, second_order="finite_difference"),
    "meta_sgd": MetaSgd(inner_lr=0.1, inner_steps=2),
    "reptile": Reptile(inner_lr=0.1, inner_steps=2),
    "imaml": Imaml(inner_lr=0.1, inner_steps=2),
}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_algorithm_takes_two_meta_steps_on_adapters(folders, name):
    pytest.importorskip("peft", reason="needs the extra `lora`")
    algorithm = ALGORITHMS[name]
    network = Backbone.model_validate({"name": folders["bert"], "adapt": LORA}).load(WAYS, 0, "adapted")
    moving = {n: p for n, p in network.params().items() if n in network.trainable()}
    own = algorithm.init(network)
    outer = OuterLoop(Outer(lr=0.01), {**moving, **own}, network.embedding)
    params = {**network.params(), **own, **outer.params}
    for step in (1, 2):
        inner = algorithm.bound(network, TASKS, [episode(step)])
        assert outer.add(algorithm.meta_step(inner, params, step), 0.0)
        outer.update()
    assert all(not torch.equal(outer.params[n], network.base[n]) for n in network.adapted if ".lora_B." in n)
    with torch.no_grad():  # as an evaluation adapts
        inner = algorithm.bound(network, TASKS, [episode(3)], learn=False)
        fast = algorithm.adapt(inner, inner.opened(params))
    assert bool(inner.query_logits(fast).isfinite().all())


def of_quickstart(folder: Path, model: str, **settings: Any) -> Run:
    """A short run on the shipped intents, in this process."""
    return Run.of(
        {
            "name": "short", "model": {"name": model, **settings}, "storage": str(folder), "cluster": "local-debug",
            "corpus": {"kind": "quickstart", "part": "intents"},
            "tasks": {**RUNS["intents"]["tasks"], "split": {"of": "task", "train": 4, "validation": 1, "test": 1}},
            "algorithm": {"kind": "maml", "inner_steps": 2}, "outer": {"steps": 2, "tasks_per_step": 2, "train": "adapted"},
            "validation": {"every": 1, "episodes": 2}, "evaluate": {"episodes": 2},
        }
    )  # fmt: skip


def test_a_run_on_adapters_keeps_and_evaluates_them_alone(tmp_path, tiny_tokenizer_folder):
    pytest.importorskip("peft", reason="needs the extra `lora`")
    run = of_quickstart(tmp_path, tiny_tokenizer_folder, adapt=LORA, head="learned")
    found = run_all(run)
    assert set(found["metrics"]) == {"accuracy", "macro_f1"}
    last = checkpoint.newest(run.folder / "checkpoints")
    kept = last.params()
    network = run.model.load(2, run.seed, "adapted")
    assert set(kept) == network.adapted | {"head.weight", "head.bias"}
    assert all(bool(p.any()) for n, p in kept.items() if ".lora_B." in n)


# bfloat16


@pytest.mark.parametrize(
    "settings", [{"linear": "materialised"}, {"linear": "dual"}, {"second_order": "recomputed"}], ids=str
)
def test_bfloat16_is_differentiated_twice_and_comes_within_five_percent(folders, settings):
    exact, rough = (
        Backbone.model_validate({"name": folders["bert"], "head": {"kind": "prototype", "scale": 0.2}, "precision": p}).load(WAYS)
        for p in ("float32", "bf16")
    )  # fmt: skip
    params, episodes = exact.params(), [episode(0), episode(1)]
    maml = Maml(inner_lr=0.1, inner_steps=2, **settings)
    wanted = meta_gradient(Maml(inner_lr=0.1, inner_steps=2), exact, episodes, params)
    found = meta_gradient(maml, rough, episodes, params)
    assert {g.dtype for g in found.values()} == {torch.float32}
    assert all(bool(g.isfinite().all()) for g in found.values())
    assert 0 < relative(found, wanted) < 0.05


def test_finite_differences_in_bfloat16_take_steps_that_its_rounding_leaves(folders):
    exact, rough = (
        Backbone.model_validate({"name": folders["bert"], "head": {"kind": "prototype", "scale": 0.2}, "precision": p}).load(WAYS)
        for p in ("float32", "bf16")
    )  # fmt: skip
    params, episodes = exact.params(), [episode(0), episode(1)]
    wanted = meta_gradient(Maml(inner_lr=0.1, inner_steps=2), exact, episodes, params)
    near, first = (
        relative(meta_gradient(Maml(inner_lr=0.1, inner_steps=2, **way), rough, episodes, params), wanted)
        for way in ({"second_order": "finite_difference"}, {"order": 1})
    )
    assert near < 0.5 * first


@pytest.mark.parametrize("family", FAMILIES)
def test_what_a_model_can_do_does_not_depend_on_the_precision(folders, family):
    exact, rough = (
        Backbone.model_validate({"name": folders[family], "head": "learned", "precision": p}).load(WAYS)
        for p in ("float32", "bf16")
    )
    can = ("causal", "swapped", "packs", "batches", "sdpa", "cut", "lower")
    assert {n: getattr(rough, n) for n in can} == {n: getattr(exact, n) for n in can}
    assert rough.backbone.precision == "bf16"


def test_checkpoints_of_a_run_in_bfloat16_are_float32(tmp_path, tiny_tokenizer_folder):
    run = of_quickstart(tmp_path, tiny_tokenizer_folder, precision="bf16", adapt={"last": 1})
    run_all(run)
    files = list((run.folder / "checkpoints").glob("step_*/*.safetensors"))
    assert files
    assert {t.dtype for f in files for t in load_file(f).values()} == {torch.float32}


# looking before running

APART = re.compile(
    r"finite differences approximate the meta-gradient: on the sample episode it is (\S+) % of its length away"
)


def test_finite_differences_say_how_far_they_are_from_the_exact_gradient(folders):
    network = double(folders["bert"])
    params, task = network.params(), episode()
    maml = Maml(inner_lr=0.2, inner_steps=3, second_order="finite_difference")
    near, exact = (meta_gradient(a, network, [task], params) for a in (maml, Maml(inner_lr=0.2, inner_steps=3)))
    (remark,) = maml.remarks(network, TASKS, task, params)
    assert float(APART.match(remark)[1]) == pytest.approx(100 * relative(near, exact), rel=0.05)  # two digits
    assert Maml().remarks(network, TASKS, task, params) == []


def test_check_prints_how_far(tmp_path, tiny_tokenizer_folder, monkeypatch, capsys):
    arguments = ["check", str(run_file(tmp_path, tiny_tokenizer_folder)), "algorithm.second_order=finite_difference"]
    status, out, _ = command(arguments, monkeypatch, capsys)
    assert status == 0
    assert 0 < float(APART.search(out)[1]) < 100
