"""A Ray cluster of several hosts on one machine, each a network namespace with an address, a loopback and folders of its own.

Needs Linux, iproute2 and the rights of root. `python -m tests.end_to_end.hosts COMMAND...` sets up a head and two workers, runs the
command on the head with $RAY_ADDRESS set, and takes everything down again, whatever happens.
"""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.end_to_end.commands import ROOT, marked

_START_S = 180
_NET = "198.18"  # set apart for tests of networks (RFC 2544)


class Hosts:
    """The hosts, the first of which is the head. `own` is a folder that is another one on each; everything else they share."""

    def __init__(self, folder: Path, count: int = 3) -> None:
        self.mark = f"hosts-{os.getpid()}"
        self.names = [f"rm{os.getpid()}h{i}" for i in range(count)]
        self.bridge = f"rm{os.getpid()}b"
        self.addresses = [f"{_NET}.{os.getpid() % 250}.{i + 1}" for i in range(count)]
        self.ray, self.own = folder / "ray", folder / "own"
        # Ray's helpers look for clusters among all processes of the machine, unless they are told which one is theirs
        self._told = {"RAY_API_SERVER_ADDRESS": f"http://{self.addresses[0]}:8265", "RAYMETA_TEST": self.mark}
        self.environment = {"RAY_ADDRESS": f"{self.addresses[0]}:6379", **self._told}
        self._daemons: list[subprocess.Popen[bytes]] = []

    def up(self) -> None:
        """Sets up network and hosts, and starts Ray on each."""
        self.own.mkdir(parents=True)
        self.ray.mkdir()
        _ip("link", "add", self.bridge, "type", "bridge")
        _ip("link", "set", self.bridge, "up")
        for i, (name, address) in enumerate(zip(self.names, self.addresses, strict=True)):
            _ip("netns", "add", name)
            _ip("link", "add", f"{name}v", "type", "veth", "peer", "name", "eth0", "netns", name)
            _ip("link", "set", f"{name}v", "master", self.bridge, "up")
            _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
            _ip("-n", name, "link", "set", "lo", "up")
            _ip("-n", name, "link", "set", "eth0", "up")
            self._start(i)

    def _start(self, i: int) -> None:
        """Starts a host's Ray, with one CPU; its sockets and logs are its own, as is `own`."""
        where = (
            ["--head", "--port=6379", f"--dashboard-host={self.addresses[0]}", f"--temp-dir={self.ray}"]
            if i == 0
            else [f"--address={self.addresses[0]}:6379"]
        )
        ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--block", "--num-cpus=1", "--disable-usage-stats"]
        private = " && ".join(f"mount -t tmpfs own {folder}" for folder in (self.ray, self.own))
        words = [*ray, f"--node-ip-address={self.addresses[i]}", *where]
        log = self.ray.with_name(f"host-{i}.log")
        with log.open("wb") as said:
            self._daemons.append(
                subprocess.Popen(
                    ["ip", "netns", "exec", self.names[i], "sh", "-c", f'{private} && exec "$@"', "sh", *words],
                    env={k: v for k, v in {**os.environ, **self._told}.items() if k != "RAY_ADDRESS"},
                    stdout=said, stderr=subprocess.STDOUT, start_new_session=True,
                )
            )  # fmt: skip
        count = i + 1
        look = f"import ray; ray.init(logging_level='error'); assert sum(n['Alive'] for n in ray.nodes()) == {count}"
        stop = time.monotonic() + _START_S
        while self.on_head(sys.executable, "-c", look, quiet=True).wait():
            assert self._daemons[i].poll() is None, log.read_text(errors="replace")
            assert time.monotonic() < stop, f"host {i} did not join: {log.read_text(errors='replace')}"

    def on_head(self, *words: str, quiet: bool = False) -> subprocess.Popen[str]:
        """Starts a command on the head, output and errors together."""
        return subprocess.Popen(
            ["nsenter", f"--target={self._daemons[0].pid}", "--mount", "--net", f"--wd={ROOT}", *words],
            env={**os.environ, **self.environment},
            stdout=subprocess.DEVNULL if quiet else subprocess.PIPE,
            stderr=subprocess.DEVNULL if quiet else subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )

    def down(self) -> None:
        """Ends everything that runs on the hosts, and removes them and their network."""
        for daemon in reversed(self._daemons):
            daemon.terminate()
        for daemon in self._daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                daemon.kill()
        for pid in marked(self.mark):
            if pid != os.getpid():
                os.kill(pid, signal.SIGKILL)
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
            subprocess.run(["ip", "link", "delete", f"{name}v"], capture_output=True, check=False)
        subprocess.run(["ip", "link", "delete", self.bridge], capture_output=True, check=False)


def lacking() -> str:
    """Why there can be no hosts here; empty where there can."""
    for tool in ("ip", "nsenter"):
        if shutil.which(tool) is None:
            return f"needs {tool} (iproute2, util-linux)"
    if os.geteuid() != 0:
        return "needs the rights of root, to make network namespaces"
    name = f"rm{os.getpid()}t"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
    if made.returncode == 0:
        made = subprocess.run(["ip", "netns", "exec", name, "true"], capture_output=True, text=True, check=False)
        subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)
    return f"may not make network namespaces here: {made.stderr.strip()}" if made.returncode else ""


@contextmanager
def hosts(count: int = 3) -> Iterator[Hosts]:
    """Hosts that are up, and are gone afterwards."""
    folder = Path(tempfile.mkdtemp(prefix="rh", dir="/tmp"))  # short: the names of Ray's sockets must not be long
    made = Hosts(folder, count)
    try:
        made.up()
        yield made
    finally:
        made.down()
        shutil.rmtree(folder, ignore_errors=True)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def main(words: Sequence[str]) -> int:
    """Runs a command on the head of three hosts; gives its exit status."""
    why = lacking()
    if why:
        print(f"hosts: {why}", file=sys.stderr)
        return 2
    with hosts() as made:
        print(f"hosts: {', '.join(made.addresses)}", flush=True)
        running = made.on_head(*words)
        assert running.stdout is not None
        for line in running.stdout:
            print(line, end="", flush=True)
        return running.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
