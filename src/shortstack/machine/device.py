"""Where to compute, in which dtype, and with which seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

from shortstack.errors import InputError
from shortstack.machine.options import check_choice_of, check_options, option

DEVICES = ("auto", "cpu", "cuda", "mps")
Dtype = Literal["auto", "float32", "bfloat16", "float16"]
DeviceMap = Literal["auto", "balanced", "sequential"]
DTYPES, MAPS = get_args(Dtype), get_args(DeviceMap)


@dataclass(frozen=True)
class Compute:
    """Where, in what, and with which seed to compute.

    device: auto is the first that there is of CUDA, MPS and the CPU; cuda:1 names the second GPU. dtype: auto is bf16 where
    checkpoint and device both have it, else float32. stream: None is only where the model does not fit in memory.
    device_map: one of accelerate's ways to share a model out to all GPUs, memory and disk.
    """

    seed: int = option(0, help="Random seed.", minimum=0, maximum=2**32 - 1)
    device: str = option("auto", help="Device: auto is cuda if present, then mps, then cpu.")
    dtype: Dtype = option(
        "auto",
        help="Compute dtype: auto is bf16 if checkpoint and device support it, else float32.",
        choices=DTYPES,
    )
    stream: bool | None = option(
        None, help="Load weights layer by layer. Default: if the model does not fit in memory."
    )

    device_map: DeviceMap | None = option(
        None, help=f"Spread layers over GPUs, memory and disk by accelerate: {', '.join(MAPS)}.", choices=MAPS
    )

    def __post_init__(self) -> None:
        check_options(self)
        check_choice_of("device", self.device.partition(":")[0], DEVICES)
        beside = "device" if self.device != "auto" else "stream" if self.stream else None
        if self.device_map and beside:
            conflict, expected = f"{beside} as well", "accelerate to say where layers are"
            raise InputError(conflict, expected=expected, fix="give one", option="device_map")


AUTO = Compute()


def fast_bfloat16(device: str) -> bool:
    """Say whether the device multiplies bf16 matrices in hardware."""
    import torch

    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.startswith("cpu"):
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
    return device.startswith("mps")


def pick_device(name: str = "auto") -> str:
    """Find the device of a name; for `auto` the first that there is of CUDA, MPS and the CPU."""
    import torch

    kind, colon, number = name.partition(":")
    present = {"cpu": True, "cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available()}
    if name == "auto":
        return next(device for device in ("cuda", "mps", "cpu") if present[device])
    if not present.get(kind):
        raise InputError(
            name,
            expected=f"one of {', '.join(device for device, there in present.items() if there)}",
            fix="leave it out, or install a torch that is built for it",
            option="device",
        )
    count = torch.cuda.device_count() if kind == "cuda" else 1
    if colon and not (number.isdecimal() and int(number) < count):
        numbered = f"{kind}:0" if count == 1 else f"{kind}:0 to {kind}:{count - 1}"
        raise InputError(name, expected=numbered, fix=f"name {kind}", option="device")
    return name if kind == "cuda" else kind
