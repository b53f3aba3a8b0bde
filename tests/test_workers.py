"""Deterministic runs: operations sum in the same order, and what has no such form is named."""

import pytest
import torch

from raymeta.workers import summing_in_order


@pytest.mark.parametrize("exact", [True, False])
def test_operations_are_deterministic_for_a_while_where_asked(exact):
    before = torch.are_deterministic_algorithms_enabled()
    with summing_in_order(exact):
        assert torch.are_deterministic_algorithms_enabled() == exact
    assert torch.are_deterministic_algorithms_enabled() == before


def test_the_state_before_comes_back_after_an_error():
    with pytest.raises(ZeroDivisionError), summing_in_order(True):
        raise ZeroDivisionError
    assert not torch.are_deterministic_algorithms_enabled()
