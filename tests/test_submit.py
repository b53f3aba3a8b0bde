"""Submitting without a cluster: what a job brings along, what it runs, and what is refused."""

import importlib.metadata
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from raymeta import submit
from raymeta.cluster import Profile
from raymeta.errors import UserError
from tests.mistakes import assert_is_a_message, told


def git(here: Path, *words: str) -> None:
    subprocess.run(["git", *words], cwd=here, check=True, capture_output=True)


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A folder of a user's own under git, with a run, a module, and files that are ignored."""
    here = tmp_path / "project"
    (here / "data").mkdir(parents=True)
    (here / ".gitignore").write_text("data/\n*.secret\n", encoding="utf-8")
    (here / "data" / "large.bin").write_bytes(b"0" * 1000)
    (here / "token.secret").write_text("hunter2", encoding="utf-8")
    (here / "mine.py").write_text("LEARNED = True\n", encoding="utf-8")
    (here / "gone.py").write_text("", encoding="utf-8")
    (here / "run.yaml").write_text("name: mine\n", encoding="utf-8")
    git(here, "init")
    git(here, "add", ".")
    (here / "gone.py").unlink()
    (here / "new.py").write_text("", encoding="utf-8")
    return here


def names(folder: Path) -> set[str]:
    return {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}


def test_a_job_brings_what_git_does_not_ignore_and_raymeta_itself(project: Path):
    with submit.packed(project) as folder:
        there = names(folder)
        assert {n for n in there if not n.startswith("raymeta/")} == {".gitignore", "mine.py", "new.py", "run.yaml"}
        assert {
            "raymeta/__main__.py",
            "raymeta/recipes/quickstart.yaml",
            "raymeta/clusters/aws-gpu/profile.yaml",
        } <= there
        assert "raymeta/tune_spaces/inner-loop.yaml" in there
        assert not any("__pycache__" in n for n in there)
        where = "import raymeta.cluster as c; print(c.__file__, *c.profiles().values())"
        found = subprocess.run(
            [sys.executable, "-c", where],
            cwd=folder,
            capture_output=True,
            text=True,
            check=True,
            env={"PATH": "/usr/bin"},
        )
        assert all(path.startswith((str(folder), "clusters")) for path in found.stdout.split())
        assert "kuberay/profile.yaml" in found.stdout
    assert not folder.exists()


def test_where_there_is_no_git_everything_but_caches_is_brought(tmp_path: Path):
    for name in ("a.py", "sub/b.py", ".venv/c.py", "sub/__pycache__/d.pyc", "results/e.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("", encoding="utf-8")
    with submit.packed(tmp_path) as folder:
        assert {n for n in names(folder) if not n.startswith("raymeta/")} == {"a.py", "sub/b.py"}


def test_a_folder_that_is_too_large_is_told_with_its_largest_files(project: Path, monkeypatch: pytest.MonkeyPatch):
    (project / "model.bin").write_bytes(b"0" * 3 * 2**20)
    monkeypatch.setattr(submit, "_LIMIT_MIB", 2)
    with pytest.raises(UserError, match=r"more than the 2 MiB .* \(largest: model.bin 3 MiB,"), submit.packed(project):
        pass


def test_a_jobs_command_is_the_verb_on_the_cluster():
    assert submit.command("run", "quickstart", ["aws-gpu"], ["outer.steps=4"]) == (
        "python -m raymeta run quickstart cluster=aws-gpu outer.steps=4"
    )
    words = ["--space", "inner-loop", "tasks.split={of: task}"]
    assert submit.command("tune", "quickstart", ["a", "b"], words) == (
        "python -m raymeta tune quickstart --cluster a --cluster b --space inner-loop 'tasks.split={of: task}'"
    )


def test_packages_are_pinned_as_they_are_installed_here():
    pins = dict(pin.split("==") for pin in submit.pins() if "==" in pin)
    assert not any(pin.startswith("ray") for pin in submit.pins())
    assert "hypothesis" not in pins
    assert pins["torch"] == importlib.metadata.version("torch").partition("+")[0]
    for name in ("transformers", "pydantic", "seqeval"):
        assert pins[name] == importlib.metadata.version(name)


def test_a_jobs_environment_is_the_folder_and_packages_or_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    assert set(submit.environment(Profile(), tmp_path)) == {"working_dir", "env_vars"}
    assert submit.environment(Profile(runtime="pip"), tmp_path)["pip"] == submit.pins()
    image = submit.environment(Profile(image="registry/raymeta:1"), tmp_path)
    assert (image["image_uri"], "working_dir" in image) == ("registry/raymeta:1", False)
    monkeypatch.setenv("HF_TOKEN", "hunter2")
    assert submit.environment(Profile(secrets=("HF_TOKEN",)), tmp_path)["env_vars"]["HF_TOKEN"] == "hunter2"
    monkeypatch.delenv("HF_TOKEN")
    with pytest.raises(UserError, match=r"cluster.secrets: HF_TOKEN is not in this environment"):
        submit.environment(Profile(secrets=("HF_TOKEN",)), tmp_path)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["quickstart", "--cluster", "local"], "would be in the job's copy of the working directory"),
        (["quickstart", "--cluster", "lokal", "storage=/shared"], "did you mean 'local'"),
        (["quickstart", "--cluster", "local", "storage=/shared", "algorithm.kind=mamml"], "did you mean 'maml'"),
        (["quickstart", "--cluster", "local", "storage=/shared", "--verb", "tun"], "did you mean 'tune'"),
        (["quickstart", "--cluster", "local", "storage=/shared"], "cluster.dashboard: nothing says where jobs go"),
        (["{here}/away.yaml", "--cluster", "local", "storage=/shared"], "lies outside of"),
        (["hidden.secret", "--cluster", "there.yaml", "storage=/shared"], "no Ray cluster answers at http://127.0.0.1:1"),
    ],
)  # fmt: skip
def test_a_job_that_would_not_work_is_told_before_it_is_sent(
    words, says, project: Path, tiny_tokenizer_folder, monkeypatch, capsys
):
    run = yaml.safe_dump(
        {
            "model": {"name": tiny_tokenizer_folder},
            "corpus": "quickstart",
            "tasks": {"kind": "entities", "split": {"of": "task", "test": 3}},
        }
    )
    (project.parent / "away.yaml").write_text(run, encoding="utf-8")
    (project / "hidden.secret").write_text(run, encoding="utf-8")
    (project / "there.yaml").write_text("{workers: 1, dashboard: 'http://127.0.0.1:1'}", encoding="utf-8")
    monkeypatch.chdir(project)
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    status, message = told(["submit", *(w.replace("{here}", str(project.parent)) for w in words)], monkeypatch, capsys)
    assert status == 2
    assert_is_a_message(message)
    assert says in message
