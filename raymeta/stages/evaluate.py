"""Few-shot evaluation on held-out classes: fixed episodes, each metric with its 95 % interval, beside two baselines."""

import json
import os
from collections.abc import Mapping, Sequence
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
from raymeta.metrics import Estimate, differences, estimates, mean_of
from raymeta.model import Network
from raymeta.parts import Part, held_out, left_out, prepared
from raymeta.plain import whole
from raymeta.setfit import SetFit, Tuner
from raymeta.stages.measuring import Measuring, Scores, Tick, progress_line
from raymeta.stages.pretrain import ready
from raymeta.stream import Source, share
from raymeta.tasks import Tasks
from raymeta.tasks._text_to_text import Generation
from raymeta.tasks.classification import Classification
from raymeta.tasks.entities import Entities
from raymeta.track import Follow
from raymeta.workers import Workers
from raymeta.writing import end_of, written

ROWS = {
    "metrics": "meta-trained",
    "untrained": "not meta-trained, adapted alike",
    "prototype": "frozen nearest prototype",
    "unadapted": "meta-trained, not adapted",
    "setfit": "SetFit",
}
"""The rows of an evaluation: their names in evaluation.json, and in the table. `prototype` and `unadapted` are of one kind each:
where an output means the same in every task there are no prototypes, and a head over new classes says nothing before it is
adapted. `setfit` is there if it is asked for, of the first `setfit_episodes` episodes."""

DIFFERENCE = "difference"
"""Under this name, evaluation.json holds how far the first row is from each of the others, episode by episode."""

SO_FAR = "evaluation.jsonl"
"""File of a run's folder that is there while it is evaluated."""


def scores(
    network: Network,
    algorithm: Algorithm,
    params: Params,
    source: Source,
    episodes: int,
    inner_steps: int | None,
    workers: Workers,
    written_out: bool = False,
    tick: Tick = lambda: None,
) -> Scores:
    """The metrics of episodes 0 ... episodes - 1 of `source`, each adapted from `params`; every worker gets all of them.

    written_out: of kinds whose answers are texts, those of the texts that the model writes, too. tick: called after each of
    this worker's episodes.
    """
    mine = []
    tokenizer = network.backbone.tokenizer() if written_out and source.tasks.generates else None
    for number in share(0, episodes, workers.rank, workers.count):
        episode = source.episode(number)
        with torch.no_grad():
            inner = algorithm.bound(network, source.tasks, [episode.to(workers.device)], learn=False)
            fast = algorithm.adapt(inner, inner.opened(params), steps=inner_steps)
            outputs = inner.answers(inner.query_logits(fast))[0]
        found = source.tasks.score(outputs.cpu(), episode.query, episode.classes)
        if tokenizer is not None and isinstance(source.tasks, Generation):
            answers = written(
                network,
                whole(inner, fast, params),
                episode.query,
                end_of(episode.query),
                source.tasks.max_target_length,
            )
            texts = tokenizer.batch_decode(answers, skip_special_tokens=True)
            found |= source.tasks.score_texts(texts, episode.query, episode.classes)
        mine.append((number, found))
        tick()
    return _all_of(mine, workers)


def _setfit_scores(tuner: Tuner, source: Source, episodes: int, workers: Workers, tick: Tick) -> Scores:
    """The same of SetFit, which learns from the support sets of the first `episodes` episodes."""
    mine = []
    for number in share(0, episodes, workers.rank, workers.count):
        episode = source.episode(number)
        labels = source.tasks.targets(episode.support)
        found = tuner.logits(episode.support, labels, episode.query, len(episode.classes), source.seed + number)
        mine.append((number, source.tasks.score(found, episode.query, episode.classes)))
        tick()
    return _all_of(mine, workers)


def _all_of(mine: list[tuple[int, dict[str, float]]], workers: Workers) -> Scores:
    """Every worker's episodes, by number."""
    return [
        found
        for _, found in sorted((pair for part in workers.gathered(mine) for pair in part), key=lambda pair: pair[0])
    ]


