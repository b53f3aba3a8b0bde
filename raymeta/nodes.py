"""The machines of the Ray cluster that this process is on: what fits on them, and whether they see one folder."""

import fcntl
import secrets
import socket
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from raymeta.errors import UserError

Resources = Mapping[str, float]

_LOOKS, _LOOK_AGAIN_S = 10, 3.0
"""How often machines are asked, where one was lost a moment ago: Ray takes up to half a minute to know."""


def fits(bundle: Resources, node: Resources) -> int:
    """How many bundles a node has room for."""
    return min((int(node.get(name, 0.0) / need + 1e-9) for name, need in bundle.items() if need), default=0)


def groups(bundle: Resources, count: int, placement: str, nodes: Sequence[Resources]) -> int:
    """How many groups of `count` bundles, each placed as Ray's `placement` says, are on the nodes at once."""
    each = [fits(bundle, node) for node in nodes]
    if placement == "STRICT_PACK":
        return sum(n // count for n in each)
    if placement == "STRICT_SPREAD":  # a group has at most one bundle on a node
        return max((g for g in range(sum(each) // count + 1) if sum(min(n, g) for n in each) >= g * count), default=0)
    return sum(each) // count


def alive() -> list[dict[str, float]]:
    """The resources of each machine that is up."""
    import ray

    return [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]


def shared(folder: Path) -> str | None:
    """Checks that every machine sees `folder`; gives the network interface that carries them all, where there are several
    and it has one name. Raises UserError with the remedy for a folder that is this machine's own."""
    import ray

    if len(alive()) < 2:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    sign = folder / f".seen-{secrets.token_hex(8)}"
    sign.touch()
    try:
        for again in reversed(range(_LOOKS)):
            nodes = [node for node in ray.nodes() if node["Alive"]]
            if len(nodes) < 2:
                return None
            try:
                answers = _looks(nodes, sign)
                break
            except ray.exceptions.RayError:  # a machine was lost that Ray took to be there
                if not again:
                    raise
                time.sleep(_LOOK_AGAIN_S)
    finally:
        sign.unlink(missing_ok=True)
    blind = [n["NodeManagerAddress"] for n, (seen, _) in zip(nodes, answers, strict=True) if not seen]
    if blind:
        raise UserError(
            f"storage: {folder} is not seen by {len(blind)} of the cluster's {len(nodes)} machines ({', '.join(blind[:3])}); name a folder that all "
            "of them mount (storage=/shared/results, or storage in the cluster's profile)"
        )
    names = {name for _, name in answers}
    return names.pop() if len(names) == 1 else None


def _looks(nodes: list[dict[str, Any]], sign: Path) -> list[tuple[bool, str | None]]:
    """What `_look` finds on each machine."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    look = ray.remote(num_cpus=0, max_retries=3)(_look)
    there = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    found: list[tuple[bool, str | None]] = ray.get(
        [
            look.options(scheduling_strategy=on).remote(str(sign), node["NodeManagerAddress"])
            for on, node in zip(there, nodes, strict=True)
        ]
    )
    return found


def _look(sign: str, address: str) -> tuple[bool, str | None]:
    """Whether this machine sees a file, and the interface that has its address."""
    return Path(sign).exists(), interface(address)


def interface(address: str) -> str | None:
    """The network interface that has an IPv4 address; None for the loopback, and where it is not known."""
    siocgifaddr = 0x8915
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
        for _, name in socket.if_nameindex():
            try:
                found = fcntl.ioctl(asked.fileno(), siocgifaddr, struct.pack("256s", name.encode()[:15]))
            except OSError:
                continue  # it has no IPv4 address
            if socket.inet_ntoa(found[20:24]) == address and name != "lo":
                return name
    return None
