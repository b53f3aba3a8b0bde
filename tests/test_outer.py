"""The outer loop takes AdamW's step along the mean meta-gradient, clipped, at the schedule's rate."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from raymeta.errors import UserError
from raymeta.hypergradient import MetaStep
from raymeta.outer import Outer, OuterLoop


def params() -> dict[str, Tensor]:
    random = torch.Generator().manual_seed(0)
    shapes = {"words": (10, 3), "layer.weight": (4, 3), "layer.bias": (4,), "head.weight": (2, 3)}
    return {name: torch.randn(shape, generator=random) for name, shape in shapes.items()}


def found(seed: int, rows: tuple[int, ...] = (1, 7, 4), scale: float = 1.0, without: str = "") -> MetaStep:
    random = torch.Generator().manual_seed(seed)
    grads = {n: scale * torch.randn(p.shape, generator=random) for n, p in params().items() if n != without}
    grads["words"] = scale * torch.randn((len(rows), 3), generator=random)
    return MetaStep(grads, torch.tensor(rows), torch.tensor([0.5 + seed]), [torch.zeros(1, 2)])


def whole(step: MetaStep) -> dict[str, Tensor]:
    """The gradient with its token embedding's rows in their places."""
    words = torch.zeros(10, 3)
    words.index_add_(0, step.rows, step.grads["words"])
    return {**{n: step.grads.get(n, torch.zeros_like(p)) for n, p in params().items()}, "words": words}


def test_steps_are_those_of_torchs_adamw_on_the_mean_gradient():
    settings = Outer(lr=0.01, weight_decay=0.1, clip_norm=2.0, steps=5, warmup_steps=2, schedule="linear", eps=1e-8)
    loop = OuterLoop(settings, params(), "words")
    plain = {n: p.clone().requires_grad_() for n, p in params().items()}
    optimizer = torch.optim.AdamW(
        [
            {"params": [plain["words"], plain["layer.weight"]], "weight_decay": 0.1},
            {"params": [plain["layer.bias"], plain["head.weight"]], "weight_decay": 0.0},
        ],
        eps=1e-8,
    )
    for step in range(1, 6):
        tasks = [found(10 * step + i) for i in range(3)]
        assert all(loop.add(task, metric=0.5) for task in tasks)
        for name, p in plain.items():
            p.grad = torch.stack([whole(task)[name] for task in tasks]).mean(0)
        norm = torch.nn.utils.clip_grad_norm_(list(plain.values()), 2.0)
        for group in optimizer.param_groups:
            group["lr"] = settings.rate(step)
        optimizer.step()
        took = loop.update()
        assert took.tasks == 3
        assert took.grad_norm == pytest.approx(float(norm), rel=1e-5)
        assert took.query_loss == pytest.approx(10 * step + 1.5)
        assert took.metrics == pytest.approx((0.5,))
        for name, p in plain.items():  # float32 sums in another order
            torch.testing.assert_close(loop.params[name], p.detach(), rtol=1e-5, atol=1e-6)


def test_a_row_of_the_embedding_that_occurs_twice_gets_both_gradients():
    one, two = (OuterLoop(Outer(), params(), "words") for _ in range(2))
    one.add(found(0, rows=(1, 7, 1)), 0.0)
    two.grad.copy_(torch.cat([whole(found(0, rows=(1, 7, 1)))[n].flatten() for n in one.params]))
    assert torch.equal(one.grad, two.grad)


def test_a_parameter_that_the_loss_does_not_reach_has_no_gradient():
    loop = OuterLoop(Outer(clip_norm=1e9), params(), "words")
    assert loop.add(found(0, without="layer.bias"), 0.0)
    loop.update()
    assert torch.equal(loop.params["layer.bias"], params()["layer.bias"])
    assert not torch.equal(loop.params["layer.weight"], params()["layer.weight"])


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_task_that_is_not_finite_is_left_out_and_the_others_count(bad):
    loop, clean = (OuterLoop(Outer(), params(), "words") for _ in range(2))
    spoiled = found(1)
    spoiled.grads["layer.weight"][0, 0] = bad
    assert loop.add(found(0), 1.0)
    assert not loop.add(spoiled, 0.0)
    assert not loop.add(MetaStep(found(2).grads, torch.tensor([1, 7, 4]), torch.tensor([bad]), []), 0.0)
    clean.add(found(0), 1.0)
    assert loop.update() == clean.update()
    assert torch.equal(loop.flat, clean.flat)


def test_a_step_without_any_finite_task_says_what_to_do():
    loop = OuterLoop(Outer(), params(), "words")
    assert not loop.add(MetaStep({}, torch.tensor([]), torch.tensor([math.nan]), []), 0.0)
    with pytest.raises(UserError, match=r"step 1: no task had a finite loss .* lower algorithm.inner_lr or outer.lr"):
        loop.update()


def test_a_restored_loop_goes_on_bit_for_bit():
    settings = Outer(lr=0.01, steps=10, warmup_steps=3)
    through = OuterLoop(settings, params(), "words")
    for step in range(4):
        through.add(found(step), 0.0)
        through.update()
    kept = {n: p.clone() for n, p in through.params.items()}, {n: s.clone() for n, s in through.state().items()}
    resumed = OuterLoop(settings, params(), "words")
    resumed.restore(4, *kept)
    for step in range(4, 8):
        for loop in (through, resumed):
            loop.add(found(step), 0.0)
        assert through.update() == resumed.update()
    assert torch.equal(through.flat, resumed.flat)


@given(st.integers(1, 300), st.integers(0, 50), st.sampled_from(["constant", "linear", "cosine"]))
def test_the_rate_rises_to_its_peak_and_then_never_rises(steps, warmup, schedule):
    settings = Outer(lr=1.0, steps=steps, warmup_steps=warmup, schedule=schedule)
    rates = [settings.rate(step) for step in range(1, steps + 1)]
    assert all(0 < rate <= 1.0 for rate in rates)
    rising, falling = rates[:warmup], rates[warmup:]
    assert rising == sorted(rising)
    assert falling == sorted(falling, reverse=True)
    if falling:
        assert falling[0] == 1.0
