"""Which tensors a checkpoint has, and in which file: decided as transformers decides it, and refused where it is unclear.

transformers' order: model.safetensors, then the index. An adapter beside the weights is applied on top of them.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from shortstack.checkpoint.file_names import ADAPTER, INDEX, NAMED_WEIGHTS, PICKLED, SINGLE, is_own_name
from shortstack.checkpoint.safetensors import StoredTensor, read_shard
from shortstack.errors import CheckpointError


def read_tensors(directory: Path, config: Mapping[str, Any]) -> dict[str, StoredTensor]:
    """Every stored tensor by its name; headers are read, no weights."""
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
    """The file that transformers begins with: the only one that has weights, or an index."""
    if NAMED_WEIGHTS in config:
        raise CheckpointError(
            repr(config[NAMED_WEIGHTS]),
            expected=f"weights in {SINGLE}, or shards with {INDEX}",
            fix=f"give them that name, and take {NAMED_WEIGHTS} out of config.json",
            where=directory / "config.json",
        )
    single, index = directory / SINGLE, directory / INDEX
    if single.exists() and index.exists() and set(_weight_map(index).values()) != {SINGLE}:
        raise CheckpointError(
            "both: one of them is left from an earlier save",
            expected=f"{SINGLE}, or shards with {INDEX}",
            fix=f"move {INDEX} away if the weights are those of {SINGLE}, which transformers loads; else {SINGLE}",
            where=directory,
        )
    if single.exists() or index.exists():
        return single if single.exists() else index
    files = [path.name for path in sorted(directory.glob("*.safetensors"))]
    if not files:
        raise _no_weights(directory)
    raise CheckpointError(
        f"no index, and {', '.join(files[:3])}, which transformers does not look for",
        expected=f"{SINGLE}, or shards with {INDEX}",
        fix=f"name it {SINGLE} if one file is the whole model; else download the index too",
        where=directory,
    )


def _read_indexed(directory: Path, index: Path) -> dict[str, StoredTensor]:
    weight_map = _weight_map(index)
    shards = sorted(set(weight_map.values()))
    stored = [tensor for name in shards for tensor in read_shard(directory / name)]
    tensors = {tensor.name: tensor for tensor in stored}
    if len(tensors) < len(stored):
        raise _wrong_index(index, "each tensor in one shard", f"{len(stored) - len(tensors)} in several")
    for name, file in weight_map.items():
        if name not in tensors or tensors[name].file.name != file:
            raise _wrong_index(index, f"{name} in {file}", "it is not there")
    if extra := sorted(tensors.keys() - weight_map.keys()):
        raise _wrong_index(index, "every stored tensor in the index", f"{extra[0]} only in a shard")
    return tensors


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


def _wrong_index(index: Path, expected: str, actual: str) -> CheckpointError:
    return CheckpointError(actual, expected=expected, fix="download the checkpoint again", where=index)


def _no_weights(directory: Path) -> CheckpointError:
    pickles = sorted(path for suffix in PICKLED for path in directory.glob(f"*{suffix}"))
    if pickles:
        return CheckpointError(
            "pickled weights",
            expected="safetensors weights (pickled files can run code)",
            fix=f"if you trust the file, convert it: {conversion(str(directory), str(directory))}; "
            "then copy the tokenizer files beside it",
            where=pickles[0],
        )
    return CheckpointError(
        "no weights",
        expected=f"{SINGLE} or shards with an index",
        fix="point at a complete checkpoint",
        where=directory,
    )


def conversion(model: str, name: str) -> str:
    """The command that writes a pickled model as `name`-safetensors."""
    load = f'AutoModelForCausalLM.from_pretrained({json.dumps(model)}, dtype="auto")'
    save = f"save_pretrained({json.dumps(f'{name}-safetensors')})"
    return f"python -c {shlex.quote(f'from transformers import AutoModelForCausalLM; {load}.{save}')}"


def how_to_load(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of from_pretrained that quantised weights need beside their config.

    Those of compressed-tensors are dequantised as they are read: computing with them packed needs kernels of a GPU.
    """
    if (config.get("quantization_config") or {}).get("quant_method") != "compressed-tensors":
        return {}
    from transformers import CompressedTensorsConfig

    return {"quantization_config": CompressedTensorsConfig(dequantize=True)}
