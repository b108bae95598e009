"""prune(): a checkpoint without some of its layers, by copying byte ranges. No tensor is ever loaded."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from shortstack.architecture.config_fields import depth_axis, rename_layers
from shortstack.architecture.layer_names import LayerNames, numbered_paths
from shortstack.checkpoint import Checkpoint, CheckpointWriter, Model
from shortstack.checkpoint.file_names import CONFIG, QUANTISER
from shortstack.checkpoint.record import layer_map, provenance
from shortstack.checkpoint.safetensors import StoredTensor, read_metadata
from shortstack.checkpoint.writer import layout
from shortstack.errors import ArchitectureError, CheckpointError
from shortstack.machine.device import AUTO, Compute
from shortstack.machine.files import read_json, scratch_beside
from shortstack.machine.progress import Progress, silent
from shortstack.planning import Cut, Plan, plan_of
from shortstack.planning.exactness import pruned_config
from shortstack.planning.selector import Source


def prune(
    model: Model,
    plan: Cut,
    output: str | Path,
    *,
    repair: Source | None = None,
    compute: Compute = AUTO,
    progress: Progress = silent,
) -> Checkpoint:
    """Write a model without some layers to the new directory `output`, and open it.

    Kept tensors are copied byte for byte while the pruned config is built on the meta device and compared with the kept
    layers. Shards follow the base model's.

    plan: also the layers to remove, [3, 5] or "3-5". repair: text on which kept layers are refitted
    in closed form first; its result is `record["repair"]`. compute: where and in what dtype that is done.

    Raises:
        PlanError: the plan was made from another model.
        ArchitectureError: the cut cannot be expressed exactly, or layers cannot be refitted; nothing is written.
        CheckpointError: headers of the files describe their layers, or weights to refit are quantised.
        DataError: fewer than eight windows of a text to refit on.
        OutputError: `output` exists, is nested in the model's folder, or does not fit the disk.
    """
    checkpoint = Checkpoint.of(model)
    started = time.perf_counter()
    check_self_contained(checkpoint)
    plan = plan_of(plan, checkpoint.depth)
    plan.check_model(checkpoint)
    settings = _renumbered(checkpoint, plan)
    early = _shards_seen(checkpoint, plan) if repair is None else None
    config = None if early else pruned_config(checkpoint, plan)
    nbytes = sum(tensor.size for shard in early or _shards(checkpoint, plan) for tensor in shard)
    # What is refitted lies on the disk a second time until it is written.
    copies = 1 if repair is None else 2  # what is refitted waits beside the output
    with (
        CheckpointWriter(output, source=checkpoint.directory, nbytes=copies * nbytes) as writer,
        scratch_beside(writer.out) as scratch,
    ):
        if early:  # bytes go to the hidden folder while libraries are imported and the cut is checked
            writer.begin(early, progress=progress)
        config, sized = config or pruned_config(checkpoint, plan), plan.sized(checkpoint.sizes)
        repaired, refitted = None, dict[str, StoredTensor]()
        if repair is not None:
            from shortstack.repairing.repairer import refit  # imports torch

            repaired, refitted = refit(
                checkpoint, plan.removed, repair, compute=compute, scratch=scratch, progress=progress
            )
        writer.tensors(_shards(checkpoint, plan, refitted), progress=progress)
        for name, content in {CONFIG: config, **settings}.items():
            writer.json(name, content)
        for path in checkpoint.side_files():
            if path.name not in settings:
                writer.copy(path)
        record = provenance(checkpoint, "prune", time.perf_counter() - started)
        writer.commit(
            {
                **record,
                "plan": sized.to_dict(),
                "layer_map": layer_map(checkpoint, plan.kept),
                "repair": repaired.to_dict() if repaired else None,
            }
        )
    return Checkpoint.open(writer.out, trust_remote_code=checkpoint.trust_remote_code)


Shards = list[list[StoredTensor]]  # the tensors of each file


def _shards(checkpoint: Checkpoint, plan: Plan, refitted: Mapping[str, StoredTensor] = MappingProxyType({})) -> Shards:
    """Divide the kept tensors into files as they were. refitted: by the base model's names, to be written instead."""
    names = checkpoint.layer_names
    return _divided(kept_tensors(checkpoint, plan), {_renamed(name, names, plan): refitted[name] for name in refitted})


