"""Where to compute, and in which dtype."""

from __future__ import annotations

import torch

from shortstack.errors import InputError


def fast_bfloat16(device: str) -> bool:
    """Whether the device multiplies bf16 matrices in hardware."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.startswith("cpu"):
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
    return device.startswith("mps")


def pick_device(name: str = "auto") -> str:
    """`auto` is CUDA, then MPS, then the CPU.

    Raises:
        InputError: this machine, or this build of torch, does not have the device that is named.
    """
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(device for device in ("cuda", "mps", "cpu") if present[device])
    if not present.get(name.partition(":")[0]):
        raise InputError(
            "--device",
            expected=f"one of {', '.join(device for device, there in present.items() if there)}",
            found=name,
            fix="leave it out, or install a torch that is built for it",
        )
    return name
