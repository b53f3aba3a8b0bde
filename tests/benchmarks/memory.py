"""Memory of a process and all that it started, sampled while they work."""

import threading
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Self


def family(root: int) -> list[int]:
    """A process and its descendants."""
    parents = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parents[int(folder.name)] = int((folder / "stat").read_text().rpartition(")")[2].split()[1])

    def ours(pid: int) -> bool:
        while pid in parents and pid != root:
            pid = parents[pid]
        return pid == root

    return [pid for pid in parents if ours(pid)]


@dataclass(frozen=True)
class Sample:
    """MiB at a time (seconds since sampling began), each page counted once: processes' own, shared (the object store's), and
    mapped files, which the kernel takes back when it needs them; and the own ones by the programs that have them."""

    at_s: float
    own: float
    shared: float
    files: float
    processes: int
    programs: dict[str, float] = field(default_factory=dict)

    @property
    def held(self) -> float:
        """What cannot be taken back."""
        return self.own + self.shared


def sample(root: int, began: float = 0.0) -> Sample:
    """What a process and its descendants take now."""
    sums = dict.fromkeys(("Pss_Anon", "Pss_Shmem", "Pss_File"), 0)
    count = 0
    programs: Counter[str] = Counter()
    for pid in family(root):
        with suppress(OSError):
            title = _program(Path(f"/proc/{pid}/cmdline").read_bytes())
            for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
                name, _, rest = line.partition(":")
                if name in sums:
                    kib = int(rest.split()[0])
                    sums[name] += kib
                    programs[title] += kib / 1024 if name == "Pss_Anon" else 0
            count += 1
    own, shared, files = (kib / 1024 for kib in sums.values())
    return Sample(time.monotonic() - began, own, shared, files, count, dict(programs))


def _program(command: bytes) -> str:
    """What a process is, told from its command: a name that Ray gives it, a module, or a file."""
    words = command.decode(errors="replace").replace("\0", " ").split()
    named = next((w for w in words if w.startswith("ray::")), None)
    file = next((w for w in words[1:] if w.endswith(".py")), words[0] if words else "?")
    return named or (f"-m {words[words.index('-m') + 1]}" if "-m" in words[:-1] else Path(file).name)


@dataclass
class Sampled:
    """Samples of a process's family, one each `every_s` while this is open."""

    root: int
    every_s: float = 2.0
    samples: list[Sample] = field(default_factory=list)

    def __enter__(self) -> Self:
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._go, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._done.set()
        self._thread.join()

    def _go(self) -> None:
        began = time.monotonic()
        while not self._done.wait(self.every_s):
            self.samples.append(sample(self.root, began))

    @property
    def peak(self) -> Sample:
        """The sample with most memory held."""
        return max(self.samples, key=lambda s: s.held)
