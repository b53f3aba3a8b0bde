"""Reports: the tables of runs, plots beside them, and what each inner step does."""

import json
import re
import shutil

import pytest

from raymeta import checkpoint
from raymeta.config import Run
from raymeta.errors import UserError
from raymeta.report import report
from raymeta.stages.adaptation import by_step
from raymeta.supervised import classification_report
from tests.mistakes import command, told

pytest.importorskip("matplotlib", reason="needs the extra `report`")


@pytest.fixture
def run_folder(trained_run, tmp_path):
    """A copy of a trained run's folder, elsewhere."""
    return shutil.copytree(trained_run, tmp_path / "elsewhere" / trained_run.name)


def shown(text):
    """The files of the images of a report."""
    return re.findall(r"!\[[^\]]+\]\(([^)]+)\)", text)


def test_a_report_of_a_run_has_its_table_its_plots_and_each_inner_step(run_folder, monkeypatch, capsys):
    status, out, message = command(["report", str(run_folder), "--episodes", "4"], monkeypatch, capsys)
    assert (status, message) == (0, "")
    text = (run_folder / "report" / "report.md").read_text(encoding="utf-8")
    evaluation = json.loads((run_folder / "evaluation.json").read_text())
    accuracy = evaluation["metrics"]["accuracy"]
    number = f"{100 * accuracy['mean']:.1f} ± {100 * accuracy['ci95']:.1f}"
    assert f"| meta-trained | {number} |" in text
    assert number in out
    assert [name.removeprefix(run_folder.name) for name in shown(text)] == [
        "-learning.png",
        "-adaptation-classification.png",
    ]
    for name in shown(text):
        assert (run_folder / "report" / name).read_bytes().startswith(b"\x89PNG")
    assert f"written to {run_folder / 'report' / 'report.md'}" in out
    parts = json.loads((run_folder / "adaptation.json").read_text())["parts"]
    for row in ("metrics", "untrained"):  # the same episodes, adapted alike
        assert parts[0][row][-1] == pytest.approx(evaluation[row]["accuracy"])
    stamp = (run_folder / "adaptation.json").stat().st_mtime_ns
    report([str(run_folder)], None, 4)
    assert (run_folder / "adaptation.json").stat().st_mtime_ns == stamp


def test_before_the_first_inner_step_a_prototype_head_is_a_prototypical_network(run_folder):
    run = Run.load(str(run_folder / "run.yaml"))
    start = checkpoint.best(run_folder / "checkpoints")
    found = by_step(run, run_folder, start, 4)[0]
    assert len(found["metrics"]) == len(found["untrained"]) == run.algorithm.inner_steps + 1
    assert found["untrained"][0] == pytest.approx(
        json.loads((run_folder / "evaluation.json").read_text())["prototype"]["accuracy"]
    )


def test_several_runs_are_compared_with_intervals(run_folder, tmp_path):
    other = shutil.copytree(run_folder, run_folder.with_name("better-12345678"))
    evaluation = json.loads((other / "evaluation.json").read_text())
    evaluation["settings"][0]["metrics"]["accuracy"] = {"mean": 0.99, "ci95": 0.001}
    (other / "evaluation.json").write_text(json.dumps(evaluation))
    text, path = report([str(run_folder.parent)], tmp_path / "both", episodes=0)
    written = path.read_text(encoding="utf-8")
    assert path == tmp_path / "both" / "report.md"
    assert "better-12345678 is first: accuracy 99.0 ± 0.1 %](comparison-accuracy.png)" in written
    assert "| better-12345678 | test: 4 episodes, 2-way 1-shot | 99.0 ± 0.1 |" in written
    assert text.index("better-12345678") < text.index("meta-trained   ")
    assert not any("adaptation" in name for name in shown(written))
    assert {path.name for path in (tmp_path / "both").glob("*.png")} == set(shown(written))


def test_a_fine_tuned_model_has_the_f1_of_its_classes_and_the_comparison(run_folder):
    folder = run_folder / "finetune-0123abcd"
    folder.mkdir()
    found = classification_report([0, 1, 1, 2], [0, 1, 2, 2], ["books", "music", "food"])
    found.write(folder, "test")
    (folder / "finetune.json").write_text(json.dumps({"target": "shops", "size": "all 20 texts", "from": "step 2"}))
    sizes = {"5 a class": {"mean": 0.5, "ci95": 0.1}, "all": {"mean": 0.8, "ci95": 0.02}}
    rows = {"meta-trained, fine-tuned": sizes, "plain, fine-tuned": sizes, "gain of meta-training, fine-tuned": sizes}
    (folder / "comparison.json").write_text(json.dumps({"metric": "accuracy", "seeds": 3, "rows": rows}))
    text, path = report([str(run_folder)], None, episodes=0)
    written = path.read_text(encoding="utf-8")
    assert "| music | 50.0 | 100.0 | 66.7 | 1 |" in written
    assert "| plain, fine-tuned | 50.0 ± 10.0 | 80.0 ± 2.0 |" in written
    assert "meta-training adds 50.0 ± 10.0 points at 5 a class, 80.0 ± 2.0 at all]" in written
    assert [name.removeprefix(run_folder.name) for name in shown(written)][-2:] == [
        "-finetune-0123abcd-classes.png", "-finetune-0123abcd-sizes.png",
    ]  # fmt: skip
    assert found.text().rstrip() in text


def test_a_corpus_that_is_gone_leaves_a_sentence(run_folder, monkeypatch):
    settings = (run_folder / "run.yaml").read_text()
    (run_folder / "run.yaml").write_text(re.sub(r"path: \S*intents.jsonl", "path: gone.jsonl", settings))
    written = report([str(run_folder)], None, episodes=4)[1].read_text(encoding="utf-8")
    assert "What each inner step does was not measured: corpus.path:" in written


def test_a_folder_without_runs_is_a_message(tmp_path, monkeypatch, capsys):
    status, message = told(["report", str(tmp_path)], monkeypatch, capsys)
    assert status == 2
    assert "is no run's folder and holds none" in message
    with pytest.raises(UserError):
        report([str(tmp_path / "gone")], None, 0)
