"""Where to compute, and in which dtype."""

from __future__ import annotations

import torch

from shortstack.checkpoint import Checkpoint
from shortstack.errors import InputError


def arithmetic(name: str, checkpoint: Checkpoint, device: str) -> torch.dtype:
    """The dtype to compute in: a named one, or for "auto" bf16 where checkpoint and device both have it, else float32."""
    named = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
    if name in named:
        return named[name]
    if name != "auto":
        raise InputError("--dtype", expected=f"auto or one of {', '.join(named)}", found=name, fix="name one of these")
    stored = {tensor.dtype for tensor in checkpoint.tensors.values()}
    return torch.bfloat16 if stored & {"BF16", "F16"} and fast_bfloat16(device) else torch.float32


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
