"""What each algorithm comes to on the same real episodes: its metric with its interval, what a step costs, and its memory.

    python -m tests.benchmarks.quality --data hwu64 --json quality.json

Each row is a run of the recipe with another algorithm, in a process of its own on one thread, all with the same outer steps,
the same training episodes and the same test episodes. Rows that the JSON file has already are not measured again.
"""

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

import torch

from raymeta.config import Run
from raymeta.metrics import Estimate, estimates
from raymeta.parts import held_out, prepared
from raymeta.stages.evaluate import fitting, loaded, meta_parameters, scores
from raymeta.stages.metatrain import metatrain
from raymeta.track import rows
from raymeta.workers import Workers

RECIPES = {"hwu64": "intents-hwu64", "slots": "slots-sgd"}

ALGORITHMS: dict[str, list[str]] = {
    "not meta-trained": ["algorithm={kind: maml, order: 1, inner_steps: 1, inner_lr: LR}"],
    "protonet": ["algorithm=protonet"],
    "maml, first order": ["algorithm={kind: maml, order: 1, inner_steps: 1, inner_lr: LR}"],
    "maml": ["algorithm={kind: maml, order: 2, inner_steps: 1, inner_lr: LR}"],
    "maml, 3 steps": ["algorithm={kind: maml, order: 2, inner_steps: 3, inner_lr: LR}"],
    "maml, 3 steps, recomputed": ["algorithm={kind: maml, inner_steps: 3, inner_lr: LR, second_order: recomputed}"],
    "maml, 3 steps, finite differences": [
        "algorithm={kind: maml, inner_steps: 3, inner_lr: LR, second_order: finite_difference}"
    ],
    "MAML++ (3 steps)": [
        "algorithm={kind: maml, inner_steps: 3, inner_lr: LR, learn: layer_and_step, multi_step_loss: 50, "
        "anneal_order_at: 30}"
    ],
    "meta_sgd": ["algorithm={kind: meta_sgd, inner_lr: LR}"],
    "reptile": ["algorithm={kind: reptile, inner_lr: LR, inner_steps: 5}"],
    "imaml": ["algorithm={kind: imaml, inner_lr: LR, inner_steps: 5}"],
    "ANIL": ["algorithm={kind: maml, inner_steps: 3, inner_lr: LR}", "model.adapt=head"],
    "BOIL": ["algorithm={kind: maml, inner_steps: 1, inner_lr: LR}", "model.adapt=body"],
    "last 2 layers": ["algorithm={kind: maml, inner_steps: 3, inner_lr: LR}", "model.adapt={last: 2}"],
    "lora": ["algorithm={kind: maml, inner_steps: 3, inner_lr: LR}", "model.adapt={lora: {rank: 8}}"],
}
"""The rows: name -> settings that differ from the recipe's."""


def run_of(given: argparse.Namespace, name: str) -> Run:
    """The run of a row."""
    recipe = RECIPES[given.data]
    rate = str(Run.load(recipe).algorithm.inner_lr)  # type: ignore[attr-defined]
    settings = [s.replace("LR", rate) for s in ALGORITHMS[name]]
    return Run.load(
        recipe, *settings, f"outer.steps={given.steps}", f"outer.tasks_per_step={given.tasks}", "validation.every=0",
        f"storage={given.folder}", "cluster=local-debug", "save.every=1000", f"seed={given.seed}",
    )  # fmt: skip


def measured(given: argparse.Namespace, name: str) -> dict[str, Any]:
    """Trains and measures one row, in this process."""
    run = run_of(given, name)
    workers = Workers()
    row: dict[str, Any] = {"row": name, "data": given.data, "steps": given.steps, "episodes": given.episodes}
    start = None
    if name != "not meta-trained":
        shutil.rmtree(run.folder, ignore_errors=True)  # else an earlier run's end would be its cost
        before, base = time.process_time(), resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        result = metatrain(run)
        row["cpu_s_per_step"] = (time.process_time() - before) / run.outer.steps
        row["peak_mib"] = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - base) / 1024
        row["step_s"] = median(r["step_s"] for r in rows(run.folder / "metrics.jsonl") if "step_s" in r)
        start = result.last
    folders = prepared(run.parts, run.backbone, run.seed, run.root / "prepared", on_ray=False, say=lambda _: None)
    network = loaded(run, workers)
    params = meta_parameters(run, network, workers)
    if start is not None:
        params = {**params, **fitting(start, params)}
    shots = run.evaluate.shots[0] if run.evaluate.shots else None
    for part, source in held_out(run.parts, folders, "test", run.seed, lambda p: run.measured(shots, p.tasks)):
        before = time.process_time()
        found = scores(network, run.algorithm, params, source, given.episodes, None, workers)
        row["cpu_s_per_adaptation"] = (time.process_time() - before) / given.episodes
        estimate = estimates(found)[part.tasks.metric]
        row |= {"metric": part.tasks.metric, "mean": estimate.mean, "ci95": estimate.ci95}
    return row


def table(found: list[dict[str, Any]]) -> str:
    """The rows for a reader."""
    lines = [f"{'':<36}{'%, 95 % interval':>18}{'CPU s a step':>14}{'CPU s to adapt':>16}{'peak MiB':>10}"]
    for row in found:
        metric = str(Estimate(row["mean"], row["ci95"]))
        step = f"{row['cpu_s_per_step']:.2f}" if "cpu_s_per_step" in row else "-"
        peak = f"{row['peak_mib']:.0f}" if "peak_mib" in row else "-"
        lines.append(f"{row['row']:<36}{metric:>18}{step:>14}{row['cpu_s_per_adaptation']:>16.3f}{peak:>10}")
    return "\n".join(lines)


def main() -> None:
    """Measures what the command line asks for, row by row, and prints the table."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--data", choices=list(RECIPES), default="hwu64")
    made.add_argument("--rows", nargs="*", default=list(ALGORITHMS), choices=list(ALGORITHMS))
    made.add_argument("--steps", type=int, default=150, help="outer steps")
    made.add_argument("--tasks", type=int, default=1, help="tasks of an outer step")
    made.add_argument("--episodes", type=int, default=600, help="test episodes")
    made.add_argument("--seed", type=int, default=0)
    made.add_argument("--json", type=Path, required=True, help="where rows are kept")
    made.add_argument("--folder", default=str(Path(tempfile.gettempdir()) / "raymeta-quality"))
    made.add_argument("--one", help=argparse.SUPPRESS)
    given = made.parse_args()
    torch.set_num_threads(1)
    if given.one:
        print("\n" + json.dumps(measured(given, given.one)))
        return
    found = json.loads(given.json.read_text(encoding="utf-8")) if given.json.is_file() else []
    known = {(r["row"], r["data"], r["steps"], r["episodes"]) for r in found}
    for name in given.rows:
        if (name, given.data, given.steps, given.episodes) in known:
            continue
        said = subprocess.run(
            [sys.executable, "-m", "tests.benchmarks.quality", *sys.argv[1:], "--one", name],
            env={**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}, stdout=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
        if said.returncode:
            print(f"{name}: failed\n{said.stdout[-2000:]}", file=sys.stderr)
            continue
        found.append(json.loads(said.stdout.strip().splitlines()[-1]))
        given.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(table(found[-1:]), flush=True)
    print(table([r for r in found if r["data"] == given.data]))


if __name__ == "__main__":
    main()
