"""Reports of sweeps: what decides against each setting, all settings at once, and cost by cluster."""

import re

import numpy as np
import pytest

from raymeta import sweep_plots
from raymeta.config import Run
from raymeta.sweep import Sweep
from raymeta.sweep_plots import Dot, Scale
from raymeta.sweep_record import Record
from raymeta.sweep_report import report
from tests.mistakes import command, told

pytest.importorskip("matplotlib", reason="needs the extra `report`")

SPACE = {
    "settings": {
        "algorithm.inner_lr": {"loguniform": [1e-3, 0.3]},
        "algorithm.inner_steps": {"randint": [1, 6]},
        "algorithm.order": {"choice": [1, 2]},
        "outer.lr": {"uniform": [1e-5, 1e-3]},
    }
}
TRIALS = [  # inner_lr, inner_steps, order, outer.lr, how it ended, value
    (0.001, 1, 1, 2e-4, "finished", 0.42),
    (0.05, 2, 2, 4e-4, "finished", 0.71),
    (0.3, 5, 1, 6e-4, "stopped", 0.35),
    (0.01, 3, 2, 8e-4, "failed", None),
    (0.1, 4, 1, 1e-4, "finished", 0.66),
]


@pytest.fixture
def sweep_folder(tiny_tokenizer_folder, tmp_path):
    """A sweep of five runs on two clusters, as `raymeta tune` leaves it."""
    return left(tiny_tokenizer_folder, tmp_path, TRIALS)


def left(model, tmp_path, trials):
    """What a sweep with these trials leaves."""
    run = Run.of(
        {
            "name": "swept", "model": {"name": model}, "corpus": {"kind": "quickstart", "part": "intents"},
            "tasks": {"kind": "classification", "ways": 2, "split": {"of": "class", "train": 18, "validation": 8, "test": 10}},
            "storage": str(tmp_path / "results"), "cluster": "local-debug",
        }
    )  # fmt: skip
    sweep = Sweep.of({"run": run, "space": SPACE, "space_name": "mine", "trials": len(trials)})
    sweep.folder.mkdir(parents=True)
    (sweep.folder / "sweep.yaml").write_text(sweep.yaml(), encoding="utf-8")
    record = Record(sweep.folder / "trials.jsonl")
    for number, (inner_lr, inner_steps, order, lr, state, value) in enumerate(trials):
        point = {"algorithm.inner_lr": inner_lr, "algorithm.inner_steps": inner_steps, "algorithm.order": order, "outer.lr": lr}  # fmt: skip
        cluster = f"{tmp_path}/{('one', 'two')[number % 2]}.yaml"
        record.add("starts", trial=number, point=number, settings=point, cluster=cluster, folder=f"/r/{number}")
        if value is not None:
            record.add("row", trial=number, step=20, value=value, ci95=0.03, worker_s=10.0 + number, tasks_per_s=2.0 + number)  # fmt: skip
        record.add(state, trial=number, **({"message": "out of memory"} if state == "failed" else {}))
    return sweep.folder


def test_a_sweeps_report_has_what_it_found_its_plots_and_its_tables(sweep_folder, monkeypatch, capsys):
    status, out, message = command(["report", str(sweep_folder)], monkeypatch, capsys)
    assert (status, message) == (0, "")
    text = (sweep_folder / "report" / "report.md").read_text(encoding="utf-8")
    found = "Best accuracy 71.0 ± 3.0 % at inner_lr 0.05, inner_steps 2, order 2, outer.lr"
    assert found.replace("outer.lr", "lr 0.0004; worst of the finished 42.0 ± 3.0 %") in text
    assert "5 runs: 3 finished, 1 stopped, 1 failed" in text
    assert f"raymeta run {sweep_folder / 'best.yaml'}" in text
    assert "| one | 2 of 3 | 66.0 ± 3.0 | 4.00 | 36 | 12 |" in text
    assert "| two | 1 of 2 | 71.0 ± 3.0 | 3.00 | 11 | 11 |" in text
    assert "- run 3 failed: out of memory" in text
    assert text.index("| 1 | two | 0.05 |") < text.index("| 0 | one | 0.001 |")
    images = re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)
    assert images == ["settings.png", "parallel.png", "cost.png"]
    for name in images:
        assert (sweep_folder / "report" / name).read_bytes().startswith(b"\x89PNG")
    assert "one" in out
    assert "2 of 3" in out
    assert f"written to {sweep_folder / 'report' / 'report.md'}" in out


