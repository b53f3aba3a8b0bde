"""Searchers: which points they give, that none comes twice, and that they go on where they were."""

import math

import pytest

from raymeta.errors import UserError
from raymeta.searchers import SEARCHERS, Grid, Optuna, Random
from raymeta.space import Distribution

CONTINUOUS = {
    "algorithm.inner_lr": {"loguniform": [1e-4, 1e-1]},
    "algorithm.inner_steps": {"randint": [1, 9]},
    "algorithm.l2": {"choice": [0.0, 1e-4, 1e-2]},
}
SMALL = {"model.head": {"choice": ["zero", "prototype"]}, "tasks.shots": {"randint": [1, 4]}}


def settings(written: dict) -> dict[str, Distribution]:
    return {path: Distribution.model_validate(value) for path, value in written.items()}


def points(searcher, count):
    return [searcher.point(number) for number in range(count)]


def test_random_points_are_decided_by_the_seed_and_their_number():
    first, again, other = (points(Random(settings(CONTINUOUS), seed), 30) for seed in (3, 3, 4))
    assert first == again
    assert first != other
    assert Random(settings(CONTINUOUS), 3).point(17) == first[17]
    assert all(list(point) == list(CONTINUOUS) for point in first)


@pytest.mark.parametrize("name", SEARCHERS)
def test_no_point_comes_twice_and_a_small_space_comes_to_its_end(name):
    if name == "optuna":
        pytest.importorskip("optuna")
    searcher = SEARCHERS[name](settings(SMALL), 0)
    found = []
    for number in range(6):
        found.append(searcher.point(number))
        searcher.tell(number, float(number))
    assert all(point is not None for point in found)
    assert all(point not in found[:i] for i, point in enumerate(found))
    assert searcher.point(6) is None


def test_grid_goes_through_every_combination_the_last_setting_first():
    found = points(Grid(settings(SMALL), 0), 7)
    assert found[:6] == [{"model.head": h, "tasks.shots": s} for h in ("zero", "prototype") for s in (1, 2, 3)]
    assert found[6] is None


def test_random_goes_through_grids_in_turn_and_draws_the_rest():
    searcher = Random(settings({"tasks.shots": {"grid": [1, 5]}, "algorithm.inner_lr": {"uniform": [0.0, 1.0]}}), 0)
    found = points(searcher, 6)
    assert [point["tasks.shots"] for point in found] == [1, 5] * 3
    assert len({point["algorithm.inner_lr"] for point in found}) == 6


def test_optuna_comes_closer_to_the_best_than_chance_does():
    pytest.importorskip("optuna")

    def value(point):
        return -((math.log10(point["algorithm.inner_lr"]) + 2.5) ** 2) - 0.1 * abs(point["algorithm.inner_steps"] - 5)

    def last_ten(kind, seed):
        searcher = kind(settings(CONTINUOUS), seed)
        found = []
        for number in range(40):
            found.append(value(searcher.point(number)))
            searcher.tell(number, found[-1])
        return sum(found[-10:]) / 10

    assert all(last_ten(Optuna, seed) > last_ten(Random, seed) for seed in range(3))


def test_optuna_goes_on_with_what_is_known():
    pytest.importorskip("optuna")
    made = Random(settings(CONTINUOUS), 0)
    searcher = Optuna(settings(CONTINUOUS), 0)
    for number in range(20):
        searcher.known(made.point(number), -abs(math.log10(made.point(number)["algorithm.inner_lr"]) + 3.5))
    pending = made.point(20)
    searcher.known(pending)
    searcher.tell(20, -1.0)
    assert points(searcher, 21) == points(made, 21)
    found = []
    for number in range(21, 31):
        found.append(searcher.point(number)["algorithm.inner_lr"])
        searcher.tell(number, -abs(math.log10(found[-1]) + 3.5))
    # 10 ^ -3.5 is a sixth of the way up: chance would put 3 of 10 below 10 ^ -3
    assert sum(lr < 1e-3 for lr in found) >= 6


def test_a_space_that_a_searcher_cannot_go_through_is_told_with_the_remedy():
    with pytest.raises(UserError, match=r"algorithm.inner_lr \(loguniform\).* use random or optuna"):
        Grid(settings(CONTINUOUS), 0)
    pytest.importorskip("optuna")
    with pytest.raises(UserError, match=r"does not go through a grid \(tasks.shots\); write choice"):
        Optuna(settings({"tasks.shots": {"grid": [1, 5]}}), 0)
