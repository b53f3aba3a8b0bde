"""Models that write texts: their meta-gradients against the model's own forward in a plain loop, and every way alike."""

from pathlib import Path
from typing import Any

import pytest
import torch

from raymeta.adapt import PROMPT
from raymeta.algorithms.maml import Maml
from tests.tiny import double_inside, relative, slope_error
from tests.writers import (
    WRITERS,
    asking,
    load,
    meta_gradient,
    plain_meta_gradient,
    query_loss,
    save_writer,
)

ADAPTS: dict[str, Any] = {
    "all": "all", "head": "head", "body": "body", "last": {"last": 1}, "every layer": {"last": 2}, "layers": {"layers": [0]},
    "prompt": {"prompt": {"tokens": 3}}, "lora": {"lora": {"rank": 2, "alpha": 4}},
}  # fmt: skip


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {family: save_writer(family, Path(tmp_path_factory.mktemp("writer"))) for family in WRITERS}


def own_model(network: Any) -> Any:
    """The model as its library made it, attention computed so that it can be differentiated twice."""
    return network.plain


def moving(network: Any, adapt: str) -> list[str]:
    """What a plain loop moves."""
    output = {network.output.weight}
    if adapt == "head":
        return sorted(output)
    return sorted(network.adapted | (output if adapt == "all" else set()))


@pytest.mark.parametrize("adapt", ["all", "head", "body", "last", "every layer", "layers"])
@pytest.mark.parametrize("family", WRITERS)
def test_the_meta_gradient_is_that_of_a_plain_loop_over_the_library_s_model(folders, family, adapt):
    with double_inside():
        if adapt == "head" and family not in ("llama", "t5 untied"):
            with pytest.raises(ValueError, match="output layer of this model is its token embedding"):
                load(folders[family], adapt="head")
            return
        network = load(folders[family], adapt=ADAPTS[adapt])
        assert network.swapped
        assert network.packs
        assert network.batches
        assert (network.cut is None) == (adapt in ("all", "body"))
        params, episodes = network.params(), [asking(0), asking(1, 3, 2)]
        for steps in (1, 2):
            wanted, total = plain_meta_gradient(
                own_model(network), params, episodes, 0.3, steps, moving(network, adapt)
            )
            for settings in ({"linear": "materialised"}, {"linear": "dual"}, {"second_order": "recomputed"}):
                maml = Maml(inner_lr=0.3, inner_steps=steps, **settings)
                found = meta_gradient(maml, network, episodes, params)
                assert relative(found, wanted) < 1e-11, (steps, settings)
            near = Maml(inner_lr=0.3, inner_steps=steps, second_order="finite_difference")
            assert relative(meta_gradient(near, network, episodes, params), wanted) < 1e-2, steps
            torch.testing.assert_close(query_loss(maml, network, episodes, params), total, rtol=1e-11, atol=0)


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("adapt", ["prompt", "lora"])
@pytest.mark.parametrize("family", WRITERS)
def test_prompts_and_adapters_have_the_right_gradient_and_every_exact_way_gives_it(folders, family, adapt, steps):
    if adapt == "lora":
        pytest.importorskip("peft", reason="needs the extra `lora`")
    with double_inside():
        network = load(folders[family], adapt=ADAPTS[adapt])
        assert network.batches
        random = torch.Generator().manual_seed(0)
        params = {
            n: p + 0.2 * torch.randn(p.shape, generator=random, dtype=p.dtype) if n in network.adapted else p
            for n, p in network.params().items()
        }
        maml, episodes = Maml(inner_lr=0.3, inner_steps=steps, linear="materialised"), [asking(0), asking(1, 3, 2)]
        grads = meta_gradient(maml, network, episodes[:1], params)
        for names in (network.adapted, params.keys() - network.adapted):
            error = slope_error(lambda p: query_loss(maml, network, episodes[:1], p), params, grads, sorted(names))
            assert error < 5e-6, names
        both = {n: g + meta_gradient(maml, network, episodes[1:], params)[n] for n, g in grads.items()}
        for settings in ({}, {"linear": "dual"}, {"second_order": "recomputed"}):
            other = maml.model_copy(update=settings)
            assert relative(meta_gradient(other, network, episodes, params), both) < 1e-12, settings
        near = Maml(inner_lr=0.3, inner_steps=steps, second_order="finite_difference")
        assert relative(meta_gradient(near, network, episodes, params), both) < 2e-3
        assert bool(grads[PROMPT].any()) if adapt == "prompt" else True
