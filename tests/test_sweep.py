"""Sweeps without a cluster: what is refused, what is judged, and what is kept."""

import json

import pytest

from raymeta import nodes
from raymeta.config import Run
from raymeta.errors import UserError
from raymeta.objective import Objective, cost
from raymeta.pipeline import run_to
from raymeta.stages.finetune import finished as finetuned
from raymeta.stages.metatrain import metatrain
from raymeta.sweep import Sweep
from raymeta.sweep_record import Record, best, by_cluster, table
from raymeta.track import rows
from tests.pretrained import run_of as pretraining

SPACE = {"settings": {"algorithm.inner_lr": {"loguniform": [1e-3, 0.3]}}}


@pytest.fixture(scope="module")
def run(tiny_tokenizer_folder, tmp_path_factory):
    """A run of six steps in this process."""
    return Run.of(
        {
            "name": "small", "model": {"name": tiny_tokenizer_folder}, "corpus": {"kind": "quickstart", "part": "intents"},
            "tasks": {"kind": "classification", "ways": 2, "shots": 1, "queries": 2, "split": {"of": "class", "train": 18, "validation": 8, "test": 10}},
            "outer": {"steps": 6, "tasks_per_step": 2}, "validation": {"every": 2, "episodes": 6},
            "storage": str(tmp_path_factory.mktemp("results")), "cluster": "local-debug",
        }
    )  # fmt: skip


@pytest.fixture(scope="module")
def walked(run):
    """The same, meta-trained."""
    metatrain(run)
    return run


def sweep(run, **values):
    return Sweep.of({"run": run, "space": SPACE, "space_name": "mine", **values})


# what a run is judged by


def test_by_itself_a_run_is_judged_by_validation_after_the_last_stage_that_trains(run):
    assert str(Objective.of("", run)) == "metatrain.validation.accuracy"


def test_a_validation_metric_is_that_of_the_best_checkpoint_so_far(walked):
    found = [row for row in rows(walked.folder / "metrics.jsonl") if row.get("split") == "validation"]
    readings = Objective.of("metatrain.validation.accuracy", walked).readings(walked)
    assert [r.step for r in readings] == [2, 4, 6]
    so_far = [max(row["accuracy"] for row in found[: i + 1]) for i in range(3)]
    assert [r.value for r in readings] == so_far
    best_row = next(row for row in found if row["accuracy"] == so_far[-1])
    assert readings[-1].ci95 == best_row["accuracy_ci95"]
    other = Objective.of("metatrain.validation.macro_f1", walked).readings(walked)[-1]
    assert other.value == best_row["macro_f1"]


def test_a_column_of_training_is_judged_by_the_median_of_its_rows(walked):
    found = [row["query_loss"] for row in rows(walked.folder / "metrics.jsonl") if "split" not in row]
    readings = Objective.of("metatrain.query_loss", walked).readings(walked)
    assert [r.value for r in readings[:3]] == [found[0], sum(found[:2]) / 2, sorted(found[:3])[1]]


def test_what_a_run_cost_is_the_time_of_its_steps_and_validations_on_every_worker(walked):
    found = rows(walked.folder / "metrics.jsonl")
    whole = sum(row.get("step_s", 0) + row.get("validation_s", 0) for row in found)
    assert whole > sum(row.get("step_s", 0) for row in found) > 0
    assert cost(walked, "metatrain").worker_s == pytest.approx(whole)
    assert cost(walked.changed({"cluster": {"workers": 2}}), "metatrain").worker_s == pytest.approx(2 * whole)


@pytest.fixture(scope="module")
def tuned(walked):
    """The same, fine-tuned on the intents that it has not seen."""
    run = walked.changed({"finetune": {"epochs": 2, "shots": 2}})
    assert run.folder == walked.folder
    assert run_to(run, "finetune") is None
    return run


def test_by_itself_a_run_that_fine_tunes_is_judged_by_its_validation_after_that(tuned):
    objective = Objective.of("", tuned)
    assert str(objective) == "finetune.validation.accuracy"
    (result,) = finetuned(tuned)
    assert objective.at_the_end(tuned, None).value == result.found["validation"]["accuracy"]["mean"]
    test = Objective.of("finetune.test.macro_f1", tuned).at_the_end(tuned, None)
    assert test.value == result.found["test"]["macro_f1"]["mean"]
    assert cost(tuned, "finetune").worker_s > cost(tuned, "metatrain").worker_s
    with pytest.raises(UserError, match=r"finetune.test has no 'f1'.* \(there are: .*macro_f1"):
        Objective.of("finetune.test.f1", tuned).at_the_end(tuned, None)
    with pytest.raises(UserError, match="asha stops runs by what they come to on the way"):
        sweep(tuned, scheduler="asha").check()


