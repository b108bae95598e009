"""Where to compute, in which dtype, and with which seed."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from shortstack.errors import InputError
from shortstack.machine.options import options

Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DeviceMap = Literal["auto", "balanced", "sequential"]


@options
class Compute:
    """Device, dtype and seed of a computation.

    device: auto is the first available of CUDA, MPS and the CPU; cuda:1 names the second GPU. dtype: auto is bf16 where
    checkpoint and device both have it, else float32. stream: None loads layer by layer if the model does not fit in memory.
    device_map: accelerate's ways to share a model out to all GPUs, memory and disk.
    """

    seed: int = Field(0, ge=0, le=2**32 - 1, description="Random seed.")
    device: str = Field("auto", description="Device: auto is cuda if present, then mps, then cpu.")
    dtype: Dtype = Field(
        "auto", description="Compute dtype: auto is bf16 if checkpoint and device support it, else float32."
    )
    stream: bool | None = Field(
        None, description="Load weights layer by layer. Default: if the model does not fit in memory."
    )
    device_map: DeviceMap | None = Field(None, description="Spread layers over GPUs, memory and disk by accelerate.")

    def __post_init__(self) -> None:
        conflict = "device" if self.device != "auto" else "stream" if self.stream else None
        if self.device_map and conflict:
            raise InputError(f"not together with {conflict}; accelerate places the layers", option="device_map")


AUTO = Compute()


def fast_bfloat16(device: str) -> bool:
    """Return whether the device multiplies bf16 matrices in hardware."""
    import torch

    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.startswith("cpu"):
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
    return device.startswith("mps")


def pick_device(name: str = "auto") -> str:
    """Return the device of a name; for `auto` the first available of CUDA, MPS and the CPU."""
    import torch

    kind, colon, number = name.partition(":")
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(device for device in ("cuda", "mps", "cpu") if present[device])
    if not present.get(kind):
        available = ", ".join(device for device, there in present.items() if there)
        raise InputError(f"torch has no {name} here; give one of {available}", option="device")
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if colon and not (number.isdecimal() and int(number) < count):
        numbered = f"{kind}:0" if count == 1 else f"{kind}:0 to {kind}:{count - 1}"
        raise InputError(f"there is no {name}; give {numbered}", option="device")
    return name if kind == "cuda" else kind
