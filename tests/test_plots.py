"""Plots show the numbers that they are given, with intervals, units and a title that says what is found."""

import sys

import numpy as np
import pytest

from raymeta import plots
from raymeta.errors import UserError

pytest.importorskip("matplotlib", reason="needs the extra `report`")


def estimate(mean, ci95=0.02):
    return {"mean": mean, "ci95": ci95}


def title(axes):
    return axes.get_title(loc="left").replace("\n", " ")


def test_a_learning_curve_shows_validation_with_its_band_and_says_the_best():
    steps = [{"step": s, "query_loss": 2.0 - 0.1 * s, "query_accuracy": 0.5} for s in range(1, 11)]
    checks = [
        {"step": s, "split": "validation", "accuracy": a, "accuracy_ci95": 0.05} for s, a in ((5, 0.7), (10, 0.6))
    ]
    left, right = plots.learning([*steps[:5], checks[0], *steps[5:], checks[1]], "accuracy").axes
    assert title(left) == "Query loss falls: 1.20 nats at the end"  # the mean of the last five
    assert title(right) == "Validation accuracy: 70.0 ± 5.0 % at step 5"
    assert (left.get_xlabel(), left.get_ylabel(), right.get_ylabel()) == (
        "outer step",
        "query loss (nats)",
        "accuracy (%)",
    )
    line = next(one for one in right.lines if "validation" in one.get_label())
    np.testing.assert_allclose(line.get_xydata(), [[5, 70], [10, 60]])
    np.testing.assert_allclose(right.collections[0].get_datalim(right.transData).intervaly, [55, 75])


def test_a_run_without_validation_or_without_a_step_has_a_curve_too():
    assert title(plots.learning([{"step": 1, "query_loss": 1.0}], "accuracy").axes[1]).endswith("nothing was validated")
    assert len(plots.learning([], "accuracy").axes) == 2


def test_adaptation_has_a_point_and_whiskers_for_each_number_of_inner_steps():
    found = {"meta-trained": [estimate(0.4), estimate(0.8)], "not meta-trained": [estimate(0.4), estimate(0.5)]}
    (axes,) = plots.adaptation(found, "entity_f1", "9 episodes").axes
    assert (
        title(axes)
        == "One inner step takes entity F1 from 40.0 to 80.0 % (meta-trained); from 40.0 to 50.0 % (not meta-trained)"
    )
    assert axes.get_ylabel() == "entity F1 (%), 95 % interval"
    heights = [container.lines[0].get_ydata().tolist() for container in axes.containers]
    np.testing.assert_allclose(heights, [[40, 80], [40, 50]])
    whiskers = axes.containers[0].lines[2][0].get_segments()
    np.testing.assert_allclose([w[:, 1] for w in whiskers], [[38, 42], [78, 82]])


def test_of_many_classes_the_weakest_are_shown_with_their_support():
    lines = [{"name": f"class {i}", "f1": i / 100, "support": 1000 + i} for i in range(60)]
    (axes,) = plots.classes(lines, "HWU64").axes
    assert title(axes) == "HWU64: F1 from 0 to 59 %; the 40 weakest of 60"
    assert [label.get_text() for label in axes.get_yticklabels()] == [f"class {i}" for i in range(40)]
    assert {"1000", "1039", "support"} <= {text.get_text() for text in axes.texts}
    np.testing.assert_allclose([bar.get_width() for bar in axes.patches], range(40))


def test_bars_leave_a_place_where_nothing_was_measured():
    series = {"ours": [estimate(0.5), estimate(0.7)], "theirs": [None, estimate(0.6)]}
    (axes,) = plots.bars(["a", "b"], series, "accuracy", "ours is first").axes
    np.testing.assert_allclose([bar.get_height() for bar in axes.patches], [50, 70, 60])
    assert [label.get_text() for label in axes.get_xticklabels()] == ["a", "b"]


def test_perplexity_is_drawn_on_a_logarithmic_axis():
    rows = [
        {"split": "validation", "step": s, "perplexity": p, "perplexity_ci95": [p - 1, p + 1]}
        for s, p in ((0, 500.0), (9, 12.3))
    ]
    (axes,) = plots.perplexity(rows, "mlm").axes
    assert (title(axes), axes.get_yscale()) == ("Pre-training (mlm): perplexity from 500 to 12.3", "log")


def test_a_long_title_takes_lines_and_stays_within_the_figure(tmp_path):
    made = plots.sizes(["5", "100"], {"ours": [estimate(0.5), estimate(0.7)]}, "accuracy", "a long title " * 12)
    plots.save(made, tmp_path / "plot.png")
    box = made.axes[0]._left_title.get_window_extent()
    assert (tmp_path / "plot.png").stat().st_size > 1000
    assert box.x0 >= 0
    assert box.x1 <= made.bbox.x1


def test_without_matplotlib_a_message_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(UserError, match=r"pip install 'raymeta\[report\]'"):
        plots.figure(1, 1)