def test_an_evaluation_is_judged_by_the_meta_trained_models_row(walked):
    evaluation = run_to(walked.changed({"evaluate.episodes": 4}), "evaluate")
    reading = Objective.of("evaluate.macro_f1", walked).at_the_end(walked, evaluation)
    assert (reading.value, reading.ci95) == tuple(evaluation["metrics"]["macro_f1"].values())


def test_pre_training_is_judged_by_its_newest_validation(tmp_path):
    run = pretraining("bert", tmp_path)
    run_to(run, "pretrain")
    found = [row for row in rows(run.pretrained / "metrics.jsonl") if row.get("split") == "validation"]
    objective = Objective.of("pretrain.validation.loss", run)
    assert [(r.step, r.value) for r in objective.readings(run)] == [(row["step"], row["loss"]) for row in found]
    assert objective.less_is_better
    assert found[-1]["step"] == objective.steps(run) == run.pretrain.steps
    assert cost(run, "pretrain").worker_s > 0


@pytest.mark.parametrize(
    ("objective", "says"),
    [
        ("metatrian.validation.accuracy", "did you mean 'metatrain'"),
        ("metatrain", "names no metric"),
        ("metatrain.validation", "names no metric"),
        ("finetune.validation.accuracy", "names no stage of the run"),
    ],
)
def test_an_objective_that_the_run_does_not_have_is_told(objective, says, run):
    with pytest.raises(UserError, match=says):
        sweep(run, objective=objective).check()


def test_a_metric_that_no_row_has_is_told_with_those_there_are(walked):
    with pytest.raises(UserError, match=r"no 'acuracy'; did you mean 'accuracy'\? \(there are: accuracy, macro_f1"):
        Objective.of("metatrain.validation.acuracy", walked).readings(walked)


def test_an_objective_of_validation_needs_validation(run):
    with pytest.raises(UserError, match=r"validation.every is 0"):
        sweep(run.changed({"validation.every": 0})).check()


@pytest.mark.parametrize(
    ("column", "less"),
    [("query_loss", True), ("perplexity", True), ("step_s", True), ("tasks_per_s", False), ("query_accuracy", False)],
)
def test_less_is_better_for_losses_and_durations(column, less, run):
    assert sweep(run, objective=f"metatrain.{column}").minimize is less
    assert sweep(run, objective=f"metatrain.{column}", mode="max").minimize is False


# what is refused before anything starts


@pytest.mark.parametrize(
    ("values", "says"),
    [
        ({"scheduler": "pb2"}, "scheduler: give 'none', 'asha' or 'pbt', not 'pb2'"),
        ({"searcher": "tpe"}, "searcher: give 'random', 'grid' or 'optuna', not 'tpe'"),
        ({"trials": 0}, "trials: give at least 1"),
        ({"scheduler": "asha", "objective": "evaluate.accuracy"}, "asha stops runs by what they come to on the way"),
        ({"clusters": ["local", "local"]}, "a cluster is named twice"),
        ({"clusters": ["lokal"]}, "did you mean 'local'"),
        ({"clusters": ["local"], "space": {"settings": {"cluster": {"grid": ["local"]}}}}, "searches the cluster itself"),
        ({"space": {"settings": {"cluster": {"grid": ["local", "node-8gpu"]}}}, "run": {"outer.tasks_per_step": 8}}, "different addresses"),
    ],
)  # fmt: skip
def test_a_sweep_that_would_not_work_is_told(values, says, run):
    changed = run.changed(values.pop("run", {}))
    with pytest.raises(UserError, match=says):
        sweep(changed, **values).check()


def test_runs_on_different_clusters_have_different_folders_and_else_the_same_settings(run):
    several = sweep(run, clusters=["local", "local-debug"])
    one, two = (several.run_of({"algorithm.inner_lr": 0.1}, name) for name in several.clusters)
    assert one.folder != two.folder
    assert one.hash() == two.hash()
    assert one.name == "small-local"
    searched = sweep(run, space={"settings": {"cluster.workers": {"grid": [1, 2]}}})
    assert [searched.run_of({"cluster.workers": n}, "").name for n in (1, 2)] == ["small-workers1", "small-workers2"]
    assert sweep(run).run_of({"algorithm.inner_lr": 0.1}, "").folder == run.changed({"algorithm.inner_lr": 0.1}).folder


def test_a_sweeps_folder_changes_with_what_it_searches_and_not_with_how_long(run):
    first = sweep(run).folder
    assert sweep(run, trials=99, budget_s=5, max_concurrent=3).folder == first
    assert sweep(run, searcher="grid").folder != first
    assert sweep(run.changed({"seed": 1})).folder != first
    assert sweep(run, objective="metatrain.validation.accuracy").folder == first


# how much has room


