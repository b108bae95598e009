"""prune(): a checkpoint without some of its layers, by copying byte ranges. No tensor is ever loaded."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from shortstack.architecture.config_fields import DEPTH_BLOCKS
from shortstack.checkpoint import Checkpoint, CheckpointWriter
from shortstack.checkpoint.file_names import CONFIG
from shortstack.checkpoint.record import layer_map, provenance
from shortstack.checkpoint.safetensors import StoredTensor, read_metadata
from shortstack.checkpoint.writer import layout
from shortstack.errors import CheckpointError
from shortstack.machine.progress import Progress, silent
from shortstack.planning import Chosen, Plan
from shortstack.planning.exactness import pruned_config

if TYPE_CHECKING:
    from shortstack.repairing import Repair


def prune(
    checkpoint: Checkpoint,
    plan: Plan | Chosen,
    output: str | Path,
    *,
    repair: Repair | None = None,
    max_shard_size: str | int | None = None,
    progress: Progress = silent,
) -> Checkpoint:
    """Write `checkpoint` without plan.removed to the new directory `output`, and open it.

    The pruned config is first built on the meta device and compared with the kept layers. plan: also what choose() gives,
    whose scores shortstack.json then keeps as the reason for the plan. repair: what repair() gives for this cut; its tensors
    are written in place of the source's. Shards follow the source's, or are filled to max_shard_size,
    in bytes or like 5GB.

    Raises:
        PlanError: the plan is for a model of another depth.
        ArchitectureError: the cut cannot be expressed exactly; nothing is written.
        CheckpointError: the headers of the source's files describe its layers.
        OutputError: `output` exists, is nested in the source, or does not fit the disk.
    """
    started = time.perf_counter()
    plan, scores = (plan.plan, plan.scores) if isinstance(plan, Chosen) else (plan, None)
    plan = plan.sized(checkpoint.sizes)
    check_self_contained(checkpoint)
    config = pruned_config(checkpoint, plan)
    tensors = kept_tensors(checkpoint, plan, shared_weight_owners(checkpoint, plan))
    origin = {new.name: new.file.name for new in tensors}
    changed = {new_name(checkpoint, plan, name): new for name, new in (repair.tensors if repair else {}).items()}
    tensors = [replace(changed.get(old.name, old), name=old.name) for old in tensors]
    with CheckpointWriter(output, source=checkpoint.directory, nbytes=sum(tensor.size for tensor in tensors)) as writer:
        writer.json(CONFIG, config)
        for path in checkpoint.side_files():
            writer.copy(path)
        writer.tensors(layout(tensors, origin, max_shard_size), progress=progress)
        record = provenance(checkpoint, "prune", time.perf_counter() - started)
        writer.commit(
            {
                **record,
                "plan": plan.to_dict(),
                "layer_map": layer_map(checkpoint, plan.kept),
                "scores": scores.to_dict() if scores else None,
                "repair": repair.to_dict() if repair else None,
            }
        )
    return Checkpoint.open(writer.out, trust_remote_code=checkpoint.trust_remote_code)


def check_self_contained(checkpoint: Checkpoint) -> None:
    """Refuse files whose headers say by layer how to read them, as torchao's do: the output's layers have other numbers.

    Raises:
        CheckpointError: a header does.
    """
    for path in checkpoint.shards:
        named = [key for key in read_metadata(path) if f"{checkpoint.layers_path}." in key]
        if named:
            raise CheckpointError(
                path,
                expected="tensors that need no description beside their own",
                found=f"{len(named)} descriptions in its header, as of {named[0]}: torchao's form",
                fix="prune the unquantised model, then quantise",
            )


def check_fits(output: str | Path, checkpoint: Checkpoint, plan: Plan, *, copies: int = 1) -> None:
    """Refuse an output that cannot be made, or that has no room for so many layers, before anything is computed for it.

    copies: how many such checkpoints are to be written.

    Raises:
        OutputError: as CheckpointWriter does.
        PlanError: the plan is for a model of another depth.
        CheckpointError: as check_self_contained().
    """
    check_self_contained(checkpoint)
    sized = plan.sized(checkpoint.sizes)
    CheckpointWriter(output, source=checkpoint.directory, nbytes=copies * sized.bytes.after if sized.bytes else 0)


def kept_tensors(checkpoint: Checkpoint, plan: Plan, owners: Mapping[str, str]) -> list[StoredTensor]:
    """The tensors of the pruned model under their new names, still where the source has them, in the source's order.

    owners: what shared_weight_owners() gives for this plan. Layers past the last (multi-token prediction heads) go: they
    were trained on top of the full stack.
    """
    kept = []
    for tensor in checkpoint.tensors.values():
        name = owners.get(tensor.name, tensor.name)
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
    return checkpoint.renumbered(name, plan.kept.index(layer))


def shared_weight_owners(checkpoint: Checkpoint, plan: Plan) -> dict[str, str]:
    """For weights stored with a removed layer that kept layers share (zamba's one attention): the name in the first kept."""
    model, path = checkpoint.blueprint, checkpoint.anatomy.layers_path
    names: dict[int, list[str]] = {}
    for layer, module in enumerate(model.get_submodule(path).children()):
        for name, weight in module.named_parameters(remove_duplicate=False):
            names.setdefault(id(weight), []).append(f"{checkpoint.layers_path}.{layer}.{name}")
    owners = {}
    for shared in (group for group in names.values() if len(group) > 1):
        stored = [name for name in shared if name in checkpoint.tensors]
        staying = [name for name in shared if checkpoint.layer_of(name) in plan.kept]
        if stored and staying and not set(stored) & set(staying):
            owners[stored[0]] = staying[0]
    return owners
