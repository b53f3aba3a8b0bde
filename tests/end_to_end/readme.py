"""The README's pages of use, as commands that tests run: as they stand, but for a smaller run and fewer trials."""

import re
import shlex
from pathlib import Path
from typing import Any

from tests.end_to_end.commands import ROOT, written

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = ("Debugging on one machine", "On a cluster: ray job submit", "Sweeps")


def page(title: str) -> str:
    """A section of the README."""
    found = re.search(rf"^## {re.escape(title)}\n(.*?)(?=^## )", README, re.MULTILINE | re.DOTALL)
    assert found, f"the README has no section {title!r}"
    return found[1]


def commands(title: str) -> list[list[str]]:
    """The words of each command of a section, in order."""
    blocks = re.findall(r"^```bash\n(.*?)^```", page(title), re.MULTILINE | re.DOTALL)
    lines = [shlex.split(line, comments=True) for block in blocks for line in block.splitlines()]
    return [line for line in lines if line]


def reduced(words: list[str], results: Path) -> list[str]:
    """A command with a sixth of its trials, whose folders of runs and sweeps are those in `results`."""
    made = [
        str(int(word) // 6) if before == "--trials" else word for before, word in zip(["", *words], words, strict=False)
    ]
    for i, word in enumerate(made):
        place = re.fullmatch(r"results/((?:sweeps/)?[\w-]+)-1a2b3c4d(/.*)?", word)
        if place:
            (folder,) = sorted(results.glob(f"{place[1]}-*"), key=lambda p: p.stat().st_mtime)[-1:]
            made[i] = f"{folder}{place[2] or ''}"
    return made


def project(folder: Path, settings: dict[str, Any], cluster: dict[str, Any]) -> Path:
    """A folder with the files that the pages speak of: a small intents.yaml, their space.yaml, and a profile node-8gpu.yaml."""
    folder.mkdir()
    tasks = {"kind": "classification", "ways": 3, "shots": 2, "queries": 5, "split": {"of": "class", "train": 18, "validation": 8, "test": 10}}  # fmt: skip
    run = {
        **settings, "corpus": {"kind": "quickstart", "part": "intents"}, "tasks": tasks,
        "outer": {"steps": 6, "tasks_per_step": 4, "lr": 1e-3}, "validation": {"every": 3, "episodes": 4}, "evaluate": {"episodes": 4},
    }  # fmt: skip
    written({k: v for k, v in run.items() if k not in ("name", "storage", "cluster")}, folder / "intents.yaml")
    written(cluster, folder / "node-8gpu.yaml")
    (space,) = re.findall(r"^```yaml\n(# space\.yaml\n.*?)^```", page("Sweeps"), re.MULTILINE | re.DOTALL)
    (folder / "space.yaml").write_text(space, encoding="utf-8")
    return folder
