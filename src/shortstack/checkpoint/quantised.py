"""How transformers is to load quantised weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def how_to_load(config: Mapping[str, Any]) -> dict[str, Any]:
    """What transformers is told of quantised weights beside their config.

    Those of compressed-tensors are dequantised as they are read: computing with them packed needs kernels of a GPU.
    """
    if (config.get("quantization_config") or {}).get("quant_method") != "compressed-tensors":
        return {}
    from transformers import CompressedTensorsConfig

    return {"quantization_config": CompressedTensorsConfig(dequantize=True)}
