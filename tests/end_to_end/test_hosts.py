"""A run and a sweep on a Ray cluster of several hosts: network namespaces with addresses and folders of their own."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from raymeta.config import Run
from raymeta.stages.metatrain import finished, metatrain
from tests.end_to_end.commands import ended, written
from tests.end_to_end.hosts import Hosts, hosts, lacking
from tests.end_to_end.outcome import furthest, side_by_side

pytestmark = pytest.mark.slow

SHORT = {"validation": {"every": 4, "episodes": 4}, "evaluate": {"episodes": 4}, "save": {"every": 4}}


@pytest.fixture(scope="module")
def cluster() -> Iterator[Hosts]:
    """A head and two workers, one CPU each."""
    why = lacking()
    if why:
        pytest.skip(f"a cluster of several hosts {why}")
    with hosts() as made:
        yield made


def profile(cluster: Hosts, **values: Any) -> dict[str, Any]:
    return {"address": f"{cluster.addresses[0]}:6379", "cpus_per_worker": 1, **values}


def raymeta(cluster: Hosts, *words: str) -> tuple[int, str]:
    return ended(cluster.on_head(sys.executable, "-m", "raymeta", *words), timeout_s=900)


def test_a_run_on_three_hosts_ends_where_this_process_does(
    cluster: Hosts, settings: dict[str, Any], tmp_path: Path
) -> None:
    outer = {**settings["outer"], "steps": 8, "tasks_per_step": 3}
    run = {**settings, **SHORT, "outer": outer, "storage": str(tmp_path / "results")}
    spread = {**run, "name": "spread", "cluster": profile(cluster, workers=3, placement="STRICT_SPREAD")}
    status, said = raymeta(cluster, "run", written(spread, tmp_path / "run.yaml"))
    assert status == 0, said
    assert "meta-trained" in said
    there = finished(Run.of(spread))
    assert there is not None
    here = metatrain(Run.of({**run, "name": "here"}))
    # float32, and gradients summed in another order; see test_workers
    assert furthest(here, there) < 1e-5


def test_a_sweep_on_three_hosts_sets_two_profiles_side_by_side(
    cluster: Hosts, settings: dict[str, Any], tmp_path: Path
) -> None:
    names = [written(profile(cluster, workers=n), tmp_path / f"workers-{n}.yaml") for n in (1, 2)]
    outer = {**settings["outer"], "steps": 8}
    run = {**settings, **SHORT, "name": "swept", "outer": outer, "storage": str(tmp_path / "results")}
    space = written({"settings": {"algorithm.inner_lr": {"loguniform": [0.01, 0.1]}}}, tmp_path / "space.yaml")
    words = [w for name in names for w in ("--cluster", name)]
    status, said = raymeta(
        cluster, "tune", written(run, tmp_path / "run.yaml"), "--space", space, "--trials", "1", *words
    )
    assert status == 0, said
    assert {name: cells[:3] for name, cells in side_by_side(said).items()} == {
        "workers-1": ["1", "of", "1"],
        "workers-2": ["1", "of", "1"],
    }
    assert len(list((tmp_path / "results" / "sweeps").glob("*/best.yaml"))) == 1


def test_a_folder_that_each_host_has_for_itself_is_refused_with_the_remedy(
    cluster: Hosts, settings: dict[str, Any], tmp_path: Path
) -> None:
    run = {**settings, "name": "apart", "storage": str(cluster.own), "cluster": profile(cluster, workers=2)}
    status, said = raymeta(cluster, "run", written(run, tmp_path / "run.yaml"))
    assert status == 2, said
    missing = ", ".join(cluster.addresses[1:])
    assert f"is not seen by 2 of the cluster's 3 machines ({missing}); name a folder that all of them mount" in said
    assert "Traceback" not in said
