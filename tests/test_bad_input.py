"""A mistake in settings is one message that names setting, value and remedy, with exit status 2 and no traceback."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.mistakes import Case, assert_is_a_message, assert_told, run_file, told

MODEL = {"config.json": '{"model_type": "bert", "vocab_size": 60, "hidden_size": 8, "num_attention_heads": 2}'}

SETTINGS = [
    Case("unknown section", ["optimiser.lr=1"], ["unknown setting 'optimiser'", "settings: name"]),
    Case("unknown key", ["outter.steps=3"], ["unknown setting 'outter'", "did you mean 'outer'"]),
    Case("unknown nested key", ["outer.step=3"], ["outer: unknown setting 'step'", "did you mean 'steps'"]),
    Case("unknown key of a component", ["algorithm.inner_lrr=1"], ["algorithm: unknown setting", "'inner_lr'"]),
    Case("unknown key of a split", ["tasks.split.valid=1"], ["tasks.split: unknown setting 'valid'", "'validation'"]),
    Case(
        "unknown key of a head", ["model.head.scal=2"], ["model.head: unknown setting 'scal'", "did you mean 'scale'"]
    ),
    Case("a setting of another algorithm", ["algorithm.proximal=1"], ["algorithm: unknown setting 'proximal'"]),
    Case("wrong type", ["outer.steps=many"], ["outer.steps", "whole number", "'many'"]),
    Case("fraction for a count", ["outer.steps=2.5"], ["outer.steps", "whole number", "2.5"]),
    Case("a list for a number", ["outer.lr=[1, 2]"], ["outer.lr", "a number", "[1, 2]"]),
    Case("a number for a section", ["outer=3"], ["outer: give a mapping of settings (steps, ", "not 3"]),
    Case("a number for a component", ["algorithm=3"], ["algorithm", "kinds:", "maml"]),
    Case("a component without kind", ["tasks={ways: 2}"], ["tasks", "mapping with a kind", "classification"]),
    Case("wrong kind of algorithm", ["algorithm=mamml"], ["no algorithm of kind 'mamml'", "'maml'"]),
    Case("wrong kind of task", ["tasks.kind=clasification"], ["no task of kind", "'classification'"]),
    Case("wrong kind of corpus", ["corpus.kind=file"], ["no corpus of kind 'file'", "'files'"]),
    Case("wrong kind of head", ["model.head=protoype"], ["no head of kind", "'prototype'"]),
    Case("own class that is not there", ["algorithm=nowhere.at_all:Mine"], ["algorithm", "nowhere"]),
    Case(
        "own class of another family",
        ["algorithm=raymeta.outer:Outer"],
        ["algorithm", "derive its class from raymeta.algorithms.Algorithm"],
    ),
    Case("own class without a name", ["algorithm='raymeta.outer:'"], ["algorithm", "module:Class"]),
    Case("not a number", ["outer.lr=.nan"], ["outer.lr", "finite"]),
    Case("infinite", ["algorithm.inner_lr=.inf"], ["algorithm.inner_lr", "finite"]),
    Case("negative rate", ["outer.lr=-1e-4"], ["outer.lr", "greater than 0", "-0.0001"]),
    Case("negative steps", ["outer.steps=-1"], ["outer.steps", "at least 1", "-1"]),
    Case("negative seed", ["seed=-1"], ["seed", "at least 0", "-1"]),
    Case("no queries", ["tasks.queries=0"], ["tasks.queries", "at least 1", "0"]),
    Case("share above one", ["corpus.bad_rows=5"], ["corpus.bad_rows", "at most 1", "5"]),
    Case("one way", ["tasks.ways=1"], ["tasks", "ways", "at least 2 classes"]),
    Case("no shots", ["tasks.shots=0"], ["tasks", "shots", "at least 1"]),
    Case("range upside down", ["tasks.ways=[6, 2]"], ["tasks.ways", "from low to high", "[6, 2]"]),
    Case("range of three", ["tasks.ways=[2, 3, 4]"], ["tasks.ways", "[low, high]", "[2, 3, 4]"]),
    Case("text for a range", ["tasks.ways=five"], ["tasks.ways", "'five'"]),
    Case("shots of evaluation", ["evaluate.shots=[0, 1]"], ["evaluate.shots", "at least 1", "[0, 1]"]),
    Case("evaluation split", ["evaluate.split=dev"], ["evaluate.split", "'train', 'validation' or 'test'", "'dev'"]),
    Case("a choice", ["outer.schedule=cosin"], ["outer.schedule", "cosine", "'cosin'"]),
    Case("order three", ["algorithm.order=3"], ["algorithm.order", "1", "2", "3"]),
    Case("adapt of a wrong word", ["model.adapt=none"], ["model.adapt: give 'all', 'head'", "(last)", "not 'none'"]),
    Case("adapt of a wrong key", ["model.adapt={lasst: 1}"], ["model.adapt: unknown setting 'lasst'", "'last'"]),
    Case("number for a path", ["corpus.path=3"], ["corpus.path: give text or a list or a mapping, not 3"]),
    Case("number for a variable", ["cluster.environment={OMP_NUM_THREADS: 3}"], ["OMP_NUM_THREADS", "text", "3"]),
    Case("adapt last of nothing", ["model.adapt={last: 0}"], ["model.adapt.last", "at least 1"]),
    Case("adapt last too large", ["model.adapt={last: 9}"], ["model.adapt.last", "9 layers", "has 2"]),
    Case("bad name", ["name=a/b"], ["name", "'a/b'", "letters"]),
    Case("missing name of a model", ["model={adapt: all}"], ["model.name", "is missing"]),
    Case("storage URI", ["storage=s3://bucket/runs"], ["storage", "s3://bucket/runs", "give a folder"]),
    Case("unknown cluster", ["cluster=locl"], ["cluster: no profile 'locl'", "did you mean 'local'"]),
    Case("unknown key of a cluster", ["cluster.worker=2"], ["cluster: unknown setting 'worker'", "'workers'"]),
    Case("too many workers", ["cluster=local", "outer.tasks_per_step=1"], ["outer.tasks_per_step", "2 workers"]),
    Case("cluster is not YAML", ["cluster={here}/c.yaml"], ["c.yaml is not YAML"], {"c.yaml": "workers: [2"}),
    Case("cluster is not a mapping", ["cluster={here}/c.yaml"], ["c.yaml", "mapping"], {"c.yaml": "- 2"}),
    Case("override without a value", ["outer.steps"], ["'outer.steps' is not an override", "key.sub=value"]),
    Case("override without a key", ["=3"], ["'=3' is not an override"]),
    Case("override with a hole", ["outer..steps=3"], ["outer..steps", "key.sub=value"]),
    Case("override of nothing", ["outer.steps="], ["outer.steps: is empty; give a whole number"]),
    Case("override that is not YAML", ["outer.steps=[1"], ["outer.steps", "not a YAML value", "[1"]),
    Case("override below a number", ["seed.sub=3"], ["seed: give a whole number, not {'sub': 3}"]),
    Case("override below a list", ["evaluate.shots.first=3"], ["evaluate.shots: give a list, not {'first': 3}"]),
    Case("unset variable in a path", ["corpus.path=$RAYMETA_NOWHERE/x.csv"], ["RAYMETA_NOWHERE", "not set"]),
    Case("unset variable in a model", ["model.name=$RAYMETA_NOWHERE/bert"], ["model.name", "RAYMETA_NOWHERE"]),
    Case("unset variable in storage", ["storage=$RAYMETA_NOWHERE/runs"], ["storage", "RAYMETA_NOWHERE"]),
]

MODELS = [
    Case("model folder missing", ["model.name={here}/bert"], ["model.name", "there is no folder", "bert"]),
    Case("package missing", ["model.name=package:no_such_thing/x"], ["model.name", "no_such_thing", "pip install"]),
    Case("package without a name", ["model.name='package:'"], ["model.name", "package:NAME/PATH"]),
    Case("folder missing in a package", ["model.name=package:raymeta/recipe"], ["'recipe'", "did you mean 'recipes'"]),
    Case("model folder without files", ["model.name={here}/bert"], ["model.name", "bert"], {"bert/x": ""}),
    Case("model folder without tokenizer", ["model.name={here}/bert"], ["model.name", "tokenizer"],
         {f"bert/{n}": t for n, t in MODEL.items()}),
    Case("hub id without a network", ["model.name=someone/some-model"], ["model.name", "someone/some-model"]),
    Case("model folder without weights", ["model.name={here}/bare"], ["model.name", "weights"]),
]  # fmt: skip


@pytest.mark.parametrize("case", [*SETTINGS, *MODELS], ids=lambda case: case.name)
def test_a_mistake_in_settings_is_one_message(case, tmp_path, tiny_tokenizer_folder, monkeypatch, capsys):
    monkeypatch.delenv("RAYMETA_NOWHERE", raising=False)
    if "{here}/bare" in case.overrides[0]:
        shutil.copytree(tiny_tokenizer_folder, tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    assert_told(case, tmp_path, tiny_tokenizer_folder, monkeypatch, capsys)


LINES = [
    (["metatrian"], "metatrian"),
    (["run"], "RUN"),
    (["check", "quickstart", "--form", "x"], "--form"),
    (["evaluate", "quickstart", "--from"], "--from"),
    (["ls", "recipes", "more"], "more"),
]
"""Command lines that are not understood, and the word that the answer must name."""


@pytest.mark.parametrize(("line", "word"), LINES, ids=lambda value: " ".join(value) if isinstance(value, list) else "")
def test_a_command_line_that_is_not_understood_has_status_2(line, word, monkeypatch, capsys):
    status, message = told(line, monkeypatch, capsys)
    assert status == 2
    assert word in message
    assert "Traceback" not in message


FILES = [
    ("nothing there", None, ["no run", "recipes: "]),
    ("near a recipe", "quickstrat", ["no run 'quickstrat'", "did you mean 'quickstart'"]),
    ("empty", b"", ["is empty", "seed: 0"]),
    ("a list", b"- a\n", ["not a mapping of settings"]),
    ("not YAML", b"seed: [1\n", ["is not YAML", "line 2"]),
    ("tabs", b"outer:\n\tsteps: 1\n", ["is not YAML", "line 2"]),
    ("a key twice", b"seed: 1\nseed: 2\n", ["'seed' is given twice", "line 2"]),
    ("Latin-1", "description: caf\xe9\n".encode("latin-1"), ["is not UTF-8 text"]),
    ("UTF-16", "seed: 1\n".encode("utf-16"), ["is not UTF-8 text"]),
    ("no section", b"seed: 1\n", ["model: is missing", "corpus: is missing", "tasks: is missing"]),
]


@pytest.mark.parametrize(("name", "content", "says"), FILES, ids=[name for name, _, _ in FILES])
def test_a_file_that_is_no_run_is_one_message(name, content, says, tmp_path, monkeypatch, capsys):
    path = tmp_path / "run.yaml"
    if isinstance(content, bytes):
        path.write_bytes(content)
    where = content if isinstance(content, str) else str(path)
    status, message = told(["check", where], monkeypatch, capsys)
    assert status == 2
    assert_is_a_message(message)
    for words in says:
        assert words in message


def test_a_list_that_is_not_there_is_named_with_those_that_are(monkeypatch, capsys):
    status, message = told(["ls", "recipe"], monkeypatch, capsys)
    assert status == 2
    assert_is_a_message(message)
    assert "did you mean 'recipes'" in message
    assert "algorithms, tasks, corpora" in message


def test_a_folder_that_is_no_checkpoint_is_one_message(tmp_path, tiny_tokenizer_folder, monkeypatch, capsys):
    path = run_file(tmp_path, tiny_tokenizer_folder)
    for start in (tmp_path, tmp_path / "nowhere"):
        status, message = told(["evaluate", str(path), "--from", str(start)], monkeypatch, capsys)
        assert status == 2
        assert_is_a_message(message)
        assert "is not a checkpoint" in message
        assert "step_" in message


def test_a_run_that_is_not_trained_cannot_be_evaluated(tmp_path, tiny_tokenizer_folder, monkeypatch, capsys):
    status, message = told(["evaluate", str(run_file(tmp_path, tiny_tokenizer_folder))], monkeypatch, capsys)
    assert status == 2
    assert_is_a_message(message)
    assert "raymeta run" in message
    assert "--from" in message


def test_a_storage_that_is_a_file_is_one_message(tmp_path, tiny_tokenizer_folder, monkeypatch, capsys):
    path = run_file(tmp_path, tiny_tokenizer_folder)
    status, message = told(["check", str(path), f"storage={path}"], monkeypatch, capsys)
    assert status == 2
    assert_is_a_message(message)
    assert "storage: " in message


@pytest.mark.parametrize(
    ("more", "says"),
    [(["outer.step=1"], "did you mean 'steps'"), (["corpus.path=none.csv"], "none.csv"), (["--what"], "--what")],
    ids=["setting", "file", "usage"],
)
def test_the_command_itself_exits_with_status_2(more, says, tmp_path, tiny_tokenizer_folder):
    path = run_file(tmp_path, tiny_tokenizer_folder)
    root = Path(__file__).parents[1]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(
        [sys.executable, "-m", "raymeta", "check", str(path), *more],
        capture_output=True, text=True, cwd=root, env=environment, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