def _shards_seen(checkpoint: Checkpoint, plan: Plan) -> Shards | None:
    """Return the same as far as tensors' names show it, which takes no time; None where they show no layers."""
    names = LayerNames.seen(checkpoint.tensors, checkpoint.config)
    if not names or names.layers != plan.layers:
        return None
    return _divided(kept_tensors(checkpoint, plan, names=names))


def _divided(tensors: Sequence[StoredTensor], refitted: Mapping[str, StoredTensor] = MappingProxyType({})) -> Shards:
    origin = {tensor.name: tensor.file.name for tensor in tensors}
    written = [replace(refitted.get(tensor.name, tensor), name=tensor.name) for tensor in tensors]
    return layout(written, origin)


def check_self_contained(checkpoint: Checkpoint) -> None:
    """Refuse files whose headers say by layer how to read them, as torchao's do: the output's layers have other numbers."""
    paths = numbered_paths(checkpoint.tensors).keys()
    for path in checkpoint.shards:
        named = [key for key in read_metadata(path) if numbered_paths([key]).keys() & paths]
        if named:
            message = f"{path} describes its tensors in its header, as torchao does ({named[0]})"
            raise CheckpointError(f"{message}; prune the unquantised model, then quantise")


def kept_tensors(checkpoint: Checkpoint, plan: Plan, *, names: LayerNames | None = None) -> list[StoredTensor]:
    """List the tensors of the pruned model under their new names, still where the source has them, in the source's order.

    names: how layers seem to be named, where the model's structure is not known yet. Layers past the last (multi-token
    prediction heads) go: they were trained on top of the full stack.
    """
    owners = {} if names else _shared_weight_owners(checkpoint, plan)
    names, kept, stay = names or checkpoint.layer_names, [], set(plan.kept)
    for tensor in checkpoint.tensors.values():
        name = owners.get(tensor.name, tensor.name)
        layer = names.layer_of(name)
        if names.is_extra_head(name):
            continue
        if layer is None:
            axis = depth_axis(name)
            kept.append(tensor if axis is None else tensor.blocks(axis, plan.kept, plan.layers))
        elif layer in stay:
            kept.append(replace(tensor, name=_renamed(name, names, plan)))
    if len({tensor.name for tensor in kept}) != len(kept):
        raise CheckpointError(f"two tensors of {checkpoint.directory} get one name by the cut; report this checkpoint")
    return kept


def _renumbered(checkpoint: Checkpoint, plan: Plan) -> dict[str, Any]:
    renamed: dict[str, Any] = {}
    for path in (side_file for side_file in checkpoint.side_files() if QUANTISER.search(side_file.name)):
        paths = {checkpoint.anatomy.layers_path, checkpoint.layer_names.path}
        try:
            renamed[path.name] = rename_layers(read_json(path), paths, {old: n for n, old in enumerate(plan.kept)})
        except ArchitectureError as error:
            raise error.at(str(path)) from error
    return renamed


def _renamed(name: str, names: LayerNames, plan: Plan) -> str:
    layer = names.layer_of(name)
    return name if layer is None else names.renumbered(name, plan.kept.index(layer))


def _shared_weight_owners(checkpoint: Checkpoint, plan: Plan) -> dict[str, str]:
    """Name weights stored with a removed layer that kept layers share (zamba's one attention) as the first kept one does."""
    model, path = checkpoint.blueprint, checkpoint.anatomy.layers_path
    names: dict[int, list[str]] = {}
    for layer, module in enumerate(model.get_submodule(path).children()):
        for name, weight in module.named_parameters(remove_duplicate=False):
            names.setdefault(id(weight), []).append(f"{checkpoint.layer_names.path}.{layer}.{name}")
    owners = {}
    for shared in (group for group in names.values() if len(group) > 1):
        stored = [name for name in shared if name in checkpoint.tensors]
        staying = [name for name in shared if checkpoint.layer_names.layer_of(name) in plan.kept]
        if stored and staying and not set(stored) & set(staying):
            owners[stored[0]] = staying[0]
    return owners
