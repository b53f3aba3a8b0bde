"""Looking before running: a run's sizes and a sample episode, what there is to choose from, what changed."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from raymeta import yaml12
from raymeta.algorithms import Algorithm
from raymeta.cluster import explained
from raymeta.component import Component
from raymeta.config import Run, recipes
from raymeta.corpora import Corpus
from raymeta.heads import Head
from raymeta.parts import held_out, left_out, prepared, training
from raymeta.space import spaces
from raymeta.stages.evaluate import loaded, measured
from raymeta.stages.finetune import targets
from raymeta.stages.pretrain import looked_at
from raymeta.stream import Mixture
from raymeta.tasks import Tasks
from raymeta.workers import Workers


def check(run: Run) -> None:
    """Prints the run with its defaults, its sizes and a sample episode; raises UserError for whatever would stop it."""
    print(run.yaml())
    with looked_at(run) as started:
        _look(started)
    print(f"\nthe run's folder is {run.folder}")


def _look(run: Run) -> None:
    """Prints the sizes of a run whose backbone is there, and a sample episode."""
    parts = run.parts
    folders = prepared(parts, run.backbone, run.seed, run.root / "prepared", on_ray=False)
    network = loaded(run, Workers())
    params = network.params()
    adapted = sum(params[n].numel() for n in network.adapted)
    total = sum(p.numel() for p in params.values())
    print(f"model: {total / 1e6:.1f} M parameters, of which {adapted / 1e6:.1f} M adapt, and the head")
    print(f"rows: {'packed several texts to a row' if network.packs else 'one text a row, padded'}")
    train = training(parts, folders, run.seed)
    sources = train.sources if isinstance(train, Mixture) else (train,)
    looked = [("train", [(parts[source.part], source) for source in sources])]
    if run.validation.every:
        looked.append(("validation", held_out(parts, folders, "validation", run.seed)))
    looked += [(run.evaluate.split, measured(run, folders, shots)) for shots in run.evaluate.shots or (None,)]
    for _, there in looked:
        for _, source in there:
            source.check()
    for line in dict.fromkeys(line for split, there in looked[1:] for line in left_out(parts, there, split)):
        print(line)
    if run.finetune:
        targets(run)
    for source in sources:
        episode = source.episode(0)
        of = f" of {parts[source.part].name}" if len(parts) > 1 else ""
        for remark in run.algorithm.remarks(network, source.tasks, episode, params | run.algorithm.init(network)):
            print(f"{parts[source.part].name}: {remark}" if of else remark)
        print(f"\nepisode 0 of the train split{of}:\n{source.tasks.show(episode, run.backbone.tokenizer())}")


def changed_settings(run: Run) -> Iterator[str]:
    """Says so where an earlier run of this name, or its pre-training, had other settings, and which."""
    if run.pretrain:
        own = ("corpus", "tasks") if "own" in run.pretrain.corpus else ()
        matters = ("seed", "model.name", "model.trust_remote_code", "pretrain", *own)
        yield from _changed(run, run.pretrained, "pre-training anew in", matters)
    yield from _changed(run, run.folder, "starting anew in")
    if run.folder.exists():
        yield from _changed_finetuning(run)


def _changed(run: Run, folder: Path, anew: str, matters: tuple[str, ...] = ()) -> Iterator[str]:
    """matters: what settings a difference of which counts begin with; none: all that change a run."""
    earlier = [p for p in folder.parent.glob(f"{run.name}-????????") if (p / "run.yaml").is_file()]
    if folder.exists() or not earlier:
        return
    newest = max(earlier, key=lambda p: (p / "run.yaml").stat().st_mtime)
    before = _flat(yaml12.read(newest / "run.yaml"))
    now = _flat(yaml12.parse(run.yaml()))
    keys = [
        k
        for k in {**before, **now}
        if before.get(k) != now.get(k)
        and (k.startswith(matters) if matters else k.split(".")[0] not in ("cluster", "storage", "description"))
    ]
    changes = ", ".join(f"{k}: {before.get(k)} -> {now.get(k)}" for k in keys[:5])
    yield f"settings differ from {newest} ({changes}{', ...' if len(keys) > 5 else ''}); {anew} {folder}"


def _changed_finetuning(run: Run) -> Iterator[str]:
    """Says so where the run's fine-tuning was done with other settings, and which."""
    earlier = sorted(run.folder.glob("finetune-????????/run.yaml"), key=lambda p: p.stat().st_mtime)
    if run.finetune is None or not earlier:
        return
    sections = [_flat({**yaml12.read(path)["finetune"], "seeds": None, "compare": None}) for path in earlier]
    now = _flat({**yaml12.parse(run.yaml())["finetune"], "seeds": None, "compare": None})
    if now not in sections:
        before = sections[-1]
        keys = [k for k in {**before, **now} if before.get(k) != now.get(k)]
        changes = ", ".join(f"finetune.{k}: {before.get(k)} -> {now.get(k)}" for k in keys[:5])
        yield f"settings differ from {earlier[-1].parent} ({changes}{', ...' if len(keys) > 5 else ''}); fine-tuning anew"


def _flat(values: Any, above: str = "") -> dict[str, Any]:
    if isinstance(values, list) and any(isinstance(v, dict) for v in values):
        values = dict(enumerate(values))
    if not isinstance(values, dict):
        return {above: values}
    return {
        k: v
        for name, inner in values.items()
        for k, v in _flat(inner, f"{above}.{name}" if above else str(name)).items()
    }


def _kinds(family: type[Component]) -> Callable[[], Iterator[tuple[str, str]]]:
    def listed() -> Iterator[tuple[str, str]]:
        for kind in family.kinds():
            yield kind, (family.member(kind).__doc__ or "").strip().splitlines()[0]

    return listed


def _recipes() -> Iterator[tuple[str, str]]:
    for name, path in recipes().items():
        yield name, str(yaml12.read(path).get("description", ""))


def _spaces() -> Iterator[tuple[str, str]]:
    for name, path in spaces().items():
        yield name, str(yaml12.read(path, "space").get("description", ""))


def _runs() -> Iterator[tuple[str, str]]:
    for path in sorted(Path("results").glob("*/run.yaml")):
        done = "evaluated" if (path.parent / "evaluation.json").is_file() else "not evaluated"
        steps = sorted(p.name for p in (path.parent / "checkpoints").glob("step_*"))
        yield path.parent.name, f"{steps[-1] if steps else 'no checkpoint yet'}, {done}"


LISTS: dict[str, Callable[[], Iterator[tuple[str, str]]]] = {
    "recipes": _recipes,
    "algorithms": _kinds(Algorithm),
    "tasks": _kinds(Tasks),
    "corpora": _kinds(Corpus),
    "heads": _kinds(Head),
    "clusters": explained,
    "spaces": _spaces,
    "runs": _runs,
}
"""What `raymeta ls` lists: name -> (name, one line) of each."""
