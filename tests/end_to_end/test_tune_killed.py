"""A sweep of twelve runs whose driver, or whose whole Ray cluster, is killed in the middle goes on and ends with all twelve."""

import json
import os
import signal
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml

from raymeta.sweep_record import ENDED, Record
from tests.end_to_end.commands import ended, left_behind, marked, start, written
from tests.end_to_end.test_tune import SPACE, assert_distinct, assert_reproduces, intents  # noqa: F401  # a fixture

pytestmark = pytest.mark.slow

TRIALS = 12
SAVED = 6
"""A step that is validated, and after the first that is saved (5)."""


@pytest.mark.parametrize(("victim", "scheduler"), [("driver", "asha"), ("cluster", "none")])
def test_a_sweep_of_twelve_killed_in_the_middle_ends_with_twelve(
    victim: str,
    scheduler: str,
    intents: dict[str, Any],  # noqa: F811
    tmp_path: Path,
    ray_folder: Path,
) -> None:
    (tmp_path / "space.yaml").write_text(yaml.safe_dump(SPACE), encoding="utf-8")
    run = {**intents, "outer": {**intents["outer"], "steps": 12}, "validation": {"every": 3, "episodes": 10}}
    command = (
        "tune", written(run, tmp_path / "swept.yaml"), "--space", str(tmp_path / "space.yaml"),
        "--trials", str(TRIALS), "--scheduler", scheduler, "--max-concurrent", "2", "cluster.workers=1",
    )  # fmt: skip
    mark = f"{victim}-{os.getpid()}"
    environment = {
        "RAY_TMPDIR": str(ray_folder),
        "RAYMETA_TEST": mark,
        "RAY_gcs_rpc_server_reconnect_timeout_s": "5",  # how long a driver waits for a cluster that is gone
    }
    process = start(*command, environment=environment)
    record = in_the_middle(process, Path(run["storage"]))
    for pid in [process.pid] if victim == "driver" else set(marked(mark)) - {process.pid}:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    assert ended(process)[0] != 0
    before = record.trials()
    assert left_behind(mark, 180) == []  # Ray's agents wait a minute for their cluster

    status, said = ended(start(*command, "--resume", environment=environment))
    assert status == 0, said
    folder = record.path.parent
    trials = sorted(record.trials().values(), key=lambda t: t.number)
    assert_distinct(trials, TRIALS)
    if scheduler == "none":
        assert {t.state for t in trials} == {"finished"}
    after = {t.number: t for t in trials}
    events = [json.loads(line) for line in (folder / "trials.jsonl").read_text(encoding="utf-8").splitlines()]
    for trial in before.values():
        starts = sum(e["event"] == "starts" and e["trial"] == trial.number for e in events)
        assert starts == (1 if trial.state in ENDED else 2)
        if trial.state in ENDED:  # it is not done again
            assert (after[trial.number].value, after[trial.number].worker_s) == (trial.value, trial.worker_s)
    under_way = [t for t in before.values() if t.state == "running" and t.step >= SAVED]
    for trial in under_way:  # it is not walked anew
        log = (folder / "logs" / f"trial-{trial.number:03d}.txt").read_text(encoding="utf-8")
        assert log.count("step 1/12 ") == 1
    assert_reproduces(folder / "best.yaml", trials, tmp_path / "anew")


def in_the_middle(process: subprocess.Popen[str], storage: Path) -> Record:
    """Waits until some trials have ended and another is under way; gives the sweep's record."""
    stop = time.monotonic() + 300
    while True:
        assert process.poll() is None, ended(process)[1]
        assert time.monotonic() < stop
        for file in storage.glob("sweeps/*/trials.jsonl"):
            trials = Record(file).trials()
            done = sum(t.state in ENDED for t in trials.values())
            if 3 <= done < TRIALS - 3 and any(t.state == "running" and t.step >= SAVED for t in trials.values()):
                return Record(file)
        time.sleep(0.05)
