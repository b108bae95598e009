"""verify() for GGUF: whether a file is whole, and byte for byte what it should be of the base model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from shortstack.checkpoint.gguf_file import ALIGNMENT, Entry, GgufFile, GgufTensor, read_gguf
from shortstack.checkpoint.pieces import same_bytes
from shortstack.errors import ArchitectureError, CheckpointError
from shortstack.machine.progress import Progress, silent
from shortstack.planning import Plan
from shortstack.pruning.gguf_depth import GgufDepth
from shortstack.pruning.gguf_pruner import KEPT, OURS, SPLIT, kept_tensors, pruned_metadata
from shortstack.pruning.verification import Verification


def verify_gguf(file: str | Path, *, base: str | Path | None = None, progress: Progress = silent) -> Verification:
    """Check that a .gguf file shortstack wrote is whole and, with `base`, that its bytes are the base model's.

    Without `base`: every layer has its tensors. With it: metadata reads as the cut wants it, no tensor lacks or is
    too many, and the bytes of each are those of the kept layer it comes from.

    Raises:
        CheckpointError: shortstack did not write the file, or not from this model.
    """
    model = read_gguf(Path(file))
    kept = model.entries.get(KEPT)
    if kept is None:
        raise CheckpointError(f"{file} has no {KEPT} in its metadata; verify an output of shortstack")
    checks = {"tensors": _whole(model)}
    if base is not None and checks["tensors"]["ok"]:
        source = read_gguf(Path(base))
        depth = GgufDepth(source.architecture, source.entries, source.parts[0])
        plan = _plan(model, depth)
        checks["metadata"] = _metadata(model, pruned_metadata(depth, plan))
        checks["bytes"] = _bytes(model, kept_tensors(source, plan), progress)
    return Verification(checks)


def _plan(model: GgufFile, depth: GgufDepth) -> Plan:
    kept, layers = model.entries[KEPT].value, model.entries.get(f"{OURS}source_layers")
    depth.check_known()
    if layers is None or layers.value != depth.layers or not {*kept} < {*range(depth.layers)}:
        of = layers.value if layers else "an unknown number of"
        message = f"{model.parts[0]} was made from {of} layers, and the base model has {depth.layers}"
        raise CheckpointError(f"{message}; name the model it was made from", option="base")
    return Plan(depth.layers, tuple(layer for layer in range(depth.layers) if layer not in kept), "layers")


def _whole(model: GgufFile) -> dict[str, Any]:
    try:
        GgufDepth.of(model)
    except (CheckpointError, ArchitectureError) as error:
        return {"ok": False, "detail": str(error)}
    return {"ok": True, "detail": f"{len(model.tensors)} tensors, some of every layer"}


def _metadata(model: GgufFile, wanted: Mapping[str, Entry]) -> dict[str, Any]:
    metadata = {name: entry for name, entry in model.entries.items() if not name.startswith((SPLIT, OURS))}
    wrong = sorted(name for name in wanted.keys() | metadata.keys() if wanted.get(name) != metadata.get(name))
    return {
        "ok": not wrong,
        "detail": f"{wrong[0]} has another value" if wrong else f"{len(metadata)} entries as expected",
    }


def _bytes(model: GgufFile, wanted: Sequence[GgufTensor], progress: Progress) -> dict[str, Any]:
    tensors = {tensor.name: tensor for tensor in model.tensors}
    padding = max(model.alignment, ALIGNMENT)  # which parts behind the first have, as they say no other
    stray = sorted({tensor.name for tensor in wanted} ^ tensors.keys())
    if stray:
        return {"ok": False, "detail": f"{stray[0]} is {'unexpected' if stray[0] in tensors else 'missing'}"}
    total, done = sum(len(tensor.data) for tensor in wanted), 0
    for tensor in wanted:
        other = tensors[tensor.name]
        alike = (tensor.shape, tensor.kind) == (other.shape, other.kind)
        if not alike or not same_bytes(tensor.data, other.data, padding=padding):
            return {"ok": False, "detail": f"{tensor.name} differs from the base model's"}
        done += len(tensor.data)
        progress("comparing bytes", done, total)
    return {"ok": True, "detail": f"{total:,} bytes of {len(wanted)} tensors equal the base model's"}
