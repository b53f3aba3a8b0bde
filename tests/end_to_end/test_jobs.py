"""A run as a Ray job: submitted to a head of its own, with its log and its exit status."""

import os
import re
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.end_to_end.commands import ROOT, end, ended
from tests.end_to_end.readme import commands, reduced
from tests.end_to_end.readme import project as readme_project

pytestmark = pytest.mark.slow


def free_ports(count: int) -> list[int]:
    taken = [socket.socket() for _ in range(count)]
    for one in taken:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in taken]
    for one in taken:
        one.close()
    return ports


@pytest.fixture(scope="module")
def head(ray_folder: Path) -> Iterator[dict[str, str]]:
    """A Ray head of this module's own; gives the environment in which `ray job` finds it."""
    gcs, dashboard, client, agent = free_ports(4)
    folder = ray_folder / "h"
    folder.mkdir()
    mark = f"head-{os.getpid()}"
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",  # a job's `python` is the head's
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{dashboard}",
        "RAYMETA_TEST": mark,
        "OMP_NUM_THREADS": "1",
    }
    words = [
        "ray",
        "start",
        "--head",
        "--block",
        f"--port={gcs}",
        "--dashboard-host=127.0.0.1",
        f"--dashboard-port={dashboard}",
    ]
    words += [
        f"--ray-client-server-port={client}",
        f"--dashboard-agent-listen-port={agent}",
        "--num-cpus=2",
        f"--temp-dir={folder}",
    ]
    process = subprocess.Popen(
        [*words, "--disable-usage-stats"], env=environment, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )  # fmt: skip
    stop = time.monotonic() + 120
    while not answers(environment["RAY_API_SERVER_ADDRESS"]):
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < stop, "the head did not start"
        time.sleep(0.5)
    yield environment
    end(process, mark)


def answers(url: str) -> bool:
    try:
        urllib.request.urlopen(f"{url}/api/version", timeout=2)
    except urllib.error.HTTPError:
        return True  # it wants a token, so it is there
    except OSError:
        return False
    return True


def submitted(environment: dict[str, str], *words: str) -> tuple[int, str]:
    """Exit status and log of `python -m raymeta ...` as a job."""
    command = ["ray", "job", "submit", "--working-dir", ".", "--", "python", "-m", "raymeta", *words]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=600, check=False)
    return done.returncode, done.stdout + done.stderr


def test_a_job_that_fails_says_why_and_has_another_exit_status(head: dict[str, str], tmp_path: Path) -> None:
    status, log = submitted(head, "run", "quickstart", "algorithm.kind=mamml", f"storage={tmp_path}")
    assert status != 0
    assert "raymeta: " in log
    assert "did you mean 'maml'?" in log
    assert "exit code 2" in log


# raymeta submit, which sends the run's folder itself


INTENTS = [
    "name=job", "corpus={kind: quickstart, part: intents}",
    "tasks={kind: classification, ways: 3, shots: 2, queries: 5, split: {of: class, train: 18, validation: 8, test: 10}}",
    "outer={steps: 10, tasks_per_step: 4, lr: 1e-3}", "validation={every: 5, episodes: 10}", "evaluate={episodes: 10}",
]  # fmt: skip


@pytest.fixture
def project(tiny_tokenizer_folder: str, tmp_path: Path) -> Path:
    """A user's own folder, without raymeta: a tiny run, and a cluster that stores results beside it."""
    here = tmp_path / "project"
    here.mkdir()
    run = {"model": {"name": tiny_tokenizer_folder}, "corpus": "quickstart", "tasks": {"kind": "entities", "split": {"of": "task", "test": 3}}}  # fmt: skip
    (here / "run.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")
    cluster = {"description": "a head on this machine", "workers": 1, "storage": str(tmp_path / "results")}
    (here / "head.yaml").write_text(yaml.safe_dump(cluster), encoding="utf-8")
    return here