def evaluate(run: Run, start: Checkpoint) -> dict[str, Any]:
    """Measures the checkpoint `start` and both baselines; writes evaluation.json and gives it.

    Several `evaluate.shots` are measured in turn: the first is the file's own, and all are under `settings`. Of a mixed
    corpus, each part that has the split is measured, and then the mean over them.
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
    if run.evaluate.setfit:
        run.evaluate.setfit.check()
    ready(run)
    with checkpoint.locked(run.folder):
        connect(run.cluster, run.root)
        folders = prepared(
            run.parts,
            run.backbone,
            run.seed,
            run.root / "prepared",
            on_ray=not run.cluster.in_process,
            say=lambda _: None,
        )
        total = 0
        for shots in run.evaluate.shots or (None,):
            there = measured(run, folders, shots)
            for part, source in there:
                source.check()
                total += sum(episodes for _, episodes in _rows(run, part.tasks))
        for line in left_out(run.parts, there, run.evaluate.split):
            print(line)
        payload = {
            "run": run.model_dump(mode="json"), "folder": str(run.folder), "prepared": folders,
            "checkpoint": str(start.folder), "asked": asked,
        }  # fmt: skip
        with Follow(run.folder / SO_FAR, total, "", of_step=progress_line):
            launch(_measure, payload, run.cluster, run.folder, run.exact)
    found = read(path)
    assert found is not None
    (run.folder / SO_FAR).unlink(missing_ok=True)
    return found


def read(path: Path) -> dict[str, Any] | None:
    """An evaluation that was written, or None."""
    if not path.is_file():
        return None
    found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return found


def measured(run: Run, folders: Sequence[str], shots: int | None) -> list[tuple[Part, Source]]:
    """Each part that has the split to be evaluated, and where its episodes of `shots` shots come from."""
    return held_out(run.parts, folders, run.evaluate.split, run.seed, lambda part: run.measured(shots, part.tasks))


def loaded(run: Run, workers: Workers) -> Network:
    """The run's model on this worker's device; new weights, if it has any, are seeded alike on every worker.

    Raises UserError where the algorithm does not suit the model.
    """
    torch.manual_seed(run.seed)
    outputs = max(part.tasks.outputs_for(part.tasks.ways[1]) for part in run.parts)
    slots = max(part.tasks.slots for part in run.parts)
    generates = any(part.tasks.generates for part in run.parts)
    network = run.backbone.load(outputs, run.seed, run.outer.train, slots, generates).to(workers.device)
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
    settings, so_far = [], Measuring(Path(payload["folder"]) / SO_FAR, payload["asked"], workers)
    for shots in run.evaluate.shots or (None,):
        found = []
        for part, source in measured(run, payload["prepared"], shots):
            at = (part.name if len(run.parts) > 1 else "", "" if shots is None else f"{shots}-shot")
            rows = {}
            for name, episodes in _rows(run, source.tasks):

                def measure(tick: Tick, name: str = name, source: Source = source, episodes: int = episodes) -> Scores:
                    if name == "setfit":
                        assert run.evaluate.setfit
                        tuner = Tuner(run.evaluate.setfit, run.backbone, workers.device)
                        return _setfit_scores(tuner, source, episodes, workers, tick)
                    return _row(name, run, network, trained, first, source, workers, tick)

                rows[name] = so_far.row((*at, ROWS[name]), episodes, measure)
            found.append((part, source.tasks, rows))
        settings += _settings(run, found)
    if workers.first:
        path = Path(payload["folder"]) / "evaluation.json"
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        temporary.write_text(
            json.dumps({**settings[0], "settings": settings, "asked": payload["asked"]}, indent=1), encoding="utf-8"
        )
        temporary.replace(path)


def _rows(run: Run, tasks: Tasks) -> list[tuple[str, int]]:
    """The rows that are measured of a kind of task, by their names in evaluation.json, and over how many episodes."""
    learned = tasks.generates or tasks.fixed_outputs
    names = ("metrics", "untrained", "unadapted" if learned else "prototype")
    rows = [(name, run.evaluate.episodes) for name in names]
    if run.evaluate.setfit and isinstance(tasks, Classification):
        rows.append(("setfit", _setfit_episodes(run, run.evaluate.setfit)))
    return rows


def _row(
    name: str, run: Run, network: Network, trained: Params, first: Params, source: Source, workers: Workers, tick: Tick
) -> Scores:
    """The metrics of a row's episodes. trained, first: the meta-parameters after and before training."""
    algorithm, head, steps = run.algorithm, network.head, run.evaluate.inner_steps
    if name == "unadapted":
        steps = 0
    if name == "prototype":
        algorithm, network.head = Protonet(), head if isinstance(head, Prototype) else Prototype()
    params = trained if name in ("metrics", "unadapted") else first
    try:
        return scores(network, algorithm, params, source, run.evaluate.episodes, steps, workers, True, tick)
    finally:
        network.head = head


def _setfit_episodes(run: Run, setfit: SetFit) -> int:
    return min(setfit.episodes, run.evaluate.episodes)


