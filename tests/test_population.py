"""Population-based training without a cluster: who takes over from whom, with which settings, and what a run takes."""

import numpy as np
import pytest
import torch

from raymeta import checkpoint, population
from raymeta.config import Run
from raymeta.errors import UserError
from raymeta.space import Distribution
from raymeta.stages.metatrain import finished, metatrain
from raymeta.sweep import Sweep
from raymeta.sweep_record import Record, Trial
from raymeta.track import rows

SPACE = {"settings": {"algorithm.inner_lr": {"loguniform": [1e-3, 0.3]}}}
LR = {"algorithm.inner_lr": Distribution.model_validate({"loguniform": [1e-3, 0.3]})}


@pytest.fixture(scope="module")
def run(tiny_tokenizer_folder, tmp_path_factory):
    """A run of six steps in this process."""
    return Run.of(
        {
            "name": "small", "model": {"name": tiny_tokenizer_folder}, "corpus": {"kind": "quickstart", "part": "intents"},
            "tasks": {"kind": "classification", "ways": 2, "shots": 1, "queries": 2, "split": {"of": "class", "train": 18, "validation": 8, "test": 10}},
            "outer": {"steps": 6, "tasks_per_step": 2, "lr": 1e-3}, "validation": {"every": 2, "episodes": 6},
            "storage": str(tmp_path_factory.mktemp("results")), "cluster": "local-debug",
        }
    )  # fmt: skip


def sweep(run, **values):
    return Sweep.of({"run": run, "space": SPACE, "space_name": "mine", "scheduler": "pbt", "trials": 4, **values})


def member(number, now, state="paused", lr=0.1):
    return Trial(number, number, {"algorithm.inner_lr": lr}, "local", f"/r/{number}", state, 2, now, now=now)


# a run that pauses


def files(result):
    return {p.name: p.read_bytes() for p in sorted(result.last.folder.iterdir()) if p.suffix == ".safetensors"}


def told(run):
    timed = ("tasks_per_s", "step_s", "wait_s", "validation_s")
    return [{k: v for k, v in row.items() if k not in timed} for row in rows(run.folder / "metrics.jsonl")]


def test_a_run_that_pauses_ends_as_one_that_does_not(run):
    paused, plain = run.changed({"name": "paused"}), run.changed({"name": "plain"})
    assert metatrain(paused, until=4).last.step == 4
    assert finished(paused) is None
    assert metatrain(paused, until=4).last.step == 4
    assert files(metatrain(paused)) == files(metatrain(plain))
    assert told(paused) == told(plain)


def test_a_run_that_takes_over_begins_with_what_the_other_had_and_goes_on_by_its_own_settings(run):
    donor = run.changed({"name": "donor"})
    metatrain(donor, until=4)
    mine = donor.changed({"name": "mine", "algorithm.inner_lr": 0.2})
    population.took_over(donor.folder, mine, 4)
    metatrain(donor)  # what was taken is not touched by what the donor does then
    root = mine.folder / "checkpoints"
    taken = checkpoint.newest(root)
    assert taken.step == 4
    assert taken.state["best"]["step"] in (2, 4)
    assert checkpoint.best(root).step == taken.state["best"]["step"]
    assert [row["step"] for row in told(mine)] == [1, 2, 2, 3, 4, 4]

    population.took_over(donor.folder, mine, 4)  # done: it stays as it is
    result = metatrain(mine)
    assert [row["step"] for row in told(mine)] == [1, 2, 2, 3, 4, 4, 5, 6, 6]
    same = donor.changed({"name": "same"})
    population.took_over(donor.folder, same, 4)
    assert files(metatrain(same)) == files(finished(donor))
    changed = [not torch.equal(a, b) for a, b in zip(result.last.params().values(), finished(donor).last.params().values(), strict=True)]  # fmt: skip
    assert any(changed)


def test_in_place_of_a_damaged_checkpoint_the_one_before_is_taken_over(run, capsys):
    donor = run.changed({"name": "damaged", "save.every": 2})
    metatrain(donor, until=4)

    def damage(step):
        path = donor.folder / "checkpoints" / f"step_{step:06d}" / "params.safetensors"
        path.write_bytes(path.read_bytes()[:-1])

    damage(4)
    mine = donor.changed({"name": "heir"})
    population.took_over(donor.folder, mine, 4)
    assert "does not match its checksum" in capsys.readouterr().out
    assert checkpoint.newest(mine.folder / "checkpoints").step == 2
    assert [row["step"] for row in told(mine)] == [1, 2, 2]
    damage(2)
    other = donor.changed({"name": "other"})
    with pytest.raises(UserError, match="no checkpoint is whole, and other was to take over the one of step 4"):
        population.took_over(donor.folder, other, 4)
    assert not other.folder.exists()


# who takes over


def test_the_worst_fifth_takes_over_from_the_best_fifth():
    members = [member(n, 0.1 * n, lr=0.01 * (n + 1)) for n in range(10)]
    found = population.moves(members, LR, 2, 0, False)
    assert [m["trial"] for m in found] == [0, 1]
    assert {m["donor"] for m in found} <= {8, 9}
    assert [m["trial"] for m in population.moves(members, LR, 2, 0, True)] == [8, 9]
    assert found == population.moves(members[::-1], LR, 2, 0, False)
    assert all(found != population.moves(members, LR, *other, False) for other in ((4, 0), (2, 1)))
    for move in found:
        assert move["settings"]["algorithm.inner_lr"] != members[move["donor"]].settings["algorithm.inner_lr"]


