"""Few-shot evaluation on held-out classes: fixed episodes, each metric with its 95 % interval, beside two baselines."""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from raymeta import checkpoint
from raymeta.algorithms import Algorithm
from raymeta.algorithms.protonet import Protonet
from raymeta.checkpoint import Checkpoint
from raymeta.cluster import connect, launch
from raymeta.config import Run
from raymeta.errors import UserError
from raymeta.heads.prototype import Prototype
from raymeta.layers import Params
from raymeta.metrics import Estimate, estimates
from raymeta.model import Network
from raymeta.prepare import prepare
from raymeta.stream import Source, share
from raymeta.workers import Workers

ROWS = {
    "metrics": "meta-trained",
    "untrained": "not meta-trained, adapted alike",
    "prototype": "frozen nearest prototype",
}
"""The rows of an evaluation: their names in evaluation.json, and in the table."""


def scores(
    network: Network,
    algorithm: Algorithm,
    params: Params,
    source: Source,
    episodes: int,
    inner_steps: int | None,
    workers: Workers,
) -> list[dict[str, float]]:
    """The metrics of episodes 0 ... episodes - 1 of `source`, each adapted from `params`; every worker gets all of them."""
    mine = []
    for number in share(0, episodes, workers.rank, workers.count):
        episode = source.episode(number)
        with torch.no_grad():
            inner = algorithm.bound(network, source.tasks, [episode.to(workers.device)], learn=False)
            fast = algorithm.adapt(inner, inner.opened(params), steps=inner_steps)
            outputs = inner.answers(inner.query_logits(fast))[0]
        mine.append((number, source.tasks.score(outputs.cpu(), episode.query, episode.classes)))
    return [
        found
        for _, found in sorted((pair for part in workers.gathered(mine) for pair in part), key=lambda pair: pair[0])
    ]


def evaluate(run: Run, start: Checkpoint) -> dict[str, Any]:
    """Measures the checkpoint `start` and both baselines; writes evaluation.json and gives it.

    Several `evaluate.shots` are measured in turn: the first is the file's own, and all are under `settings`.
    """
    path = run.folder / "evaluation.json"
    known = read(path)
    asked = {
        "settings": run.evaluate.model_dump(mode="json"),
        "checkpoint": str(start.folder),
        "sha256": start.state["sha256"]["params.safetensors"],
    }
    if known and known.get("asked") == asked:
        return known
    with checkpoint.locked(run.folder):
        connect(run.cluster)
        prepared = prepare(
            run.corpus,
            run.tasks,
            run.backbone,
            run.seed,
            run.root / "prepared",
            on_ray=not run.cluster.in_process,
            say=lambda _: None,
        )
        for shots in run.evaluate.shots or (None,):
            Source(str(prepared.folder), run.measured(shots), run.evaluate.split, run.seed).check()
        payload = {
            "run": run.model_dump(mode="json"), "folder": str(run.folder), "prepared": str(prepared.folder),
            "checkpoint": str(start.folder), "asked": asked,
        }  # fmt: skip
        launch(_measure, payload, run.cluster, run.folder)
    found = read(path)
    assert found is not None
    return found


def read(path: Path) -> dict[str, Any] | None:
    """An evaluation that was written, or None."""
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def loaded(run: Run, workers: Workers) -> Network:
    """The run's model on this worker's device; new weights, if it has any, are seeded alike on every worker.

    Raises UserError where the algorithm does not suit the model.
    """
    torch.manual_seed(run.seed)
    outputs = run.tasks.outputs_for(run.tasks.ways[1])
    network = run.backbone.load(outputs, run.seed, run.outer.train, run.tasks.slots).to(workers.device)
    run.algorithm.check(network)
    return network


def meta_parameters(run: Run, network: Network, workers: Workers) -> Params:
    """All meta-parameters before training: the model's, its head's, and the algorithm's own."""
    return {**network.params(), **{n: p.to(workers.device) for n, p in run.algorithm.init(network).items()}}


def fitting(start: Checkpoint, params: Params) -> Params:
    """The checkpoint's parameters; raises UserError where they are not those of a model with `params`."""
    found = start.params()
    for name, value in found.items():
        if name not in params or params[name].shape != value.shape:
            there = f"a shape of {tuple(params[name].shape)}" if name in params else "no such parameter"
            raise UserError(
                f"checkpoint {start.folder} is of another model: its {name} has the shape {tuple(value.shape)}, and this run's "
                f"model has {there}; give a checkpoint of this run, or the settings of {start.folder / 'run.yaml'}"
            )
    return found


def _measure(payload: dict[str, Any], workers: Workers) -> None:
    """All rows of all settings, as every worker runs it; the first worker writes what was found."""
    run = Run.of(payload["run"])
    network = loaded(run, workers)
    first = meta_parameters(run, network, workers)
    start = checkpoint.load(Path(payload["checkpoint"]))
    trained = {**first, **{n: p.to(workers.device) for n, p in fitting(start, first).items()}}
    settings = []
    for shots in run.evaluate.shots or (None,):
        tasks = run.measured(shots)
        source = Source(payload["prepared"], tasks, run.evaluate.split, run.seed)
        shape = {
            "split": run.evaluate.split, "episodes": run.evaluate.episodes, "ways": _plain(tasks.ways), "shots": _plain(tasks.shots),
            "queries": tasks.queries,
        }  # fmt: skip
        rows = {}
        for name, params in (("metrics", trained), ("untrained", first), ("prototype", first)):
            algorithm, head = run.algorithm, network.head
            if name == "prototype":
                algorithm, network.head = Protonet(), head if isinstance(head, Prototype) else Prototype()
            found = scores(network, algorithm, params, source, run.evaluate.episodes, run.evaluate.inner_steps, workers)
            network.head = head
            rows[name] = {m: {"mean": e.mean, "ci95": e.ci95} for m, e in estimates(found).items()}
        settings.append({**shape, **rows})
    if workers.first:
        path = Path(payload["folder"]) / "evaluation.json"
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(
            json.dumps({**settings[0], "settings": settings, "asked": payload["asked"]}, indent=1), encoding="utf-8"
        )
        temporary.replace(path)


def _plain(bounds: tuple[int, int]) -> int | list[int]:
    return bounds[0] if bounds[0] == bounds[1] else list(bounds)


def table(evaluation: dict[str, Any], kilo_shot: bool = False) -> str:
    """The evaluation as text: a row for the model and each baseline, a column for each metric, in percent.

    kilo_shot: whether K shots stand for K to 2 K mentions (entities).
    """
    blocks = []
    for found in evaluation["settings"]:
        names = list(found["metrics"])
        shots = (
            f"{found['shots']}~{2 * found['shots']}"
            if kilo_shot and isinstance(found["shots"], int)
            else f"{found['shots']}"
        )
        head = f"{found['split']}: {found['episodes']} episodes, {found['ways']}-way {shots}-shot; mean ± 95 % interval, in %"
        cells = [["", *names]]
        for row, label in ROWS.items():
            cells.append([label, *(str(Estimate(found[row][n]["mean"], found[row][n]["ci95"])) for n in names)])
        blocks.append("\n".join([head, *_aligned(cells)]))
    return "\n\n".join(blocks)


def _aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return [
        "  " + "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
