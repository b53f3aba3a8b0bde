"""What adaptation does, step by step: the metric on held-out episodes after 0, 1, 2, ... inner steps."""

import json
from pathlib import Path
from typing import Any

from raymeta.checkpoint import Checkpoint
from raymeta.config import Run
from raymeta.metrics import estimate
from raymeta.parts import prepared
from raymeta.stages.evaluate import fitting, loaded, measured, meta_parameters, read, scores
from raymeta.workers import Workers

LINES = {"metrics": "meta-trained", "untrained": "not meta-trained"}
"""What is measured: names in adaptation.json, and in a plot."""


def inner_steps(run: Run) -> int:
    """The steps that the run is evaluated with; 0 where its algorithm takes none."""
    chosen = run.evaluate.inner_steps
    return int(getattr(run.algorithm, "inner_steps", 0)) if chosen is None else chosen


def by_step(run: Run, folder: Path, start: Checkpoint, episodes: int) -> list[dict[str, Any]]:
    """For each part of the run, its `metric`, and under `metrics` and `untrained` its {"mean", "ci95"} after each number of steps.

    Measured in this process over the first `episodes` episodes of the evaluation, and kept in the folder's adaptation.json. Raises
    UserError where the corpus is not there.
    """
    path = folder / "adaptation.json"
    sums = start.state["sha256"]["params.safetensors"]
    asked = {"settings": run.evaluate.model_dump(mode="json"), "episodes": episodes, "sha256": sums}
    known = read(path)
    if known is not None and known["asked"] == asked:
        return list(known["parts"])
    print(f"measuring what each inner step does, over {episodes} episodes (--episodes 0 leaves it out) ...", flush=True)
    folders = prepared(run.parts, run.backbone, run.seed, run.root / "prepared", on_ray=False, say=lambda _: None)
    network = loaded(run, Workers())
    first = meta_parameters(run, network, Workers())
    trained = {**first, **fitting(start, first)}
    shots = run.evaluate.shots[0] if run.evaluate.shots else None
    parts = []
    for part, source in measured(run, folders, shots):
        found: dict[str, Any] = {"part": part.name, "metric": part.tasks.metric, "episodes": episodes}
        for name, params in (("metrics", trained), ("untrained", first)):
            each = [
                scores(network, run.algorithm, params, source, episodes, steps, Workers())
                for steps in range(inner_steps(run) + 1)
            ]
            estimates = [estimate([s[part.tasks.metric] for s in of]) for of in each]
            found[name] = [{"mean": e.mean, "ci95": e.ci95} for e in estimates]
        parts.append(found)
    _write(path, {"asked": asked, "parts": parts})
    return parts


def _write(path: Path, found: dict[str, Any]) -> None:
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(found, indent=1), encoding="utf-8")
    temporary.replace(path)
