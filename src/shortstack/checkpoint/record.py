"""The record in shortstack.json: a checkpoint's source, the layers it kept, and what changed its weights."""

from __future__ import annotations

import os
import platform
import re
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from itertools import takewhile
from typing import Any

from shortstack.checkpoint.checkpoint import Checkpoint
from shortstack.errors import CheckpointError


def layer_map(checkpoint: Checkpoint, kept: Sequence[int]) -> dict[str, int]:
    """Map the new number of each layer that stays (`kept`) to its number in the model that the first cut was made from."""
    earlier = checkpoint.record.get("layer_map") or {}
    return {str(new): earlier.get(str(old), old) for new, old in enumerate(kept)}


def provenance(checkpoint: Checkpoint, verb: str, seconds: float) -> dict[str, Any]:
    """Make the part of every output's record that says where it comes from; `origin` is the record of its source."""
    return {
        "format": 1,
        "verb": verb,
        "source": {
            "id": checkpoint.source,
            "revision": checkpoint.revision,
            **({"in_memory": True} if checkpoint.in_memory else {}),
            "weight_bytes": checkpoint.weight_bytes,
            "files": {path.name: path.stat().st_size for path in checkpoint.shards},
        },
        "architecture": next(iter(checkpoint.config.get("architectures") or ()), None),
        "origin": _without_files(checkpoint.record) or None,
        "versions": versions(),
        "seconds": round(seconds, 3),
    }


def versions() -> dict[str, str]:
    """Look up the versions of Python and of the packages that compute."""
    named = {name: version(name) for name in ("shortstack", "torch", "transformers", "safetensors")}
    return {"python": platform.python_version(), **named}


def changed_since(checkpoint: Checkpoint, against: Checkpoint) -> bool:
    """Say whether any step from the source to the checkpoint changed weights: by its records, back to the source's own.

    Of an uploaded one a record names no folders.
    """
    earlier = public_record(_without_files(against.record))
    since = takewhile(lambda record: public_record(record) != earlier, checkpoint.records)
    return any(record["verb"] != "prune" or (record.get("repair") or {}).get("kept") for record in since)


def _without_files(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record as the next one keeps it: without the digests of files that it does not have."""
    return {key: value for key, value in record.items() if key != "files"}


def public_record(value: Any) -> Any:
    """Return a record as others may see it: models of this machine by their names, without their folders.

    >>> public_record({"source": {"id": "/home/me/model", "revision": None}})
    {'source': {'id': 'model', 'revision': None}}
    """
    if isinstance(value, Mapping):
        place = next((key for key in ("id", "source") if "revision" in value and isinstance(value.get(key), str)), None)
        shown = {key: public_record(each) for key, each in value.items()}
        return {**shown, place: _model_name(value[place], value["revision"])} if place else shown
    return [public_record(each) for each in value] if isinstance(value, list | tuple) else value


def _model_name(place: str, revision: str | None) -> str:
    """Return the hub's name of a model, which has a revision, or that of a folder without its place."""
    named = place if revision else re.split(r"[/\\]+", place.rstrip("/\\"))[-1]
    local = named == "demo" and (named != place or os.path.exists(place))
    return f"./{named}" if local else named  # a folder of that name is not the demo's model


def skipped_layers(checkpoint: Checkpoint, against: Checkpoint) -> frozenset[int]:
    """Find the layers of `against` that `checkpoint` lacks, by its record."""
    kept = list((checkpoint.record.get("layer_map") or {}).values())
    earlier = list((against.record.get("layer_map") or {str(i): i for i in range(against.anatomy.layers)}).values())
    if len(kept) != checkpoint.anatomy.layers or not set(kept) <= set(earlier):
        raise CheckpointError(
            f"{checkpoint.source} is not a cut of {against.source}; name the base model", option="base"
        )
    skipped = frozenset(index for index, original in enumerate(earlier) if original not in kept)
    if not skipped and checkpoint.record["verb"] == "prune":
        raise CheckpointError(f"{against.source} has no more layers; name the base model", option="base")
    return skipped
