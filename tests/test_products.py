"""A layer's product is the same by whichever library computes it."""

import pytest
import torch

from raymeta import products


@pytest.mark.parametrize("biases", [0, 1, 3])
@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("tokens", [9, 40])
def test_onednn_gives_what_the_blas_gives(
    biases: int, turned: bool, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    random = torch.Generator().manual_seed(0)
    weight = torch.randn(1, 256, 512, generator=random)
    matrix = weight.mT if turned else weight
    x = torch.randn(3, tokens, matrix.shape[1], generator=random)
    bias = torch.randn(biases, matrix.shape[2], generator=random) if biases else None
    wanted = x.double() @ matrix.double() + (0 if bias is None else bias.double().unsqueeze(1))
    used = []

    def noted(*given: object) -> torch.Tensor:
        used.append(given)
        return by_onednn(*given)

    by_onednn = products._ONEDNN
    if by_onednn is not None:
        monkeypatch.setattr(products, "_ONEDNN", noted)
    found = products.times(x, matrix, bias)
    assert torch.allclose(found.double(), wanted, atol=1e-4)
    assert bool(used) == (by_onednn is not None and 3 * tokens * 256 * 512 >= products._ONEDNN_FROM)
    monkeypatch.setattr(products, "_ONEDNN", None)
    assert torch.allclose(products.times(x, matrix, bias), found, atol=1e-4)
    assert products.times(x.double(), matrix.double()).dtype == torch.float64
