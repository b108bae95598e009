"""What shortstack.json tells: where a checkpoint comes from, which layers it kept, and what changed its weights."""

from __future__ import annotations

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import pairwise
from typing import Any

from shortstack.checkpoint.checkpoint import Checkpoint
from shortstack.errors import CheckpointError, InputError, parameter


def layer_map(checkpoint: Checkpoint, kept: Sequence[int]) -> dict[str, int]:
    """New layer number -> number in the first original, through earlier cuts of the same line; kept: layers that stay."""
    earlier = checkpoint.record.get("layer_map") or {}
    return {str(new): earlier.get(str(old), old) for new, old in enumerate(kept)}


def provenance(checkpoint: Checkpoint, verb: str, seconds: float) -> dict[str, Any]:
    """What every output records of where it comes from. `origin` is the record of the checkpoint it was made from."""
    return {
        "format": 1,
        "verb": verb,
        "source": {
            "id": checkpoint.source,
            "revision": checkpoint.revision,
            "weight_bytes": checkpoint.weight_bytes,
            "files": {path.name: path.stat().st_size for path in checkpoint.shards},
        },
        "origin": {key: value for key, value in checkpoint.record.items() if key != "files"} or None,
        "versions": versions(),
        "seconds": round(seconds, 3),
    }


def versions() -> dict[str, str]:
    """Of what computes."""
    named = {name: version(name) for name in ("shortstack", "torch", "transformers", "safetensors")}
    return {"python": platform.python_version(), **named}


def changed_since(checkpoint: Checkpoint, against: Checkpoint) -> bool:
    """Whether any step from the source to the checkpoint changed weights: its records, back to the source's own."""
    record: Mapping[str, Any] | None = checkpoint.record
    earlier = {key: value for key, value in against.record.items() if key != "files"} or None
    while record and record != earlier:
        if record["verb"] != "prune" or (record.get("repair") or {}).get("kept"):
            return True
        record = record.get("origin")
    return False


def skipped_layers(checkpoint: Checkpoint, against: Checkpoint) -> frozenset[int]:
    """The layers of `against` that `checkpoint` lacks, by its record.

    Raises:
        CheckpointError: the record's layers are not those of this source.
    """
    kept = list(checkpoint.record.get("layer_map", {}).values())
    earlier = list((against.record.get("layer_map") or {str(i): i for i in range(against.anatomy.layers)}).values())
    if len(kept) != checkpoint.anatomy.layers or not set(kept) <= set(earlier):
        raise CheckpointError(
            checkpoint.directory,
            expected=f"a cut of {against.source}",
            found=f"layers {kept} of its original",
            fix="name the model it was made from",
        )
    skipped = frozenset(index for index, original in enumerate(earlier) if original not in kept)
    if not skipped and checkpoint.record["verb"] == "prune":
        raise CheckpointError(
            against.source,
            expected="the model the cut was made from",
            found="one with the same layers",
            fix="name the model with all its layers",
        )
    return skipped


def near_cuts(checkpoint: Checkpoint, count: int) -> tuple[int, ...]:
    """The `count` layers on either side of each place where layers were removed, by the checkpoint's record.

    Raises:
        InputError: the record tells of no cut.
    """
    kept, original = list((checkpoint.record.get("layer_map") or {}).values()), _original_layers(checkpoint.record)
    edges = [-1, *kept, original]
    cuts = [place for place, (one, next_one) in enumerate(pairwise(edges)) if next_one != one + 1] if kept else []
    if not cuts:
        raise InputError(
            parameter("near_cut"),
            expected="a checkpoint that layers were removed from",
            found=f"{checkpoint.source}, whose record tells of none",
            fix=f"name layers by {parameter('layers')} or {parameter('last')}",
        )
    near = {layer for cut in cuts for layer in range(cut - count, cut + count)}
    return tuple(sorted(near & set(range(len(kept)))))


def _original_layers(record: Mapping[str, Any]) -> int:
    """How many layers the first model of the line had."""
    plans = []
    while record:
        plans.append(record.get("plan"))
        record = record.get("origin") or {}
    return next((int(plan["layers"]) for plan in reversed(plans) if plan), 0)
