"""What a run comes to does not depend on how many workers it has, nor on when they change. Without Ray: the loop and gloo alone."""

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from raymeta.config import Run
from raymeta.errors import UserError
from raymeta.parts import prepared
from raymeta.stages import metatrain
from raymeta.stages.metatrain import Result, finished
from raymeta.workers import Workers
from tests.end_to_end.conftest import INTERRUPTED
from tests.end_to_end.outcome import furthest, metrics

STEPS = 50


def work(payload: dict[str, Any], rank: int, count: int, meeting: str) -> None:
    """What one worker does."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{meeting}", rank=rank, world_size=count)
    try:
        metatrain._train(payload, Workers(rank, count))
    except (UserError, RuntimeError):
        if not Run.of(payload["run"]).algorithm.kind.endswith("Interrupted"):
            raise


def trained(values: dict[str, Any], meeting: Path, count: int) -> Result | None:
    """A run that `count` processes work on, until its end or a mistake is found."""
    run = Run.of(values)
    run.folder.mkdir(parents=True, exist_ok=True)
    folders = prepared(run.parts, run.backbone, run.seed, run.root / "prepared", on_ray=False, say=lambda _: None)
    payload = metatrain.asked(run, folders, 0, run.outer.steps)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["raymeta.stages.metatrain"])
    processes = [context.Process(target=work, args=(payload, r, count, str(meeting))) for r in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(300)
        assert process.exitcode == 0, f"worker {process.name}: {process.exitcode}"
    return finished(run)


def numbers(result: Result) -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if not isinstance(v, str)} for row in metrics(result.folder)]


@pytest.fixture(scope="module")
def fifty(settings: dict[str, Any], tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The small run, in 50 steps."""
    storage = str(tmp_path_factory.mktemp("fifty"))
    return {**settings, "name": "fifty", "outer": {**settings["outer"], "steps": STEPS}, "storage": storage}


@pytest.fixture(scope="module")
def one(fifty: dict[str, Any]) -> Result:
    """What one worker comes to."""
    return metatrain.metatrain(Run.of(fifty))


def assert_same_path(found: Result, one: Result) -> None:
    # float32: gradients of about 1 summed in another order differ by 1e-7, which AdamW carries along for 50 steps
    assert furthest(one, found) < 1e-5
    assert [row["step"] for row in numbers(found) if "tasks" in row] == [*range(1, STEPS + 1)]
    for ours, theirs in zip(numbers(one), numbers(found), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("count", [2, 4])
def test_more_workers_walk_the_path_of_one(count: int, fifty: dict[str, Any], one: Result, tmp_path: Path) -> None:
    found = trained({**fifty, "name": f"on-{count}"}, tmp_path / "meeting", count)
    assert found is not None
    assert_same_path(found, one)


def test_four_workers_and_then_two_walk_the_path_of_one(fifty: dict[str, Any], one: Result, tmp_path: Path) -> None:
    sign = tmp_path / "sign"
    sign.touch()
    algorithm = {**fifty["algorithm"], "kind": INTERRUPTED, "at": 23 * 4, "sign": str(sign), "how": "mistaken"}
    changed = {**fifty, "name": "changed", "algorithm": algorithm}
    assert trained(changed, tmp_path / "meeting", 4) is None
    assert not sign.exists()
    found = trained(changed, tmp_path / "meeting-2", 2)
    assert found is not None
    assert_same_path(found, one)
