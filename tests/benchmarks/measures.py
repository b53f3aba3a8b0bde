"""How the benchmark measures: process CPU time, resident peak in a forked child, kernels, and the machine's own speed."""

import ctypes
import gc
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from raymeta.episodes import Episode

_MMAP_THRESHOLD, _TRIM_THRESHOLD = -3, -1
"""glibc's names for what `mallopt` sets."""

_NO_WORK = (
    "view", "t", "transpose", "permute", "expand", "as_strided", "reshape", "slice", "select", "unsqueeze", "squeeze",
    "detach", "empty", "empty_like", "empty_strided", "alias", "split", "split_with_sizes", "chunk", "unbind", "narrow", "item",
    "resolve_conj", "resolve_neg", "lift_fresh", "result_type", "_unsafe_view", "new_empty", "_local_scalar_dense",
)  # fmt: skip


def allocator(given: str | None) -> str | None:
    """The shared library of a fast allocator, or None where there is none."""
    if given:
        return given
    folders = ("/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu", "/usr/lib64", "/usr/lib")
    names = ("libtcmalloc_minimal.so.4", "libtcmalloc.so.4", "libjemalloc.so.2")
    return next((str(p) for n in names for f in folders if (p := Path(f) / n).exists()), None)


def cpu_seconds(work: Callable[[], Any]) -> float:
    """Process CPU time of `work`."""
    gc.collect()
    start = time.process_time()
    work()
    return time.process_time() - start


def peak_mib(work: Callable[[], Any]) -> float:
    """Growth of the resident peak while `work` runs in a forked child, which starts from this process's memory.

    In the child, glibc gives freed memory back at once, so that what counts is what is held, not how the heap is cut up.
    """
    gc.collect()
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            with suppress(AttributeError, OSError):
                glibc = ctypes.CDLL(None)
                glibc.mallopt(_MMAP_THRESHOLD, 1 << 16)
                glibc.mallopt(_TRIM_THRESHOLD, 1 << 16)
                glibc.malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
            base = _resident("VmHWM")
            work()
            os.write(writing, str(_resident("VmHWM") - base).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    return int(answer) / 1024 if answer else float("nan")


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(f"{field}:")).split()[1])


def kernels(work: Callable[[], Any]) -> int:
    """Operations that `work` starts, counted by the profiler; views, allocations and operations that only call others do not
    count."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as found:
        work()
    return sum(
        event.name.startswith("aten::")
        and event.name.removeprefix("aten::") not in _NO_WORK
        and not any(c.name.removeprefix("aten::") not in _NO_WORK for c in event.cpu_children)
        for event in found.events()
    )


def product_flops(
    dtype: torch.dtype, seconds: float = 0.3, by: Callable[[torch.Tensor, torch.Tensor], torch.Tensor] = torch.matmul
) -> float:
    """FLOPs a CPU second of matrix products `by` a function, of the best of a few shapes, as found now."""
    best = 0.0
    for rows, inner, outer in ((160, 384, 1536), (512, 768, 768), (1024, 1024, 1024)):
        a, b = torch.randn(rows, inner, dtype=dtype), torch.randn(inner, outer, dtype=dtype)
        by(a, b)
        start, count = time.process_time(), 0
        while time.process_time() - start < seconds / 3:
            by(a, b)
            count += 1
        best = max(best, 2 * rows * inner * outer * count / (time.process_time() - start))
    return best


def forward_flops(episodes: list[Episode], hidden: int, layers: int) -> tuple[float, float]:
    """FLOPs of one forward over the support sets and over the query sets, real tokens only."""

    def one(lengths: list[int]) -> float:
        return float(sum(n * layers * (24 * hidden**2 + 4 * n * hidden) for n in lengths))

    support = sum(one(e.support.lengths.tolist()) for e in episodes)
    return support, sum(one(e.query.lengths.tolist()) for e in episodes)
