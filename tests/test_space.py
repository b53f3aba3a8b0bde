"""Search spaces: what may be written, what is drawn, and that the shipped ones suit the shipped recipes."""

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raymeta import space
from raymeta.config import Run, recipes
from raymeta.errors import UserError
from raymeta.space import Distribution, Space


def rng(seed: int = 0) -> np.random.Generator:
    return np.random.default_rng(seed)


def drawn(written: dict, count: int = 400) -> list:
    distribution = Distribution.model_validate(written)
    numbers = rng()
    return [distribution.draw(numbers) for _ in range(count)]


def run(tmp_path, model, **sections):
    values = {
        "name": "spaced", "model": {"name": model}, "corpus": {"kind": "quickstart"}, "cluster": "local-debug",
        "tasks": {"kind": "entities", "ways": 3, "split": {"of": "task", "validation": 3, "test": 3}}, "storage": str(tmp_path),
    }  # fmt: skip
    return Run.of({**values, **sections})


def test_loguniform_spreads_evenly_over_magnitudes():
    found = np.log10(drawn({"loguniform": [1e-4, 1e-1]}))
    assert (found >= -4).all()
    assert (found <= -1).all()
    shares = np.histogram(found, bins=3, range=(-4, -1))[0] / len(found)
    assert shares == pytest.approx([1 / 3] * 3, abs=0.08)


def test_uniform_spreads_evenly():
    shares = np.histogram(drawn({"uniform": [-1.0, 2.0]}), bins=3, range=(-1, 2))[0] / 400
    assert shares == pytest.approx([1 / 3] * 3, abs=0.08)


def test_quniform_gives_multiples_of_its_step():
    assert set(drawn({"quniform": [0.0, 0.5, 0.1]})) == {0.0, 0.1, 0.2, 0.3, 0.4, 0.5}


def test_randint_leaves_its_high_end_out():
    assert set(drawn({"randint": [1, 4]})) == {1, 2, 3}


@pytest.mark.parametrize("kind", ["choice", "grid"])
def test_a_list_gives_each_of_its_values_whatever_they_are(kind):
    values = [1, "auto", None, {"kind": "maml", "order": 1}, [1, 2]]
    found = drawn({kind: values})
    assert all(value in found for value in values)
    assert all(value in values for value in found)


@given(low=st.floats(1e-9, 1.0), span=st.floats(1.01, 1e6), seed=st.integers(0, 2**32))
def test_a_drawn_number_has_few_digits_and_stays_within_its_bounds(low, span, seed):
    high = low * span
    value = Distribution.model_validate({"loguniform": [low, high]}).draw(rng(seed))
    assert low <= value <= high
    assert value in (low, high) or value == float(f"{value:.3e}")


@pytest.mark.parametrize(
    ("written", "says"),
    [
        ({"loguniform": [0.0, 1.0]}, "the low end must be greater than 0"),
        ({"loguniform": ["a", 1.0]}, r"give 2 numbers, \[low, high\]"),
        ({"uniform": [1.0, 1.0]}, "the low end must be less than the high end"),
        ({"uniform": [1.0]}, "give 2 numbers"),
        ({"quniform": [0, 1]}, r"give 3 numbers, \[low, high, step\]"),
        ({"quniform": [0, 1, 2]}, "the step must be greater than 0 and at most 1"),
        ({"randint": [0.5, 2]}, "give whole numbers"),
        ({"choice": []}, "give at least one value"),
        ({"grid": [1, 2, 1]}, "a value is given twice"),
        ({"loguniforn": [1, 2]}, "did you mean 'loguniform'"),
        ({"choice": 3}, "choice wants a list"),
        ([1, 2], "give one distribution, like"),
    ],
)
def test_a_distribution_that_makes_no_sense_is_told_with_its_setting(written, says, tmp_path):
    import yaml

    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump({"settings": {"algorithm.inner_lr": written}}), encoding="utf-8")
    with pytest.raises(UserError, match=says) as told:
        space.load(str(path))
    assert "algorithm.inner_lr" in str(told.value)


def test_numbers_are_read_as_yaml_1_2_reads_them(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("settings: {algorithm.inner_lr: {loguniform: [1e-3, 3e-1]}}", encoding="utf-8")
    assert space.load(str(path)).settings["algorithm.inner_lr"].values == (0.001, 0.3)


@pytest.mark.parametrize("name", space.spaces())
@pytest.mark.parametrize("recipe", recipes())
def test_every_shipped_space_suits_every_shipped_recipe_of_its_algorithms(name, recipe):
    os.environ.setdefault("RAYMETA_DATA", "data")
    run, searched = Run.load(recipe), space.load(name)
    assert searched.description
    if searched.algorithms is not None and run.algorithm.kind not in searched.algorithms:
        with pytest.raises(UserError, match=f"space {name}: it is for the algorithms"):
            searched.of(run, name)
        return
    if "cluster.workers" in searched.settings and run.outer.tasks_per_step < 2:
        with pytest.raises(UserError, match="1 tasks a step cannot be shared by 2 workers"):
            searched.of(run, name)
        return
    found = searched.of(run, name)
    assert found
    numbers = rng()
    for _ in range(20):
        changes = {path: distribution.draw(numbers) for path, distribution in found.items()}
        changed = run.changed(changes).model_dump(mode="json")
        for path, value in changes.items():
            place = changed
            for part in path.split("."):
                place = place[part]
            assert place == value if not isinstance(value, dict) else value.items() <= place.items()


def test_a_space_that_names_what_the_run_does_not_have_is_told(tmp_path, tiny_tokenizer_folder):
    wrong = Space.model_validate({"settings": {"algorithm.inner_lrr": {"uniform": [0.1, 0.2]}}})
    with pytest.raises(UserError, match=r"space mine: .*did you mean 'inner_lr'"):
        wrong.of(run(tmp_path, tiny_tokenizer_folder), "mine")


def test_a_space_whose_end_the_run_may_not_have_is_told_before_anything_runs(tmp_path, tiny_tokenizer_folder):
    wide = Space.model_validate({"settings": {"algorithm.inner_lr": {"uniform": [0.0, 0.2]}}})
    with pytest.raises(UserError, match=r"space wide: algorithm.inner_lr: give a number greater than 0"):
        wide.of(run(tmp_path, tiny_tokenizer_folder), "wide")


def test_a_whole_section_may_be_searched_and_then_a_setting_inside_it(tmp_path, tiny_tokenizer_folder):
    both = Space.model_validate(
        {
            "settings": {
                "algorithm.inner_lr": {"grid": [0.1, 0.2]},
                "algorithm": {"grid": [{"kind": "reptile"}, {"kind": "maml", "order": 1}]},
            }
        }
    )
    base = run(tmp_path, tiny_tokenizer_folder)
    assert list(both.of(base, "both")) == ["algorithm", "algorithm.inner_lr"]
    changed = base.changed({"algorithm": {"kind": "reptile"}, "algorithm.inner_lr": 0.2}).algorithm
    assert (changed.kind, changed.inner_lr) == ("reptile", 0.2)


def test_a_space_that_is_not_there_is_told_with_those_that_are():
    with pytest.raises(UserError, match=r"no space 'inner-lop'; did you mean 'inner-loop'\? \(spaces: "):
        space.load("inner-lop")
