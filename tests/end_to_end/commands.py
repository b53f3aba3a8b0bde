"""`python -m raymeta ...` as a process of its own."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).parents[2]


def start(*words: str, environment: dict[str, str] | None = None) -> subprocess.Popen[str]:
    """Starts the command at the head of a process group of its own, output and errors together."""
    return subprocess.Popen(
        [sys.executable, "-m", "raymeta", *words],
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def ended(process: subprocess.Popen[str], timeout_s: float = 400) -> tuple[int, str]:
    """The exit status of a command, and what it said."""
    try:
        said, _ = process.communicate(timeout=timeout_s)
    except subprocess.TimeoutExpired:
        process.kill()
        raise AssertionError(f"not done after {timeout_s} s: {process.communicate()[0]}") from None
    return process.returncode, said


def wait_for(path: Path, process: subprocess.Popen[str], timeout_s: float = 300) -> None:
    """Waits until `path` is there; the process must go on running meanwhile."""
    stop = time.monotonic() + timeout_s
    while not path.exists():
        assert process.poll() is None, ended(process)[1]
        assert time.monotonic() < stop, f"no {path.name} after {timeout_s} s"
        time.sleep(0.05)


def written(settings: dict[str, Any], path: Path) -> str:
    """Writes settings as a run's YAML, and gives its path."""
    path.write_text(yaml.safe_dump(settings), encoding="utf-8")
    return str(path)


def marked(mark: str) -> list[int]:
    """The ids of the processes, this one aside, whose environment holds RAYMETA_TEST=`mark`: those that a test started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if f"RAYMETA_TEST={mark}\0".encode() in (folder / "environ").read_bytes():
                found.append(int(folder.name))
        except (FileNotFoundError, ProcessLookupError, PermissionError):
            continue
    return found


def left_behind(mark: str, within_s: float = 60) -> list[str]:
    """The command lines of marked processes that are still there when they have had time to end."""
    stop = time.monotonic() + within_s
    while (found := marked(mark)) and time.monotonic() < stop:
        time.sleep(0.2)
    lines = []
    for pid in found:
        with suppress(FileNotFoundError, ProcessLookupError):
            lines.append(f"{pid} {Path(f'/proc/{pid}/cmdline').read_text(errors='replace')}".replace("\0", " "))
    return lines


def end(process: subprocess.Popen[str], mark: str, timeout_s: float = 60) -> None:
    """Ends a process that a test started, and whatever it started in turn."""
    process.terminate()
    try:
        process.communicate(timeout=timeout_s)
    finally:
        for pid in marked(mark):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
