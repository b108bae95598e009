"""How much memory there is, and the most that was held."""

from __future__ import annotations

import gc
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shortstack.errors import InputError
from shortstack.machine.formats import size

if sys.platform != "win32":
    import resource

CONTROL_GROUPS = {  # a container's own limits, by the kind that /proc/self/cgroup names: v2, v1
    "": (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")),
    "memory": (
        Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
        Path("/sys/fs/cgroup/memory/memory.usage_in_bytes"),
    ),
}
MEMBERSHIP = Path("/proc/self/cgroup")
CLEAR_REFS = Path("/proc/self/clear_refs")


def available_memory(device: str) -> int:
    """Count the bytes that can still be taken on a GPU, or here within the control group's and `ulimit`'s limits."""
    if device.startswith("cuda"):
        return _available_on_gpu(device)
    import psutil

    limits = [int(psutil.virtual_memory().available), *_left_by_ulimit(psutil.Process().memory_info())]
    for limit, used in _control_groups():
        if limit.exists() and used.exists() and (text := limit.read_text().strip()).isdecimal():
            limits.append(int(text) - int(used.read_text()) + _cached_files(used.with_name("memory.stat")))
    return max(0, min(limits))


def _available_on_gpu(device: str) -> int:
    """Count the GPU's free bytes and those that torch holds without a tensor in them, once dead models are collected."""
    import torch

    gc.collect()
    torch.cuda.empty_cache()
    free = torch.cuda.mem_get_info(torch.device(device))[0]
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


@dataclass(frozen=True, order=True)
class Memory:
    """Memory that work takes at most, without the libraries that the process has loaded; max() of several stages.

    streamed: layers are read one by one.
    """

    nbytes: int = 0
    device: str = "cpu"
    streamed: bool = False

    def check(self, work: object, fix: str = "") -> None:
        """Refuse work for which the device has too little: the system would kill the process, or swap for hours."""
        free = available_memory(self.device)
        if self.nbytes > free:
            fix = fix or f"free memory, or try {'the CPU or ' if self.device.startswith('cuda') else ''}bfloat16"
            needed = f"{size(self.nbytes)} of memory on {self.device}, and {size(free)} are free"
            raise InputError(f"{work} takes {needed}; {fix}")


def _left_by_ulimit(memory_info: Any) -> Iterator[int]:
    """Yield the bytes that each limit of `ulimit` leaves this process; memory_info: what psutil says that it has."""
    if sys.platform != "win32":
        for limit, kind in ((resource.RLIMIT_AS, "vms"), (resource.RLIMIT_DATA, "data")):
            allowed = resource.getrlimit(limit)[0]
            if allowed != resource.RLIM_INFINITY and hasattr(memory_info, kind):
                yield allowed - int(getattr(memory_info, kind))


def _control_groups() -> Iterator[tuple[Path, Path]]:
    """Yield the files with the limit and the use of this process's control group, and of the outermost one that it sees."""
    yield from CONTROL_GROUPS.values()
    for line in MEMBERSHIP.read_text().splitlines() if MEMBERSHIP.exists() else ():
        _, kinds, place = line.split(":", 2)
        for kind, (limit, used) in CONTROL_GROUPS.items():
            if kind in kinds.split(","):
                yield limit.parent / place.lstrip("/") / limit.name, used.parent / place.lstrip("/") / used.name


def _cached_files(stat: Path) -> int:
    """Count the bytes of files that a control group is charged for and that the system takes back when memory is wanted."""
    if not stat.exists():
        return 0
    counts = dict(line.split() for line in stat.read_text().splitlines())
    return sum(int(counts.get(f"total_{name}", counts.get(name, 0))) for name in ("inactive_file", "active_file"))


def peak_rss() -> int:
    """Return the most memory this process has held since it began, in bytes."""
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak_rss() -> None:
    """Let peak_rss() count anew from here on, where the system can forget: on Linux, where /proc can be written."""
    if sys.platform == "linux" and os.access(CLEAR_REFS, os.W_OK):
        with suppress(PermissionError):  # some sandboxes say that it can be written, and refuse it then
            CLEAR_REFS.write_text("5", encoding="utf-8")


def forget_peak(device: str) -> None:
    """Let peak_bytes() count anew from here on, where the device can."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: str) -> int:
    """Return the most memory that tensors took on a CUDA device since forget_peak(); on others, peak_rss()."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    return peak_rss()