@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_of_a_small_population_one_takes_over(count):
    found = population.moves([member(n, float(n)) for n in range(count)], LR, 2, 0, False)
    assert [(m["trial"], m["donor"]) for m in found] == [(0, count - 1)]


def test_whoever_failed_or_has_no_finite_value_takes_over():
    members = [member(0, 0.9), member(1, float("nan")), member(2, 0.5, "failed"), member(3, None), member(4, 0.1)]
    found = population.moves(members, LR, 2, 0, False)
    assert [(m["trial"], m["donor"]) for m in found] == [(n, 0) for n in (1, 2, 3, 4)]


def test_a_population_that_came_to_nothing_is_told():
    lost = [member(n, None, "failed") for n in range(3)]
    lost[1].message = "out of memory"
    with pytest.raises(UserError, match="none of the 3 members has a finite value at step 2; the last said: out of memory"):  # fmt: skip
        population.moves(lost, LR, 2, 0, False)


# how settings change


def drawn(written, value, count=400):
    distribution = Distribution.model_validate(written)
    return [population.perturbed(distribution, value, np.random.default_rng(n)) for n in range(count)]


def test_a_number_is_multiplied_or_drawn_anew_and_stays_within_its_bounds():
    found = drawn({"loguniform": [1e-3, 0.3]}, 0.1)
    shares = {v: found.count(v) / len(found) for v in (0.08, 0.12)}
    assert all(0.3 < share < 0.45 for share in shares.values())
    assert 0.17 < 1 - sum(shares.values()) < 0.33
    assert all(1e-3 <= v <= 0.3 for v in found)
    assert 0.3 in drawn({"uniform": [0.0, 0.3]}, 0.29)
    assert max(drawn({"uniform": [0.0, 0.3]}, 0.29)) == 0.3


def test_whole_numbers_move_by_one_at_least_and_lists_to_the_next_value():
    near = {v for v in drawn({"randint": [1, 6]}, 2) if drawn({"randint": [1, 6]}, 2).count(v) > 100}
    assert near == {1, 3}
    assert set(drawn({"randint": [1, 6]}, 5)) == {1, 2, 3, 4, 5}
    assert all(v in (16, 24) or 1 <= v < 100 for v in drawn({"randint": [1, 100]}, 20))
    listed = drawn({"choice": ["a", "b", "c", "d"]}, "a")
    assert listed.count("b") > 120
    assert listed.count("a") > 120  # there is none before it
    assert all(round(v / 0.05, 6) % 1 == 0 for v in drawn({"quniform": [0.0, 1.0, 0.05]}, 0.5))


# what is refused before anything starts


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"trials": 1}, "pbt compares runs, and trials is 1"),
        ({"clusters": ["local", "local-debug"]}, "pbt has one population, on one cluster"),
        ({"objective": "evaluate.accuracy"}, "pbt compares meta-training on its way"),
        ({"interval_steps": 3}, "interval_steps: 3 is no multiple of 2"),
        ({"interval_steps": 6}, "interval_steps: 6 leaves nothing to take over in a run of 6 steps"),
        ({"space": {"settings": {"tasks.shots": {"choice": [1, 2]}}}}, r"tasks\.shots cannot change once a run has begun"),
        ({"space": {"settings": {"outer.steps": {"choice": [6, 8]}}}}, r"outer\.steps cannot change once a run has begun"),
        ({"run": {"algorithm": {"kind": "meta_sgd"}}}, "the run's algorithm learns its inner rates"),
        ({"run": {"algorithm": {"kind": "maml", "learn": "layer"}}}, "the run's algorithm learns its inner rates"),
    ],
)  # fmt: skip
def test_what_a_population_cannot_do_is_told(values, says, run):
    changed = run.changed(values.pop("run", {}))
    with pytest.raises(UserError, match=says):
        sweep(changed, **values).check()


def test_a_population_of_another_size_is_another_sweep(run):
    assert sweep(run).folder != sweep(run, trials=5).folder
    assert sweep(run).folder == sweep(run, interval_steps=2).folder != sweep(run, interval_steps=4).folder


# what is kept


def test_a_record_gives_a_member_that_took_over_the_others_past(tmp_path):
    record = Record(tmp_path / "trials.jsonl")
    for number in (0, 1):
        record.add("starts", trial=number, point=number, settings={"lr": number}, cluster="here", folder=f"/r/{number}")
        record.add("row", trial=number, step=2, value=0.5 - number / 4, now=0.5 - number / 4, worker_s=3.0 + number)
        record.add("paused", trial=number)
    record.add("round", step=2, moves=[{"trial": 1, "donor": 0, "settings": {"lr": 7}, "folder": "/r/1-from2"}])
    record.add("starts", trial=1, point=1, settings={"lr": 7}, cluster="here", folder="/r/1-from2")
    record.add("row", trial=1, step=4, value=0.9, now=0.9, worker_s=6.0)
    record.add("finished", trial=1)
    kept, moved = record.trials().values()
    assert (kept.paused, kept.schedule, kept.state) == (2, [(0, {"lr": 0})], "paused")
    assert moved.path == [(2, 0.5), (4, 0.9)]
    assert moved.schedule == [(0, {"lr": 0}), (2, {"lr": 7})]
    assert (moved.donor, moved.folder, moved.paused, moved.state) == ("/r/0", "/r/1-from2", 4, "finished")
    assert population.schedule_text(moved) == "lr 0; from step 2: lr 7"
