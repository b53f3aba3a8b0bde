"""Several Ray nodes on this machine, the processes on them by what they do, and a way to lose any of them."""

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Self

ROLES: dict[str, Callable[[str], bool]] = {
    "worker": lambda title: title.startswith("ray::RayTrainWorker"),
    "controller": lambda title: title.startswith("ray::TrainController"),
    "data": lambda title: title.startswith("ray::") and "Numbered" in title,
}
"""What a process of a run does, told from its title."""


def titles() -> dict[int, tuple[int, str]]:
    """Every process: its parent, and its title."""
    found = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            title = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            found[int(folder.name)] = (parent, title)
    return found


def _above(pid: int, everybody: dict[int, tuple[int, str]], roots: set[int]) -> int | None:
    """Which of `roots` a process descends from."""
    while pid in everybody and pid not in roots:
        pid = everybody[pid][0]
    return pid if pid in roots else None


class Nodes:
    """A Ray cluster of a head without CPUs and of nodes with one each, which notices within seconds that a node is gone."""

    def __init__(self, count: int) -> None:
        self.count = count
        self.environment: dict[str, str] = {}
        """What a command needs to join."""
        self._start()

    def _start(self) -> None:
        from ray.cluster_utils import Cluster

        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        quick = {
            "health_check_initial_delay_ms": 1000,
            "health_check_period_ms": 1000,
            "health_check_timeout_ms": 5000,
            "health_check_failure_threshold": 3,
        }
        head = {"num_cpus": 0, "include_dashboard": True, "dashboard_port": port, "_system_config": quick}
        # what runs on the nodes asks this cluster's dashboard, and not that of another one on this machine
        os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{port}"
        self._cluster = Cluster(initialize_head=True, head_node_args=head)
        self.environment |= {
            "RAY_ADDRESS": self._cluster.address,
            "RAY_API_SERVER_ADDRESS": os.environ["RAY_API_SERVER_ADDRESS"],
            # how long a group of workers is waited for that asks for a node which is no longer there
            "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "60",
        }
        for _ in range(self.count):
            self.grow()

    def grow(self) -> None:
        """Adds a node."""
        self._cluster.add_node(num_cpus=1)

    def raylets(self) -> list[int]:
        """The daemons of the nodes other than the head."""
        nodes = sorted(self._cluster.worker_nodes, key=lambda node: node.node_id)
        return [node.all_processes["raylet"][0].process.pid for node in nodes]

    def daemons(self) -> list[int]:
        """What makes the cluster: its record keeper, and the daemons of all nodes."""
        kept = self._cluster.head_node.all_processes["gcs_server"][0].process.pid
        return [kept, *sorted(self._roots())]

    def _roots(self) -> set[int]:
        return {n.all_processes["raylet"][0].process.pid for n in self._cluster.list_all_nodes()}

    def running(self, role: str) -> list[int]:
        """The processes of this cluster that play a role."""
        everybody = titles()
        roots = self._roots()

        def ours(pid: int) -> bool:
            return _above(pid, everybody, roots) is not None

        return sorted(pid for pid, (_, title) in everybody.items() if ROLES[role](title) and ours(pid))

    def busy_raylets(self) -> list[int]:
        """The daemons of nodes on which a worker trains (all, where none does)."""
        there = set(self.raylets())
        found = {_above(pid, titles(), there) for pid in self.running("worker")} & there
        return sorted(found or there)

    def drain(self, seconds: int) -> None:
        """Tells that a node on which a worker trains is taken away in so many seconds, as a spot machine's notice does."""
        pid = self.busy_raylets()[0]
        node = next(n for n in self._cluster.worker_nodes if n.all_processes["raylet"][0].process.pid == pid)
        words = f"drain-node --address {self._cluster.address} --node-id {node.node_id} --deadline-remaining-seconds {seconds}"
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "a spot machine's notice"]
        subprocess.run([Path(sys.executable).with_name("ray"), *words.split(), *reason], check=True)

    def mend(self) -> None:
        """Puts a new node in the place of each that is lost."""
        lost = [n for n in self._cluster.worker_nodes if n.all_processes["raylet"][0].process.poll() is not None]
        for node in lost:
            self._cluster.remove_node(node, allow_graceful=False)
            self.grow()

    def renew(self) -> None:
        """Puts a new cluster in the place of one that is lost."""
        self.end()
        self._start()

    def shrink(self) -> None:
        """Loses a node at once, with all that runs on it."""
        os.kill(self.raylets()[0], signal.SIGKILL)

    def end(self) -> None:
        """Takes the cluster down."""
        self._cluster.shutdown()
        os.environ.pop("RAY_API_SERVER_ADDRESS", None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()


def words(found: Any) -> str:
    """The last line that a command said."""
    return (str(found).strip().splitlines() or [""])[-1]
