"""A sweep over two profiles on a cluster of several nodes, which this machine simulates."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.end_to_end.commands import ended, start, written
from tests.end_to_end.outcome import side_by_side
from tests.end_to_end.test_jobs import free_ports

pytestmark = pytest.mark.slow


@pytest.fixture
def three_nodes(ray_folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Three nodes of one CPU each; gives the environment in which a command joins them."""
    from ray.cluster_utils import Cluster

    monkeypatch.setenv("RAY_TMPDIR", str(ray_folder))
    (port,) = free_ports(1)
    made = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": True, "dashboard_port": port}
    )
    for _ in range(2):
        made.add_node(num_cpus=1)
    yield {
        "RAY_ADDRESS": made.address,
        "RAY_API_SERVER_ADDRESS": f"http://127.0.0.1:{port}",
        "RAY_TMPDIR": str(ray_folder),
    }
    made.shutdown()


def test_a_sweep_over_two_profiles_on_three_nodes_ends_with_metric_throughput_and_cost(
    three_nodes: dict[str, str], settings: dict[str, Any], tmp_path: Path
) -> None:
    names = [written({"workers": n, "placement": "SPREAD"}, tmp_path / f"workers-{n}.yaml") for n in (1, 2)]
    run = {
        **settings, "name": "swept", "storage": str(tmp_path / "results"),
        "outer": {**settings["outer"], "steps": 8}, "validation": {"every": 4, "episodes": 6},
    }  # fmt: skip
    space = written({"settings": {"algorithm.inner_lr": {"loguniform": [0.01, 0.1]}}}, tmp_path / "space.yaml")
    words = [w for name in names for w in ("--cluster", name)]
    status, said = ended(
        start(
            "tune",
            written(run, tmp_path / "run.yaml"),
            "--space",
            space,
            "--trials",
            "1",
            *words,
            environment=three_nodes,
        )
    )
    assert status == 0, said
    table = side_by_side(said)
    assert list(table) == ["workers-1", "workers-2"]
    for cells in table.values():
        finished, _, total, best, _, half, tasks_per_s, worker_s, each = cells
        assert (finished, total) == ("1", "1")
        assert 0 <= float(best) <= 100
        assert float(half) >= 0
        assert float(tasks_per_s) > 0
        assert float(worker_s) >= float(each) >= 0
    # the same episodes, whoever computes them
    assert float(table["workers-1"][3]) == pytest.approx(float(table["workers-2"][3]), abs=0.2)