def _settings(run: Run, found: list[tuple[Part, Tasks, dict[str, Scores]]]) -> list[dict[str, Any]]:
    """What was found at one number of shots, as evaluation.json holds it; of a mixed corpus, the mean over its parts first."""
    shape = {"split": run.evaluate.split, "episodes": run.evaluate.episodes}
    rows = [{row: estimates(scores) for row, scores in of.items()} for _, _, of in found]
    apart = [
        {row: estimates(differences(of["metrics"], scores)) for row, scores in of.items() if row != "metrics"}
        for _, _, of in found
    ]
    settings = []
    if len(found) > 1:
        mains = [tasks.metric for _, tasks, _ in found]

        def means(of: list[dict[str, dict[str, Estimate]]]) -> dict[str, Any]:
            common = [row for row in ROWS if all(row in each for each in of)]
            return _numbers(
                {
                    row: {"mean": mean_of([each[row][main] for each, main in zip(of, mains, strict=True)])}
                    for row in common
                }
            )

        settings.append(
            {"parts": [part.name for part, _, _ in found], **shape, **means(rows), DIFFERENCE: means(apart)}
        )
    for (part, tasks, of), mine, others in zip(found, rows, apart, strict=True):
        name = {"part": part.name} if len(run.parts) > 1 else {}
        drawn: dict[str, Any] = {"ways": _plain(tasks.ways), "shots": _plain(tasks.shots), "queries": tasks.queries}
        if run.evaluate.setfit and "setfit" in of:
            drawn["setfit_episodes"] = _setfit_episodes(run, run.evaluate.setfit)
        settings.append({**name, **shape, **drawn, **_numbers(mine), DIFFERENCE: _numbers(others)})
    return settings


def _numbers(rows: dict[str, dict[str, Estimate]]) -> dict[str, Any]:
    return {
        row: {metric: {"mean": e.mean, "ci95": e.ci95} for metric, e in found.items()} for row, found in rows.items()
    }


def _plain(bounds: tuple[int, int]) -> int | list[int]:
    return bounds[0] if bounds[0] == bounds[1] else list(bounds)


def text(run: Run, evaluation: dict[str, Any]) -> str:
    """The evaluation of a run as text."""
    entities = {part.name for part in run.parts if isinstance(part.tasks, Entities)}
    return table(evaluation, frozenset(entities) if len(run.parts) > 1 else bool(entities))


def table(evaluation: dict[str, Any], kilo_shot: frozenset[str] | bool = False) -> str:
    """The evaluation as text: a row for the model, for each baseline and for the difference to it, a column for each metric, in
    percent (losses in nats, perplexities as they are).

    Metrics of groups of tasks, `group/metric`, stand below, a row for each group. kilo_shot: whether K shots stand for K to
    2 K mentions (entities); of a mixed corpus, the names of the parts where they do.
    """
    blocks = []
    for found in evaluation["settings"]:
        there = {row: label for row, label in ROWS.items() if row in found}
        if "setfit_episodes" in found:
            there["setfit"] += f" ({found['setfit_episodes']} episodes)"
        names = [n for n in found["metrics"] if "/" not in n]
        cells = [
            ["", *names],
            *([label, *(shown_estimate(found[row], n) for n in names)] for row, label in there.items()),
            *(
                [f"difference to {there[row]}", *(shown_estimate(apart, n, "+") for n in names)]
                for row, apart in found.get(DIFFERENCE, {}).items()
            ),
        ]
        blocks.append("\n".join([_heading(found, kilo_shot), *aligned(cells)]))
        pairs = [n.rsplit("/", 1) for n in found["metrics"] if "/" in n]
        for metric in dict.fromkeys(metric for _, metric in pairs):
            groups = sorted(group for group, m in pairs if m == metric)
            cells = [[f"{metric} by group", *there.values()]]
            cells += [[g, *(shown_estimate(found[row], f"{g}/{metric}") for row in there)] for g in groups]
            blocks.append("\n".join(aligned(cells)))
    return "\n\n".join(blocks)


def shown_estimate(row: Mapping[str, Any], metric: str, sign: str = "") -> str:
    """A metric with its interval: in percent; of a loss, in nats; of a perplexity, as it is. sign: "+" shows it."""
    estimate = Estimate(row[metric]["mean"], row[metric]["ci95"])
    if metric.endswith("perplexity"):
        return estimate.text(2, sign=sign)
    return estimate.text(3, sign=sign) if metric.endswith("loss") else estimate.text(1, 100, sign)


def _heading(found: dict[str, Any], kilo_shot: frozenset[str] | bool) -> str:
    if "parts" in found:
        what = f"mean of the main metrics of {', '.join(found['parts'])}"
        return f"{found['split']}: {what}; {found['episodes']} episodes each; mean ± 95 % interval, in %"
    part, shots = found.get("part", ""), found["shots"]
    doubled = part in kilo_shot if isinstance(kilo_shot, frozenset) else kilo_shot
    shown = f"{shots}~{2 * shots}" if doubled and isinstance(shots, int) else f"{shots}"
    of = f" of {part}" if part else ""
    ways = "" if found["ways"] == 1 else f"{found['ways']}-way "
    return f"{found['split']}{of}: {found['episodes']} episodes, {ways}{shown}-shot; mean ± 95 % interval, in %"


def aligned(cells: Sequence[Sequence[str]]) -> list[str]:
    """Rows of a table as lines: the first column to the left, the others to the right."""
    widths = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    return [
        "  " + "  ".join(c.ljust(w) if i == 0 else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        for row in cells
    ]
