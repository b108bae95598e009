"""The most memory that was held."""

from __future__ import annotations

import resource
import sys
from pathlib import Path


def peak_rss() -> int:
    """The most memory this process has held since it began, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def forget_peak_rss() -> None:
    """From here on peak_rss() counts anew, where the system can forget: on Linux."""
    if sys.platform == "linux":
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")


def forget_peak(device: str) -> None:
    """From here on peak_bytes() counts anew, where the device can."""
    if device.startswith("cuda"):
        import torch

        torch.cuda.reset_peak_memory_stats(device)


def peak_bytes(device: str) -> int:
    """The most memory that tensors took on a CUDA device since forget_peak(); on others, peak_rss()."""
    if device.startswith("cuda"):
        import torch

        return int(torch.cuda.max_memory_allocated(device))
    return peak_rss()
