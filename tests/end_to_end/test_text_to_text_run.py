"""A run of a kind that writes texts, from a model with new weights to the table: in this process, and on two workers of Ray."""

from itertools import product
from pathlib import Path
from typing import Any

import pytest

from raymeta.config import Run
from raymeta.pipeline import run_all
from raymeta.stages.evaluate import table
from raymeta.track import rows
from tests.end_to_end.conftest import workers
from tests.small import as_jsonl

PLACES = ("Bonn", "Rome", "Oslo", "Lima", "Cairo", "Quito")
ROWS = [
    {"source": f"User: {said} {what} in {place} {when}", "intent": f"{wanted}{what.title()}", "service": place}
    for place in PLACES
    for (said, wanted), what, when in product(
        (("find me a", "Find"), ("book the", "Book")), ("table", "room", "car"), ("today", "now")
    )
]


def settings(folder: Path) -> dict[str, Any]:
    (folder / "rows.jsonl").write_bytes(as_jsonl(ROWS))
    return {
        "name": "intents", "model": {"max_length": 24},
        "corpus": {"kind": "files", "path": str(folder / "rows.jsonl"), "columns": {"task": "service"}},
        "tasks": {
            "kind": "dialogue", "predict": "intent", "shots": 6, "queries": 3, "max_target_length": 12,
            "split": {"of": "task", "validation": ["Cairo"], "test": ["Quito", "Lima"]},
        },
        "pretrain": {
            "objective": "span", "architecture": {"type": "t5", "layers": 1, "hidden": 32, "heads": 2, "max_positions": 32},
            "tokenizer": {"kind": "byte_bpe", "size": 400}, "steps": 10, "batch_size": 4, "length": 32, "lr": 3e-3,
            "validation_share": 0.3, "save_every": 10, "dropout": 0.0,  # which is drawn by worker
        },
        "algorithm": {"kind": "maml", "inner_lr": 0.2, "inner_steps": 3, "order": 1},
        "outer": {"steps": 30, "tasks_per_step": 2, "lr": 1e-2}, "validation": {"every": 15, "episodes": 4},
        "evaluate": {"episodes": 8}, "storage": str(folder), "cluster": "local-debug",
    }  # fmt: skip


ADAPTED, ROWS_OF_THE_TABLE = "metrics", ("metrics", "untrained", "unadapted")


@pytest.fixture(scope="module")
def here(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the run comes to in this process."""
    return run_all(Run.of(settings(tmp_path_factory.mktemp("here"))))


def test_a_run_pretrains_meta_trains_and_scores_what_it_writes(here: dict[str, Any]) -> None:
    assert "meta-trained, not adapted" in table(here)
    for name in ROWS_OF_THE_TABLE:
        assert {*here[name]} == {"token_accuracy", "query_loss", "intent_accuracy"}
    for name in ("untrained", "unadapted"):
        assert here[ADAPTED]["query_loss"]["mean"] < here[name]["query_loss"]["mean"]
        assert here[ADAPTED]["intent_accuracy"]["mean"] > here[name]["intent_accuracy"]["mean"]


@pytest.mark.slow
@pytest.mark.usefixtures("ray_cluster")
def test_the_same_run_on_two_workers_walks_the_same_path(here: dict[str, Any], tmp_path: Path) -> None:
    run = Run.of({**settings(tmp_path), "cluster": workers(2)})
    there = run_all(run)
    losses = [
        [row["query_loss"] for row in rows(folder / "metrics.jsonl") if "tasks" in row]
        for folder in (run.folder, Path(here["asked"]["checkpoint"]).parents[1])
    ]
    assert len(losses[0]) == len(losses[1]) == 30
    # so large steps carry along what another order of summing rounds: by step 6 it is seen in the third digit
    assert losses[0][:4] == pytest.approx(losses[1][:4], rel=1e-3)
    for metric, found in here["untrained"].items():  # what was pre-trained, adapted
        assert there["untrained"][metric]["mean"] == pytest.approx(found["mean"], rel=1e-3, abs=1e-3), metric
    for name in ("untrained", "unadapted"):
        assert there[ADAPTED]["query_loss"]["mean"] < there[name]["query_loss"]["mean"]
        assert there[ADAPTED]["intent_accuracy"]["mean"] > there[name]["intent_accuracy"]["mean"]
