"""Which tensors a checkpoint has, and in which file: decided as transformers decides it, and refused where it is unclear.

transformers' order: model.safetensors, then the index. An adapter beside the weights is applied on top of them.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shortstack.checkpoint.file_names import ADAPTER, INDEX, NAMED_WEIGHTS, PICKLED, SINGLE, is_own_name
from shortstack.checkpoint.safetensors import StoredTensor, read_shard
from shortstack.errors import CheckpointError

NAMES = f"{SINGLE}, or shards with {INDEX}"
CONVERSION = "if you trust the file, load it with transformers and save it again: save_pretrained() writes safetensors"


def read_tensors(directory: Path, config: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Read every stored tensor by its name, from headers alone, without weights."""
    if (directory / ADAPTER).exists():
        raise CheckpointError(
            "an adapter beside them, which transformers would apply",
            expected="weights alone",
            fix="move it away if it is merged; else merge it into its base model first (peft: merge_and_unload)",
            where=directory / ADAPTER,
        )
    first = _first_file(directory, config)
    if first.name.endswith(".json"):
        return _read_indexed(directory, first)
    return {tensor.name: tensor for tensor in read_shard(first)}


def _first_file(directory: Path, config: Mapping[str, Any]) -> Path:
    """Find the file that transformers begins with: the only one that has weights, or an index."""
    if NAMED_WEIGHTS in config:
        expected, fix = f"weights in {NAMES}", f"give them that name, and take {NAMED_WEIGHTS} out of config.json"
        raise CheckpointError(repr(config[NAMED_WEIGHTS]), expected=expected, fix=fix, where=directory / "config.json")
    single, index = directory / SINGLE, directory / INDEX
    if single.exists() and index.exists() and set(_weight_map(index).values()) != {SINGLE}:
        fix = f"move {INDEX} away if the weights are those of {SINGLE}, which transformers loads; else {SINGLE}"
        found = "both: one of them is left from an earlier save"
        raise CheckpointError(found, expected=NAMES, fix=fix, where=directory)
    if single.exists() or index.exists():
        return single if single.exists() else index
    files = [path.name for path in sorted(directory.glob("*.safetensors"))]
    if not files:
        raise _no_weights(directory)
    found = f"no index, and {', '.join(files[:3])}, which transformers does not look for"
    fix = f"name it {SINGLE} if one file is the whole model; else download the index too"
    raise CheckpointError(found, expected=NAMES, fix=fix, where=directory)


def _read_indexed(directory: Path, index: Path) -> dict[str, StoredTensor]:
    weight_map = _weight_map(index)
    stored = [tensor for name in sorted(set(weight_map.values())) for tensor in read_shard(directory / name)]
    if other := {(tensor.name, tensor.file.name) for tensor in stored} ^ weight_map.items():
        name, file = min(other)
        kind = "no" if weight_map.get(name) == file else "an unlisted"
        raise CheckpointError(
            f"{kind} {name} in {file}",
            expected="each tensor in the one shard that the index names",
            fix="download the checkpoint again",
            where=index,
        )
    return {tensor.name: tensor for tensor in stored}


def _weight_map(index: Path) -> dict[str, str]:
    try:
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        expected, fix = "JSON with a weight_map from tensors to files", "download the index again"
        raise CheckpointError(repr(error), expected=expected, fix=fix, where=index) from error
    for name in files:
        if not is_own_name(name) or not name.endswith(".safetensors"):
            expected, fix = "plain .safetensors names inside the checkpoint's folder", "do not use this checkpoint"
            raise CheckpointError(repr(name), expected=expected, fix=fix, where=index)
    return weight_map


def _no_weights(directory: Path) -> CheckpointError:
    pickles = sorted(path for suffix in PICKLED for path in directory.glob(f"*{suffix}"))
    if pickles:
        return CheckpointError(
            "pickled weights",
            expected="safetensors weights (pickled files can run code)",
            fix=CONVERSION,
            where=pickles[0],
        )
    return CheckpointError(
        "no weights",
        expected=f"{SINGLE} or shards with an index",
        fix="point at a complete checkpoint",
        where=directory,
    )


def how_to_load(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of from_pretrained that quantised weights need beside their config.

    Those of compressed-tensors are dequantised as they are read: computing with them packed needs kernels of a GPU.
    """
    if (config.get("quantization_config") or {}).get("quant_method") != "compressed-tensors":
        return {}
    from transformers import CompressedTensorsConfig

    return {"quantization_config": CompressedTensorsConfig(dequantize=True)}
