"""prune(): a checkpoint without some of its layers, by copying byte ranges. No tensor is ever loaded."""

from __future__ import annotations

import platform
import time
from collections.abc import Mapping
from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortstack.aligning import cut_config, instead
from shortstack.checkpoint import Checkpoint
from shortstack.errors import ArchitectureError, CheckpointError, PlanError
from shortstack.fields import DEPTH_BLOCKS, EXTRA_HEADS
from shortstack.loading import check_fit
from shortstack.planning import Plan
from shortstack.progress import Progress, silent
from shortstack.shards import StoredTensor
from shortstack.writing import CheckpointWriter, layout

if TYPE_CHECKING:
    from shortstack.repairing import Repair


def prune(
    checkpoint: Checkpoint,
    plan: Plan,
    out: str | Path,
    *,
    max_shard_bytes: int | None = None,
    scores: Mapping[str, Any] | None = None,
    repair: Repair | None = None,
    progress: Progress = silent,
) -> Checkpoint:
    """Write `checkpoint` without plan.removed to the new directory `out`, and open it.

    The pruned config is first built on the meta device and compared with the kept layers. Shards follow the source's,
    or are filled to max_shard_bytes. `scores` is kept in shortstack.json as the reason for the plan. repair: what repair()
    found for this cut; its tensors are written in place of the source's.

    Raises:
        PlanError: the plan is for a model of another depth.
        ArchitectureError: the cut cannot be expressed exactly; nothing is written.
        OutputError: `out` exists, is nested in the source, or does not fit the disk.
    """
    started = time.perf_counter()
    plan = plan.sized(checkpoint.sizes)
    config = pruned_config(checkpoint, plan)
    tensors = kept_tensors(checkpoint, plan, heirs=heirs(checkpoint, plan))
    origin = {new.name: new.file.name for new in tensors}
    changed = {new_name(checkpoint, plan, name): new for name, new in (repair.tensors if repair else {}).items()}
    tensors = [replace(changed.get(old.name, old), name=old.name) for old in tensors]
    numbers = layer_map(checkpoint, plan)
    with CheckpointWriter(out, source=checkpoint.directory, nbytes=sum(tensor.size for tensor in tensors)) as writer:
        writer.json("config.json", config)
        for path in checkpoint.side_files():
            writer.copy(path)
        writer.tensors(layout(tensors, origin, max_shard_bytes), progress=progress)
        record = provenance(checkpoint, "prune", time.perf_counter() - started)
        writer.commit(
            {
                **record,
                "plan": plan.to_dict(),
                "layer_map": numbers,
                "scores": scores,
                "repair": repair.to_dict() if repair else None,
            }
        )
    return Checkpoint.open(writer.out, trust_remote_code=checkpoint.trust_remote_code)


def fits(out: str | Path, checkpoint: Checkpoint, plan: Plan, *, copies: int = 1) -> None:
    """Refuse an output that cannot be made, or that has no room for so many layers, before anything is computed for it.

    copies: how many such checkpoints are to be written.

    Raises:
        OutputError: as CheckpointWriter does.
        PlanError: the plan is for a model of another depth.
    """
    sized = plan.sized(checkpoint.sizes)
    CheckpointWriter(out, source=checkpoint.directory, nbytes=copies * sized.bytes.after if sized.bytes else 0)


def pruned_config(checkpoint: Checkpoint, plan: Plan) -> dict[str, Any]:
    """The config of the pruned model, checked against the original's kept layers.

    Raises:
        PlanError: the plan is for a model of another depth.
        CheckpointError: the files are not this config's.
        ArchitectureError: the cut cannot be expressed exactly; the message names the nearest that can.
    """
    if plan.layers != checkpoint.anatomy.layers:
        raise PlanError(
            checkpoint.source,
            expected=f"a plan for {checkpoint.anatomy.layers} layers",
            found=f"a plan for {plan.layers}",
            fix="make the plan from this model",
        )
    _check_layers(checkpoint)
    check_fit(checkpoint)
    try:
        return cut_config(checkpoint, plan)
    except ArchitectureError as error:
        raise instead(checkpoint, plan, error) from error


def _check_layers(checkpoint: Checkpoint) -> None:
    """Refuse layers past the last that the config does not name as extra heads."""
    layers = checkpoint.anatomy.layers
    extra = max((layer or 0 for layer in map(checkpoint.layer_of, checkpoint.tensors)), default=0)
    text = checkpoint.config.get(checkpoint.anatomy.text_key or "", checkpoint.config)
    if extra >= layers and not any(text.get(name) for name in EXTRA_HEADS):
        raise CheckpointError(
            checkpoint.directory,
            expected=f"layers 0 to {layers - 1}, by config.json",
            found=f"tensors of layer {extra}",
            fix="find the config that belongs to these weights",
        )


def kept_tensors(checkpoint: Checkpoint, plan: Plan, *, heirs: Mapping[str, str]) -> list[StoredTensor]:
    """The tensors of the pruned model under their new names, still where the source has them, in the source's order.

    heirs: what heirs() says of this plan. Layers past the last (multi-token prediction heads) go: they were trained on top
    of the full stack.
    """
    kept = []
    for tensor in checkpoint.tensors.values():
        name = heirs.get(tensor.name, tensor.name)
        layer = checkpoint.layer_of(name)
        if checkpoint.is_extra_head(name):
            continue
        if layer is None:
            axis = next((axis for block, axis in DEPTH_BLOCKS.items() if f".{block}." in f".{name}"), None)
            kept.append(tensor if axis is None else tensor.blocks(axis, plan.kept, plan.layers))
        elif layer in plan.kept:
            kept.append(replace(tensor, name=new_name(checkpoint, plan, name)))
    if len({tensor.name for tensor in kept}) != len(kept):
        raise CheckpointError(
            checkpoint.directory,
            expected="distinct tensor names",
            found="two that become one",
            fix="report this checkpoint",
        )
    return kept


def new_name(checkpoint: Checkpoint, plan: Plan, name: str) -> str:
    """The name in the pruned model of a tensor of a kept layer."""
    layer = checkpoint.layer_of(name)
    assert layer in plan.kept  # noqa: S101  the caller has looked
    return checkpoint.moved(name, plan.kept.index(layer))


def heirs(checkpoint: Checkpoint, plan: Plan) -> dict[str, str]:
    """For weights stored with a removed layer that kept layers share (zamba's one attention): the name in the first kept."""
    model, path = checkpoint.blueprint, checkpoint.anatomy.layers_path
    names: dict[int, list[str]] = {}
    for layer, module in enumerate(model.get_submodule(path).children()):
        for name, weight in module.named_parameters(remove_duplicate=False):
            names.setdefault(id(weight), []).append(f"{checkpoint.layers_path}.{layer}.{name}")
    shared = [group for group in names.values() if len(group) > 1]
    found = {}
    for group in shared:
        stored = [name for name in group if name in checkpoint.tensors]
        staying = [name for name in group if checkpoint.layer_of(name) in plan.kept]
        if stored and staying and not set(stored) & set(staying):
            found[stored[0]] = staying[0]
    return found


def layer_map(checkpoint: Checkpoint, plan: Plan) -> dict[str, int]:
    """New layer number -> number in the first original, through earlier cuts of the same line."""
    earlier = checkpoint.record.get("layer_map") or {}
    return {str(new): earlier.get(str(old), old) for new, old in enumerate(plan.kept)}


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
