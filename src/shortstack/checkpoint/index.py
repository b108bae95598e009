"""Which tensors a checkpoint has, and in which file: decided as transformers decides it, and refused where it is unclear.

transformers' order: model.safetensors, then the index. An adapter beside the weights is applied on top of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shortstack.checkpoint.file_names import ADAPTER, CONFIG, INDEX, NAMED_WEIGHTS, PICKLED, SINGLE, is_own_name
from shortstack.checkpoint.safetensors import StoredTensor, read_shard
from shortstack.errors import CheckpointError

CONVERSION = "if you trust them, load them with transformers and save them again: save_pretrained() writes safetensors"


def read_tensors(directory: Path, config: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Read every stored tensor by its name, from headers alone, without weights."""
    if (directory / ADAPTER).exists():
        adapter = f"transformers would apply {directory / ADAPTER} to the weights"
        raise CheckpointError(f"{adapter}; move it away if it is merged, or merge it first (merge_and_unload)")
    first = _first_file(directory, config)
    if first.name.endswith(".json"):
        return _read_indexed(directory, first)
    return {tensor.name: tensor for tensor in read_shard(first)}


def _first_file(directory: Path, config: Mapping[str, Any]) -> Path:
    """Find the file that transformers begins with: the only one that has weights, or an index."""
    if NAMED_WEIGHTS in config:
        named = f"{directory / CONFIG} names the weights' file in {NAMED_WEIGHTS}"
        raise CheckpointError(f"{named}; take that out, and name the file {SINGLE}")
    single, index = directory / SINGLE, directory / INDEX
    if single.exists() and index.exists() and set(_weight_map(index).values()) != {SINGLE}:
        raise CheckpointError(f"{directory} has both {SINGLE} and {INDEX}; move the one away that an earlier save left")
    if single.exists() or index.exists():
        return single if single.exists() else index
    files = [path.name for path in sorted(directory.glob("*.safetensors"))]
    if files:
        fix = f"download the index, or name it {SINGLE} if it is the whole model"
        raise CheckpointError(f"{directory} has {', '.join(files[:3])} and no {INDEX}; {fix}")
    if any(path for suffix in PICKLED for path in directory.glob(f"*{suffix}")):
        raise CheckpointError(f"the weights in {directory} are pickled, which can run code; {CONVERSION}")
    raise CheckpointError(f"{directory} has no weights: neither {SINGLE} nor {INDEX}")


def _read_indexed(directory: Path, index: Path) -> dict[str, StoredTensor]:
    weight_map = _weight_map(index)
    stored = [tensor for name in sorted(set(weight_map.values())) for tensor in read_shard(directory / name)]
    if other := {(tensor.name, tensor.file.name) for tensor in stored} ^ weight_map.items():
        name, file = min(other)
        has = "lacks" if weight_map.get(name) == file else "also has"
        raise CheckpointError(f"by {index}, {file} {has} {name}; download the checkpoint again")
    return {tensor.name: tensor for tensor in stored}


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(f"{index} has no weight_map in JSON ({error!r:.80}); download it again") from error
    for name in files:
        if not is_own_name(name) or not name.endswith(".safetensors"):
            raise CheckpointError(f"{index} names {name!r}, no file of its folder; do not use this checkpoint")
    return weight_map


def how_to_load(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of from_pretrained that quantised weights need beside their config.

    Those of compressed-tensors are dequantised as they are read: computing with them packed needs kernels of a GPU.
    """
    if (config.get("quantization_config") or {}).get("quant_method") != "compressed-tensors":
        return {}
    from transformers import CompressedTensorsConfig

    return {"quantization_config": CompressedTensorsConfig(dequantize=True)}
