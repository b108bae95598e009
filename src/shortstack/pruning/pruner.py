"""prune(): a checkpoint without some of its layers, by copying byte ranges. No tensor is ever loaded."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortstack.architecture.config_fields import depth_axis, rename_layers
from shortstack.architecture.layer_names import LayerNames, numbered_paths
from shortstack.checkpoint import Checkpoint, CheckpointWriter, Model
from shortstack.checkpoint.file_names import CONFIG, QUANTISER
from shortstack.checkpoint.pieces import KERNEL_BLOCK_BYTES
from shortstack.checkpoint.record import layer_map, provenance
from shortstack.checkpoint.safetensors import StoredTensor, read_metadata
from shortstack.checkpoint.writer import WRITERS, layout
from shortstack.errors import ArchitectureError, CheckpointError, PlanError
from shortstack.machine.files import read_json
from shortstack.machine.formats import show_layers
from shortstack.machine.memory import Requirements
from shortstack.machine.progress import Progress, in_notebooks
from shortstack.machine.typed import typed
from shortstack.planning import Chosen, Cut, Plan, plan_of
from shortstack.planning.exactness import pruned_config

if TYPE_CHECKING:
    from shortstack.repairing import Repair


@typed
def prune(
    checkpoint: Model,
    plan: Cut,
    output: str | Path,
    *,
    repair: Repair | None = None,
    progress: Progress = in_notebooks,
) -> Checkpoint:
    """Write `checkpoint` without plan.removed to the new directory `output`, and open it.

    The pruned config is built on the meta device and compared with the kept layers while bytes are copied already; the
    output appears when both have ended.

    plan: also what choose() gives, whose scores shortstack.json then keeps as the reason for the plan, or the numbers of the
    layers that go, [3, 5] or "3-5". repair: what repair() gives for this cut; its tensors are written in place of the
    source's. Shards follow the source's.

    Raises:
        PlanError: the plan is for a model of another depth, or the repair for another cut.
        ArchitectureError: the cut cannot be expressed exactly; nothing is written.
        CheckpointError: the headers of the source's files describe its layers.
        OutputError: `output` exists, is nested in the source, or does not fit the disk.
    """
    checkpoint = Checkpoint.of(checkpoint)
    started = time.perf_counter()
    check_self_contained(checkpoint)
    scores = plan.scores if isinstance(plan, Chosen) else None
    plan = plan_of(plan, checkpoint.depth)
    _check_same_cut(plan, repair)
    settings = _renumbered(checkpoint, plan)
    cut = _Division(checkpoint, plan, repair.tensors if repair else {})
    early = cut.seen()
    config = None if early else pruned_config(checkpoint, plan)
    nbytes = sum(tensor.size for shard in early or cut.shards() for tensor in shard)
    with CheckpointWriter(output, source=checkpoint.directory, nbytes=nbytes) as writer:
        if early:  # bytes go to the hidden folder while libraries are imported and the cut is checked
            writer.begin(early, progress=progress)
        config, sized = config or pruned_config(checkpoint, plan), plan.sized(checkpoint.sizes)
        writer.tensors(cut.shards(), progress=progress)
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
                "scores": scores.to_dict() if scores else None,
                "repair": repair.to_dict() if repair else None,
            }
        )
    return Checkpoint.open(writer.out, trust_remote_code=checkpoint.trust_remote_code)


def _check_same_cut(plan: Plan, repair: Repair | None) -> None:
    if repair and {*repair.removed} != {*plan.removed}:
        raise PlanError(
            f"one for a cut of layers {show_layers(repair.removed)}",
            expected=f"a repair for a cut of layers {show_layers(plan.removed)}",
            fix="repair again, with plan.removed",
            option="repair",
        )


@dataclass(frozen=True)
class _Division:
    """The part of a checkpoint that a plan keeps, and how it is divided into files."""

    checkpoint: Checkpoint
    plan: Plan
    changed: Mapping[str, StoredTensor]  # by repair, under the source's names

    def shards(self) -> list[list[StoredTensor]]:
        return self._divided(kept_tensors(self.checkpoint, self.plan), self.checkpoint.layer_names)

    def seen(self) -> list[list[StoredTensor]] | None:
        """Return the same as far as tensors' names show it, which takes no time; None where they show no layers."""
        names = LayerNames.seen(self.checkpoint.tensors, self.checkpoint.config)
        if not names or names.layers != self.plan.layers:
            return None
        return self._divided(kept_tensors(self.checkpoint, self.plan, names=names), names)

    def _divided(self, tensors: Sequence[StoredTensor], names: LayerNames) -> list[list[StoredTensor]]:
        origin = {tensor.name: tensor.file.name for tensor in tensors}
        changed = {_renamed(name, names, self.plan): tensor for name, tensor in self.changed.items()}
        written = [replace(changed.get(tensor.name, tensor), name=tensor.name) for tensor in tensors]
        return layout(written, origin)


def check_self_contained(checkpoint: Checkpoint) -> None:
    """Refuse files whose headers say by layer how to read them, as torchao's do: the output's layers have other numbers."""
    paths = numbered_paths(checkpoint.tensors).keys()
    for path in checkpoint.shards:
        named = [key for key in read_metadata(path) if numbered_paths([key]).keys() & paths]
        if named:
            raise CheckpointError(
                f"{len(named)} descriptions in its header, as of {named[0]}: torchao's form",
                expected="tensors that need no description beside their own",
                fix="prune the unquantised model, then quantise",
                where=path,
            )


def requirements(checkpoint: Checkpoint, plan: Plan, *, copies: int = 1) -> Requirements:
    """Count what copying so many such checkpoints takes: blocks of the files that are written at once, and the disk."""
    sized = plan.sized(checkpoint.sizes)
    return Requirements(WRITERS * KERNEL_BLOCK_BYTES, copies * sized.bytes.after if sized.bytes else 0)


def check_fits(output: str | Path, checkpoint: Checkpoint, plan: Plan, *, copies: int = 1) -> None:
    """Refuse an output that cannot be made, or has no room for so many copies, before anything is computed for it."""
    check_self_contained(checkpoint)
    _renumbered(checkpoint, plan)
    nbytes = requirements(checkpoint, plan, copies=copies).disk_bytes
    CheckpointWriter(output, source=checkpoint.directory, nbytes=nbytes)


def check_cut(output: str | Path, checkpoint: Checkpoint, plan: Plan, *, copies: int = 1) -> None:
    """Refuse what check_fits() does and a cut that is not exact: all that prune() refuses, before anything is computed."""
    check_fits(output, checkpoint, plan, copies=copies)
    pruned_config(checkpoint, plan)
    _Division(checkpoint, plan, {}).shards()


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
        raise CheckpointError(
            "two that become one",
            expected="distinct tensor names",
            fix="report this checkpoint",
            where=checkpoint.directory,
        )
    return kept


def _renumbered(checkpoint: Checkpoint, plan: Plan) -> dict[str, Any]:
    renamed: dict[str, Any] = {}
    for path in (side_file for side_file in checkpoint.side_files() if QUANTISER.search(side_file.name)):
        paths = {checkpoint.anatomy.layers_path, checkpoint.layer_names.path}
        try:
            renamed[path.name] = rename_layers(read_json(path), paths, {old: n for n, old in enumerate(plan.kept)})
        except ArchitectureError as error:
            raise error.but(where=path) from error
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
