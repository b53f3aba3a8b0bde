"""What two runs are compared by."""

from pathlib import Path
from typing import Any

from raymeta.stages.metatrain import Result
from raymeta.track import rows


def same_bytes(one: Result, other: Result) -> bool:
    """Whether two runs left the same parameters, bit for bit."""
    files = [(r.last.folder / "params.safetensors").read_bytes() for r in (one, other)]
    return files[0] == files[1]


def furthest(one: Result, other: Result) -> float:
    """The largest difference of any parameter."""
    ours, theirs = one.last.params(), other.last.params()
    assert ours.keys() == theirs.keys()
    return max(float((ours[n] - theirs[n]).abs().max()) for n in ours)


def metrics(folder: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics without those that tell the time."""
    return [{k: v for k, v in row.items() if not k.endswith("_s")} for row in rows(folder / "metrics.jsonl")]


def side_by_side(said: str) -> dict[str, list[str]]:
    """The table with which a sweep over several clusters ends: each cluster's cells, split at spaces."""
    lines = said.splitlines()
    heads = [i for i, line in enumerate(lines) if line.split()[:2] == ["cluster", "finished"]]
    assert heads, said
    table = [line.split() for line in lines[heads[-1] + 1 :]]
    return {cells[0]: cells[1:] for cells in table[: [*table, []].index([])]}
