"""The meta-step's benchmark: what it compares are the same gradients."""

import pytest

from tests.benchmarks.meta_step import EXACT, measured, parser


@pytest.mark.parametrize("variants", [["unrolled", "recomputed", "dual", "packed"], ["head", "first_order"]])
def test_gradients_are_those_of_a_plain_loop(variants: list[str]) -> None:
    told = "--model tiny --data full --length 8 --tasks 2 --steps 2 --rounds 1 --no-memory --no-time --peers plain"
    rows = {row["variant"]: row for row in measured(parser().parse_args([*told.split(), "--variants", *variants]))}
    assert rows.keys() == {*variants, *(name for name in rows if name.startswith("plain"))}
    assert all(0 < rows[name]["error"] <= EXACT for name in variants)