def raymeta(environment: dict[str, str], project: Path, *words: str) -> subprocess.Popen[str]:
    """`raymeta ...` in the user's folder."""
    return subprocess.Popen(
        [sys.executable, "-m", "raymeta", *words], cwd=project, env={**environment, "PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def test_two_jobs_at_once_run_in_folders_without_raymeta_to_their_ends(
    head: dict[str, str], project: Path, tmp_path: Path
) -> None:
    words = ["submit", "run.yaml", "--cluster", "head.yaml", *INTENTS]
    both = [raymeta(head, project, *words, f"name={name}", "--name", name) for name in ("one", "two")]
    for process, name in zip(both, ("one", "two"), strict=True):
        status, said = ended(process)
        assert status == 0, said
        assert said.startswith(f"job {name}\n")
        assert "meta-trained" in said
        assert "Traceback" not in said
        assert len(list((tmp_path / "results").glob(f"{name}-*/evaluation.json"))) == 1

    listed = ended(raymeta(head, project, "jobs", "--cluster", "head.yaml"))
    assert re.search(r"^one +SUCCEEDED .*python -m raymeta run run.yaml cluster=head.yaml", listed[1], re.MULTILINE), (
        listed[1]
    )
    again = ended(raymeta(head, project, "submit", "run.yaml", "--cluster", "head.yaml", "--name", "one", *INTENTS))
    assert again[0] == 2
    assert again[1].splitlines()[-1].startswith("raymeta: the cluster did not take the job: ")


WITNESS = """
import os, raymeta
from pathlib import Path
from raymeta.algorithms.maml import Maml

seen = Path({seen!r}) / str(os.getpid())
seen.write_text(f"{{raymeta.__file__}} {{len(os.environ.get('RAYMETA_TEST_SECRET', ''))}}")

class Witness(Maml):
    pass
"""


def test_a_jobs_raymeta_is_that_of_its_folder_and_its_secrets_are_in_no_file_of_the_run(
    head: dict[str, str], project: Path, tmp_path: Path
) -> None:
    (tmp_path / "seen").mkdir()
    (project / "witness.py").write_text(WITNESS.format(seen=str(tmp_path / "seen")), encoding="utf-8")
    profile = yaml.safe_load((project / "head.yaml").read_text()) | {"secrets": ["RAYMETA_TEST_SECRET"]}
    (project / "secret.yaml").write_text(yaml.safe_dump(profile), encoding="utf-8")
    secret = secrets.token_hex(20)
    words = [
        "submit",
        "run.yaml",
        "--cluster",
        "secret.yaml",
        *INTENTS,
        "algorithm.kind=witness:Witness",
        "name=secret",
    ]
    status, said = ended(raymeta({**head, "RAYMETA_TEST_SECRET": secret}, project, *words))
    assert status == 0, said
    seen = [path.read_text().split() for path in (tmp_path / "seen").iterdir()]
    assert len(seen) > 2  # who submits, the job's own process, and a worker at least
    lengths = {where: length for where, length in seen if not where.startswith(str(ROOT))}
    assert lengths
    for where, length in lengths.items():
        assert "/working_dir_files/" in where
        assert int(length) == len(secret)
    assert secret not in said
    assert [p for p in tmp_path.rglob("*") if p.is_file() and secret.encode() in p.read_bytes()] == []


def test_a_job_whose_run_fails_gives_its_exit_status_and_says_why(head: dict[str, str], project: Path) -> None:
    # it cannot be known before: the words of a corpus come up short on the cluster
    words = [*INTENTS, "tasks.ways=12"]
    status, log = ended(raymeta(head, project, "submit", "run.yaml", "--cluster", "head.yaml", *words))
    assert status == 2, log
    assert "raymeta: tasks.ways" in log


def test_a_job_is_stopped_by_interrupting_the_submission_or_by_its_id_while_another_goes_on(
    head: dict[str, str], project: Path, tmp_path: Path
) -> None:
    long = [*INTENTS, "outer.steps=100000", "validation.every=0"]
    first = raymeta(
        head, project, "submit", "run.yaml", "--cluster", "head.yaml", "--name", "first", "--stop-on-interrupt", *long
    )
    second = raymeta(
        head, project, "submit", "run.yaml", "--cluster", "head.yaml", "--name", "second", *long, "name=other"
    )
    for name in ("job", "other"):
        wait_for_one(tmp_path / "results", f"{name}-*/checkpoints/step_*/state.json", first)
    first.send_signal(signal.SIGINT)
    status, said = ended(first)
    assert status == 130, said
    assert "job first is stopped" in said
    listed = ended(raymeta(head, project, "jobs", "--cluster", "head.yaml"))[1]
    assert re.search(r"^first +STOPPED", listed, re.MULTILINE), listed
    assert re.search(r"^second +RUNNING", listed, re.MULTILINE), listed

    second.send_signal(signal.SIGINT)
    status, said = ended(second)
    assert status == 130, said
    assert "job second goes on; `raymeta jobs second --cluster head.yaml --follow` shows its log" in said
    status, said = ended(raymeta(head, project, "jobs", "second", "--cluster", "head.yaml", "--stop"))
    assert status == 0, said
    assert "second  STOPPED" in said
    log = ended(raymeta(head, project, "jobs", "second", "--cluster", "head.yaml", "--follow"))
    assert log[0] == 143
    assert "stopped; the same command goes on from the newest checkpoint" in log[1]
    status, said = ended(raymeta(head, project, "jobs", "third", "--cluster", "head.yaml", "--stop"))
    assert status == 2
    assert "no job 'third' (jobs: " in said


def test_every_command_of_the_readmes_page_on_jobs_does_what_it_says(
    head: dict[str, str], settings: dict[str, Any], tmp_path: Path
) -> None:
    here = readme_project(tmp_path / "project", settings, {"workers": 1})
    for name in ("raymeta", "clusters", "tune_spaces"):
        shutil.copytree(ROOT / name, here / name, ignore=shutil.ignore_patterns("__pycache__"))
    results = tmp_path / "results"
    said = {}
    for words in commands("On a cluster: ray job submit"):
        words = [
            w.replace("/shared/results", str(results)).replace("node-8gpu", "node-8gpu.yaml")
            for w in reduced(words, results)
        ]
        if words[0] == "raymeta":
            words = [sys.executable, "-m", *words]
        done = subprocess.run(
            words,
            cwd=here,
            env={**head, "PYTHONPATH": str(ROOT)},
            capture_output=True,
            text=True,
            timeout=400,
            check=False,
        )
        log = done.stdout + done.stderr
        assert done.returncode == (143 if "--follow" in words else 0), (words, log)
        assert "Traceback" not in log
        said[" ".join(words[2:])] = log
    others = ("--verb tune", "--detach", "--no-wait", "stop late", "raymeta jobs")
    logs = [log for words, log in said.items() if not any(other in words for other in others)]
    assert len(logs) == 2  # by raymeta submit, and by ray job submit
    for log in logs:
        for row in ("meta-trained", "not meta-trained, adapted alike", "frozen nearest prototype"):
            assert re.search(rf"  {row} +\d+\.\d ± \d+\.\d", log), log
    swept = next(log for words, log in said.items() if "--verb tune" in words)
    assert "best: metatrain.validation.accuracy" in swept
    listed = next(log for words, log in said.items() if words.startswith("raymeta jobs --cluster"))
    assert len(re.findall(r"SUCCEEDED", listed)) >= 2
    assert re.search(r"^night +(PENDING|RUNNING)", listed, re.MULTILINE), listed
    assert len(list(results.glob("intents-*/evaluation.json"))) >= 1
    assert len(list(results.glob("sweeps/intents-space-*/best.yaml"))) == 1


def wait_for_one(folder: Path, pattern: str, process: subprocess.Popen[str], timeout_s: float = 300) -> None:
    stop = time.monotonic() + timeout_s
    while not list(folder.glob(pattern)):
        assert process.poll() is None, ended(process)[1]
        assert time.monotonic() < stop, f"no {pattern} after {timeout_s} s"
        time.sleep(0.2)
