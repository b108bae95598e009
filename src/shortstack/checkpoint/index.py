"""Which tensors a checkpoint has, and in which file: by its index, or from the headers of its only file."""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from pathlib import Path

from shortstack.checkpoint.file_names import INDEX, PICKLED, SINGLE
from shortstack.checkpoint.safetensors import StoredTensor, read_shard
from shortstack.errors import CheckpointError


def read_tensors(directory: Path) -> dict[str, StoredTensor]:
    """Every stored tensor by its name; headers are read, no weights.

    Raises:
        CheckpointError: no safetensors weights, or an index that does not tell of what is there.
    """
    index = directory / INDEX
    if index.exists():
        return _read_indexed(directory, index)
    files = sorted(directory.glob("*.safetensors"))
    if not files:
        raise _no_weights(directory)
    if len(files) > 1 and not (directory / SINGLE).exists():
        raise CheckpointError(
            directory,
            expected=f"one {SINGLE}, or shards with {INDEX}",
            found=f"{len(files)} safetensors files and no index",
            fix="download the index too",
        )
    single = directory / SINGLE if (directory / SINGLE).exists() else files[0]
    return {tensor.name: tensor for tensor in read_shard(single)}


def _read_indexed(directory: Path, index: Path) -> dict[str, StoredTensor]:
    weight_map = _weight_map(index)
    shards = sorted(set(weight_map.values()))
    for name in shards:
        if not os.path.exists(directory / name):  # False for names no file can have, too
            raise CheckpointError(
                directory / name,
                expected="a shard that the index names",
                found="no such file",
                fix="download the missing shard",
            )
    stored = [tensor for name in shards for tensor in read_shard(directory / name)]
    tensors = {tensor.name: tensor for tensor in stored}
    if len(tensors) < len(stored):
        name = next(name for name, count in Counter(tensor.name for tensor in stored).items() if count > 1)
        raise _wrong_index(index, "each tensor in one shard", f"{name} in several")
    for name, file in weight_map.items():
        if name not in tensors or tensors[name].file.name != file:
            raise _wrong_index(index, f"{name} in {file}", "it is not there")
    if extra := sorted(tensors.keys() - weight_map.keys()):
        raise _wrong_index(index, "every stored tensor in the index", f"{extra[0]} only in a shard")
    return tensors


def _weight_map(index: Path) -> dict[str, str]:
    """The file of each tensor, as an index has it."""
    try:
        weight_map: dict[str, str] = json.loads(index.read_text(encoding="utf-8"))["weight_map"]
        files = sorted(set(weight_map.values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        expected, fix = "JSON with a weight_map from tensors to files", "download the index again"
        raise CheckpointError(index, expected=expected, found=repr(error), fix=fix) from error
    for name in files:
        if not isinstance(name, str) or Path(name).name != name or "\\" in name or not name.endswith(".safetensors"):
            expected, fix = "plain .safetensors names inside the checkpoint's folder", "do not use this checkpoint"
            raise CheckpointError(index, expected=expected, found=repr(name), fix=fix)
    return weight_map


def _wrong_index(index: Path, expected: str, found: str) -> CheckpointError:
    return CheckpointError(index, expected=expected, found=found, fix="download the checkpoint again")


def _no_weights(directory: Path) -> CheckpointError:
    pickles = sorted(path for suffix in PICKLED for path in directory.glob(f"*{suffix}"))
    if pickles:
        return CheckpointError(
            pickles[0],
            expected="safetensors weights (pickled files can run code)",
            found="pickled weights",
            fix=f"if you trust the file, convert it: {conversion(str(directory), str(directory))}; "
            "then copy the tokenizer files beside it",
        )
    return CheckpointError(
        directory,
        expected=f"{SINGLE} or shards with an index",
        found="no weights",
        fix="point at a complete checkpoint",
    )


def conversion(model: str, name: str) -> str:
    """The command that writes a pickled model as `name`-safetensors."""
    load = f'AutoModelForCausalLM.from_pretrained({json.dumps(model)}, dtype="auto")'
    save = f"save_pretrained({json.dumps(f'{name}-safetensors')})"
    return f"python -c {shlex.quote(f'from transformers import AutoModelForCausalLM; {load}.{save}')}"
