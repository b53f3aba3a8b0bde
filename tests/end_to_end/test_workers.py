"""Runs on Ray's workers: how many there are, and what becomes of them, does not change the path."""

from pathlib import Path
from typing import Any

import pytest

from raymeta.errors import UserError
from raymeta.stages.metatrain import Result, metatrain
from raymeta.track import rows
from tests.end_to_end.conftest import INTERRUPTED, MakeRun, workers
from tests.end_to_end.outcome import furthest, metrics, same_bytes


@pytest.mark.usefixtures("ray_cluster")
def test_one_worker_and_two_walk_the_same_path(make_run: MakeRun, alone: Result, on_two: Result) -> None:
    on_one = metatrain(make_run("on-one", cluster=workers(1)))
    assert same_bytes(alone, on_one)
    # float32: gradients of about 1 summed in another order differ by 1e-7, which AdamW carries along for 20 steps
    assert furthest(on_one, on_two) < 1e-5
    assert furthest(on_two, metatrain(make_run("first", outer={"steps": 1, "tasks_per_step": 4, "lr": 1e-9}))) > 1e-3
    lines = [metrics(r.folder) for r in (on_one, on_two)]
    assert [row["step"] for row in lines[0]] == [row["step"] for row in lines[1]]
    for one, two in zip(*lines, strict=True):
        numbers = [{k: v for k, v in row.items() if not isinstance(v, str)} for row in (one, two)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-3, abs=1e-5)


def test_a_run_whose_worker_is_killed_goes_on_by_itself_and_ends_identical(
    make_run: MakeRun, settings: dict[str, Any], on_two: Result, tmp_path: Path
) -> None:
    sign = tmp_path / "sign"
    sign.touch()
    algorithm = {**settings["algorithm"], "kind": INTERRUPTED, "at": 13 * 4 + 1, "sign": str(sign), "how": "killed"}
    broken = metatrain(make_run("broken", algorithm=algorithm, cluster=workers(2)))
    assert not sign.exists()
    assert same_bytes(on_two, broken)
    assert metrics(on_two.folder) == metrics(broken.folder)


@pytest.mark.usefixtures("ray_cluster")
def test_a_users_mistake_found_in_a_worker_ends_the_run_at_once(make_run: MakeRun, tmp_path: Path) -> None:
    sign = tmp_path / "sign"
    sign.touch()
    algorithm = {"kind": INTERRUPTED, "at": 3 * 4 + 1, "sign": str(sign), "how": "mistaken"}
    run = make_run("mistaken", algorithm=algorithm, cluster=workers(2))
    # were the run tried again, it would end well: the sign is gone
    with pytest.raises(UserError, match="it is Friday"):
        metatrain(run)
    assert [row["step"] for row in rows(run.folder / "metrics.jsonl")] == [1, 2, 3]
