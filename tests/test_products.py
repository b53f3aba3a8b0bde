"""A layer's products are the same by whichever library computes them."""

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoModel

from raymeta import products
from raymeta.layers import quicken
from tests.tiny import save_model

LEADS = [False, True]


@pytest.fixture
def used(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What oneDNN was asked."""
    calls: list[object] = []
    by_onednn = products._ONEDNN

    def noted(*given: object) -> Tensor:
        calls.append(given)
        return by_onednn(*given)

    if by_onednn is not None:
        monkeypatch.setattr(products, "_ONEDNN", noted)
    return calls


def lead(monkeypatch: pytest.MonkeyPatch, leads: bool) -> bool:
    """Lets oneDNN lead or not; whether it is there at all."""
    monkeypatch.setattr(products, "onednn_leads", lambda: leads)
    return products._ONEDNN is not None


def drawn(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("leads", LEADS)
@pytest.mark.parametrize("biases", [0, 1, 3])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("tokens", [1, 9, 40])
def test_times_a_shared_matrix(
    leads: bool, biases: int, turned: bool, tokens: int, used: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = lead(monkeypatch, leads)
    weight = drawn(1, 256, 512)
    matrix = weight.mT if turned else weight
    x = drawn(3, tokens, matrix.shape[1], seed=1)
    bias = drawn(biases, matrix.shape[2], seed=2) if biases else None
    wanted = x.double() @ matrix.double() + (0 if bias is None else bias.double().unsqueeze(1))
    found = products.times(x, matrix, bias)
    assert torch.allclose(found.double(), wanted, atol=1e-4)
    enough = 3 * tokens * 256 * 512 >= (products._FROM_AHEAD if leads else products._FROM)
    assert bool(used) == (there and enough)
    monkeypatch.setattr(products, "_ONEDNN", None)
    assert torch.allclose(products.times(x, matrix, bias), found, atol=1e-4)
    assert products.times(x.double(), matrix.double()).dtype == torch.float64


@pytest.mark.parametrize("leads", LEADS)
@pytest.mark.parametrize("biases", [0, 1, 3])
@pytest.mark.parametrize("tokens", [1, 40])
def test_times_a_matrix_of_each_task(
    leads: bool, biases: int, tokens: int, used: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = lead(monkeypatch, leads)
    x, matrix = drawn(3, tokens, 256), drawn(3, 256, 512, seed=1)
    bias = drawn(biases, 512, seed=2) if biases else None
    wanted = x.double() @ matrix.double() + (0 if bias is None else bias.double().unsqueeze(1))
    assert torch.allclose(products.times(x, matrix, bias).double(), wanted, atol=1e-4)
    assert len(used) == (3 if there and leads and tokens == 40 else 0)


@pytest.mark.parametrize("leads", LEADS)
@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("tokens", [2, 40])
def test_outer_products_add_up(
    leads: bool, tasks: int, turned: bool, tokens: int, used: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = lead(monkeypatch, leads)
    pull, inputs, weight = drawn(tasks, tokens, 512), drawn(tasks, tokens, 256, seed=1), drawn(tasks, 512, 256, seed=2)
    if turned:
        weight = weight.mT.contiguous()
    left, right = (inputs, pull) if turned else (pull, inputs)
    slope = left.double().mT @ right.double()
    lowered = products.lowered(weight, inputs, pull, turned, kept=0.9, factor=0.3)
    assert torch.allclose(lowered.double(), 0.9 * weight.double() - 0.3 * slope, atol=1e-4)
    fresh = products.summed(None, left, right, alpha=0.5)
    assert torch.allclose(fresh.double(), 0.5 * slope, atol=1e-4)
    known = weight.clone()
    total = products.summed(known, left, right, alpha=-0.5)
    assert total is known
    assert torch.allclose(total.double(), weight.double() - 0.5 * slope, atol=1e-4)
    assert len(used) == (3 * tasks if there and leads and tokens == 40 else 0)


@pytest.mark.parametrize("own", [None, "200"])
def test_onednn_holds_few_compiled_products_unless_one_says_how_many(own: str | None) -> None:
    names = ("LRU_CACHE_CAPACITY", "ONEDNN_PRIMITIVE_CACHE_CAPACITY")
    environment = {n: v for n, v in os.environ.items() if n not in names} | (dict.fromkeys(names, own) if own else {})
    asked = f"import os, raymeta.products; print(*(os.environ[n] for n in {names}))"
    said = subprocess.run([sys.executable, "-c", asked], env=environment, capture_output=True, text=True, check=True)
    assert said.stdout.split() == [own or "64"] * 2


def test_whether_onednn_leads_is_measured_once() -> None:
    products.onednn_leads.cache_clear()
    found = products.onednn_leads()
    assert isinstance(found, bool)
    assert products.onednn_leads() is found
    assert products.onednn_leads.cache_info().hits == 1
    assert found is False or products._ONEDNN is not None


def test_whether_onednn_leads_is_measured_in_float32_whatever_is_set(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = set()
    by_onednn = products._by_onednn

    def noted(left: Tensor, right: Tensor) -> Tensor:
        found = by_onednn(left, right)
        kinds.add((found.dtype, (left @ right).dtype))
        return found

    if products._ONEDNN is None:
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "_by_onednn", noted)
    monkeypatch.setattr(products, "onednn_leads", products.onednn_leads.__wrapped__)
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.autocast("cpu", torch.bfloat16):
            products.onednn_leads()
    finally:
        torch.set_default_dtype(before)
    assert kinds == {(torch.float32, torch.float32)}


@pytest.mark.parametrize("leads", LEADS)
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("batched", [False, True])
def test_linear_is_what_torch_gives(
    leads: bool, biased: bool, batched: bool, used: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    there = lead(monkeypatch, leads)
    tasks = (3,) if batched else ()
    x, weight = drawn(3, 40, 256), drawn(*tasks, 512, 256, seed=1) / 16
    given = [x, weight, *([drawn(*tasks, 512, seed=2)] if biased else [])]

    def slopes(dtype: torch.dtype, of: object) -> list[Tensor]:
        leaves = [g.to(dtype).requires_grad_() for g in given]
        found = of(*leaves)  # type: ignore[operator]
        first = torch.autograd.grad(found.sin().sum(), leaves, create_graph=True)
        return [found, *first, *torch.autograd.grad(sum(g.square().sum() for g in first), leaves)]

    def plain(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        return x @ weight.mT + (0 if bias is None else bias.unsqueeze(1) if batched else bias)

    for found, wanted in zip(slopes(torch.float32, products.linear), slopes(torch.float64, plain), strict=True):
        assert (found - wanted).norm() < 1e-5 * wanted.norm()
    assert bool(used) == (there and leads)


def test_linear_is_differentiable_twice() -> None:
    for tasks in ((), (2,)):
        given = [drawn(*tasks, 3, 4), drawn(*tasks, 5, 4, seed=1), drawn(*tasks, 5, seed=2)]
        leaves = [g.double().requires_grad_() for g in given]
        assert torch.autograd.gradcheck(products._Linear.apply, leaves)
        assert torch.autograd.gradgradcheck(products._Linear.apply, leaves)


@pytest.mark.parametrize("family", ["bert", "gpt2", "t5"])
def test_a_quickened_model_is_the_same_model(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "_FROM_AHEAD", 1)
    lead(monkeypatch, True)
    plain = AutoModel.from_pretrained(save_model(family, tmp_path))
    quick = copy.deepcopy(plain)
    quicken(quick)
    given = {"input_ids": torch.arange(1, 9).view(2, 4)}
    if family == "t5":
        given["decoder_input_ids"] = given["input_ids"]
    for model in (plain, quick):
        model(**given).last_hidden_state.square().sum().backward()
    most = max(float(p.grad.abs().max()) for p in plain.parameters() if p.grad is not None)
    assert {type(m).__name__ for m in quick.modules()} & {"_QuickLinear", "_QuickConv1D"}
    for (name, wanted), (other, found) in zip(plain.named_parameters(), quick.named_parameters(), strict=True):
        assert name == other
        assert (wanted.grad is None) == (found.grad is None)
        if wanted.grad is not None:
            assert torch.allclose(found.grad, wanted.grad, rtol=1e-3, atol=1e-5 * most), name