@pytest.mark.parametrize(
    ("bundle", "count", "placement", "machines", "at_once"),
    [
        ({"CPU": 1}, 2, "PACK", [{"CPU": 4}], 2),
        ({"CPU": 1}, 2, "PACK", [{"CPU": 1}, {"CPU": 1}, {"CPU": 1}], 1),
        ({"CPU": 2}, 1, "PACK", [{"CPU": 3}, {"CPU": 3}], 2),
        ({"CPU": 2}, 1, "PACK", [{"CPU": 1}] * 8, 0),
        ({"CPU": 1, "GPU": 1}, 4, "PACK", [{"CPU": 64, "GPU": 8}], 2),
        ({"CPU": 0.1}, 1, "PACK", [{"CPU": 0.3}], 3),
        ({"CPU": 1}, 2, "STRICT_PACK", [{"CPU": 3}, {"CPU": 1}], 1),
        ({"CPU": 1}, 2, "STRICT_SPREAD", [{"CPU": 8}, {"CPU": 1}], 1),
        ({"CPU": 1}, 2, "STRICT_SPREAD", [{"CPU": 8}], 0),
        ({"CPU": 1, "tpu": 1}, 1, "PACK", [{"CPU": 8}], 0),
    ],
)
def test_what_has_room_is_counted_by_machine(bundle, count, placement, machines, at_once):
    assert nodes.groups(bundle, count, placement, machines) == at_once


# what is kept


def start(number, **values):
    common = {
        "trial": number,
        "point": number,
        "settings": {"algorithm.inner_lr": 0.1 * (number + 1)},
        "cluster": "local",
        "folder": f"/r/{number}",
    }
    return {**common, **values}


def test_a_record_gives_each_trial_as_its_events_left_it(tmp_path):
    record = Record(tmp_path / "trials.jsonl")
    record.add("starts", **start(0))
    record.add("starts", **start(1))
    for step, value in ((5, 0.4), (10, 0.5)):
        record.add("row", trial=0, step=step, value=value, ci95=0.1, worker_s=step / 2, tasks_per_s=3.0)
    record.add("finished", trial=0)
    record.add("row", trial=1, step=5, value=0.3, ci95=0.1, worker_s=9.0, tasks_per_s=3.0)
    with record.path.open("a") as file:
        file.write('{"event": "row", "trial": 1, "st')  # the process was ended here
    record.add("starts", **start(1))
    record.add("row", trial=1, step=5, value=0.3, ci95=0.1, worker_s=9.0, tasks_per_s=3.0)
    record.add("stopped", trial=1)
    record.add("starts", **start(2))
    record.add("failed", trial=2, message="out of memory")
    found = record.trials()
    assert [t.state for t in found.values()] == ["finished", "stopped", "failed"]
    assert (found[0].step, found[0].value, found[0].worker_s, found[0].path) == (10, 0.5, 5.0, [(5, 0.4), (10, 0.5)])
    assert found[1].path == [(5, 0.3)]
    assert found[2].message == "out of memory"
    assert all(json.loads(line) for line in record.path.read_text().splitlines() if line.endswith("}"))


def trials(tmp_path, *values):
    record = Record(tmp_path / "trials.jsonl")
    for number, (state, value, cluster) in enumerate(values):
        record.add("starts", **start(number, cluster=cluster))
        record.add(
            "row", trial=number, step=10, value=value, ci95=0.01, worker_s=10.0 * (number + 1), tasks_per_s=number + 1.0
        )
        record.add(state, trial=number)
    return list(record.trials().values())


def test_the_best_trial_is_the_best_of_those_that_finished(tmp_path):
    found = trials(
        tmp_path, ("finished", 0.5, "a"), ("stopped", 0.9, "a"), ("finished", 0.6, "a"), ("finished", float("nan"), "a")
    )
    assert best(found, minimize=False).number == 2
    assert best(found, minimize=True).number == 0
    assert best(found[1:2], minimize=False) is None


def test_a_table_has_a_row_a_trial_the_best_first_and_clusters_side_by_side(tmp_path, run):
    found = trials(tmp_path, ("finished", 0.5, "one"), ("stopped", 0.4, "one"), ("finished", 0.6, "two"))
    judge = Objective.of("", run)
    lines = table(found, judge, False).splitlines()
    assert lines[0].split() == ["trial", "cluster", "inner_lr", "step", "accuracy", "worker-s", "state"]
    assert [line.split()[0] for line in lines[1:]] == ["2", "0", "1"]
    assert "60.0 ± 1.0" in lines[1]
    assert table(found, judge, False, limit=1).splitlines()[-1] == "  and 2 more"
    rows_of = [line.split() for line in by_cluster(found, judge, False).splitlines()[1:]]
    # cluster, finished of all, best with its interval, tasks/s, worker-seconds of all, of a finished one
    assert rows_of == [
        ["one", "1", "of", "2", "50.0", "±", "1.0", "1.50", "30", "10"],
        ["two", "1", "of", "1", "60.0", "±", "1.0", "3.00", "30", "30"],
    ]