def test_a_sweeps_report_goes_where_it_is_told_and_a_sweep_is_reported_alone(
    sweep_folder, tmp_path, monkeypatch, capsys
):
    assert report(sweep_folder, tmp_path / "there")[1] == tmp_path / "there" / "report.md"
    status, message = told(["report", str(sweep_folder), str(tmp_path)], monkeypatch, capsys)
    assert status == 2
    assert "is a sweep's folder, and 2 are named; name it alone" in message


def test_a_sweep_of_which_nothing_came_has_no_report_but_a_message(
    tiny_tokenizer_folder, tmp_path, monkeypatch, capsys
):
    folder = left(tiny_tokenizer_folder, tmp_path, TRIALS[3:4])
    status, message = told(["report", str(folder)], monkeypatch, capsys)
    assert status == 2
    assert "none of its 1 runs has come to a value of metatrain.validation.accuracy yet" in message


def test_a_sweep_is_read_again_as_it_was_written(sweep_folder):
    from raymeta import yaml12

    again = Sweep.of(yaml12.read(sweep_folder / "sweep.yaml"))
    assert again.yaml() == (sweep_folder / "sweep.yaml").read_text(encoding="utf-8")
    assert (again.folder.name.rpartition("-")[0], str(again.judge)) == ("swept-mine", "metatrain.validation.accuracy")


SCALES = [
    Scale("inner_lr", log=True, ends=(1e-3, 0.1)),
    Scale("inner_steps", whole=True, ends=(1, 5)),
    Scale("order", options=("1", "2")),
]
DOTS = [
    Dot(0, "one", [1e-3, 1, 0], 40.0, 3.0, finished=True),
    Dot(1, "two", [1e-2, 3, 1], 70.0, 2.0, finished=True),
    Dot(2, "one", [1e-1, 5, 0], 30.0, 0.0, finished=False),
]


def titles(made):
    return [axes.get_title(loc="left").replace("\n", " ") for axes in made.axes]


def test_each_setting_has_a_panel_on_an_axis_of_its_own_kind():
    made = sweep_plots.against(DOTS, SCALES, "accuracy (%)", DOTS[1])
    assert titles(made) == ["inner_lr: best at 0.01", "inner_steps: best at 3", "order: best at 2"]
    rate, steps, order = made.axes
    assert [axes.get_xscale() for axes in made.axes] == ["log", "linear", "linear"]
    assert rate.get_xlabel() == "inner_lr (logarithmic)"
    assert [axes.get_ylabel() for axes in made.axes] == ["accuracy (%)"] * 3
    assert [t.get_text() for t in order.get_xticklabels()] == ["1", "2"]
    points = sorted(xy for group in steps.containers for xy in group.lines[0].get_xydata().tolist())
    assert points == [[1, 40], [3, 70], [5, 30]]
    open_ones = [group for group in steps.containers if group.lines[0].get_markerfacecolor() == "white"]
    assert [group.lines[0].get_xydata().tolist() for group in open_ones] == [[[5, 30]]]


def test_parallel_coordinates_lie_where_the_values_are_on_their_axes():
    (axes,) = sweep_plots.parallel(DOTS, SCALES, "accuracy (%)", DOTS[1], "found").axes
    lines = [line.get_ydata().tolist() for line in axes.lines if len(line.get_xdata()) == 4]
    np.testing.assert_allclose(sorted(lines), sorted([[0, 0, 0, 0.25], [0.5, 0.5, 1, 1], [1, 1, 0, 0]]), atol=1e-9)
    assert [t.get_text() for t in axes.get_xticklabels()] == ["inner_lr\n(logarithmic)", "inner_steps", "order", "accuracy (%)"]  # fmt: skip
    labels = {t.get_text() for t in axes.texts}
    assert {"0.001", "0.01", "0.1", "5", "2", "70", "30"} <= labels


def test_costs_stand_side_by_side_with_totals_and_medians():
    left, right = sweep_plots.costs({"one": [(10.0, 2.0, True), (6.0, 4.0, False)], "two": [(30.0, 3.0, True)]}).axes
    assert titles(left.figure) == [
        "Cost: 16 worker-s on one; 30 worker-s on two",
        "Throughput: 3 tasks/s on one; 3 tasks/s on two",
    ]
    assert [t.get_text() for t in left.get_xticklabels()] == ["one", "two"]
    assert (left.get_ylabel(), right.get_ylabel()) == (
        "worker-seconds a run (line: mean of the finished)",
        "tasks/s (line: median of the runs)",
    )
