"""Each command of the README's pages on debugging and sweeps does what the page says; test_jobs runs those on jobs."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.commands import ROOT
from tests.end_to_end.readme import PAGES, commands, project, reduced
from tests.mistakes import command


@pytest.mark.parametrize("title", PAGES)
def test_a_page_of_use_has_commands_of_raymeta_and_ray_and_no_others(title: str) -> None:
    found = commands(title)
    assert len(found) > 3
    assert {words[0] for words in found} <= {"raymeta", "ray", "python"}


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
@pytest.mark.parametrize("title", ["Debugging on one machine", "Sweeps"])
def test_every_command_of_a_page_of_use_runs(
    title: str,
    settings: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for extra in ("matplotlib", "optuna"):
        pytest.importorskip(extra, reason="a command needs an extra")
    monkeypatch.chdir(project(tmp_path / "project", settings, {"workers": 2}))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for words in commands(title):
        words = reduced(words, Path("results"))
        if words[0] == "raymeta":
            status, out, message = command(words[1:], monkeypatch, capsys)
            assert status == 0, (words, out, message)
            assert "Traceback" not in out + message  # Ray's helpers may say other things to stderr
            assert out.strip()
        else:
            assert words[:3] == ["python", "-m", "pdb"]
            done = subprocess.run(
                [sys.executable, *words[1:]], input="continue\nquit\n", capture_output=True, text=True, check=False
            )
            assert done.stdout.count("(Pdb)") == 2, done.stdout + done.stderr
            assert "meta-training is done" in done.stdout
    assert Path("results").is_dir()
