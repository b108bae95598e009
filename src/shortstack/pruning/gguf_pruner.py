"""prune() for GGUF: the bytes of kept layers under their new numbers, and metadata as the runtime's rules want it."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path

from shortstack.checkpoint.gguf_file import (
    INT32,
    PART,
    UINT32,
    Entry,
    GgufFile,
    GgufTensor,
    new_gguf,
    read_gguf,
    write_gguf,
)
from shortstack.errors import InputError, OutputError
from shortstack.machine.files import check_disk, check_new
from shortstack.machine.progress import Progress, silent
from shortstack.planning import Cut, Plan, plan_of
from shortstack.pruning.gguf_depth import GgufDepth

SPLIT = "split."  # of a model in parts: what each says of its place among them
OURS = "shortstack."
KEPT = f"{OURS}kept_layers"
STALE = "general.size_label"  # says how large the source is


def prune_gguf(source: str | Path, plan: Cut, output: str | Path, *, progress: Progress = silent) -> Path:
    """Write a .gguf model without some layers as the new file `output`, by copying bytes; nothing is dequantised.

    Kept layers stay byte for byte; their numbers, and metadata by layer, become those of the pruned model. Returns the
    file.

    Raises:
        PlanError: the plan is for a model of another depth.
        ArchitectureError: the cut is not exact, or what depends on depth is not known.
        CheckpointError: the file is damaged, or a part of it is missing.
        OutputError: `output` exists, or does not fit the disk.
    """
    source, output = Path(source), Path(output)
    model = read_gguf(source)
    depth = GgufDepth.of(model)
    plan = plan_of(plan, depth.layers)
    check_gguf_output(model, output)
    entries, tensors = {**pruned_metadata(depth, plan), **_provenance(source, plan)}, kept_tensors(model, plan)
    check_disk(output, sum(len(tensor.data) for tensor in tensors))
    with new_gguf(output) as file:
        write_gguf(file, entries, tensors, like=model, on_bytes=_counted(tensors, progress))
    return output


def _counted(tensors: list[GgufTensor], progress: Progress) -> Callable[[int], None]:
    total, done = sum(len(tensor.data) for tensor in tensors), 0

    def on_bytes(count: int) -> None:
        nonlocal done
        done = min(total, done + count)
        progress("writing weights", done, total)

    return on_bytes


def pruned_metadata(depth: GgufDepth, plan: Plan) -> dict[str, Entry]:
    """Return the metadata of the pruned model, without that on its source."""
    entries = depth.without(plan.kept)
    return {name: entry for name, entry in entries.items() if name != STALE and not name.startswith((SPLIT, OURS))}


def kept_tensors(model: GgufFile, plan: Plan) -> list[GgufTensor]:
    """List the tensors of the pruned model under their new names, still where the source has them, in the source's order.

    Blocks past the last layer (multi-token prediction heads) go: they were trained on top of the full stack.
    """
    places = {layer: place for place, layer in enumerate(plan.kept)}
    blocks = ((tensor.block, tensor) for tensor in model.tensors)
    return [
        tensor if block is None else tensor.renumbered(places[block])
        for block, tensor in blocks
        if block is None or block in places
    ]


def _provenance(source: Path, plan: Plan) -> dict[str, Entry]:
    return {
        f"{OURS}version": Entry.text(version("shortstack")),
        f"{OURS}source": Entry.text(source.name),
        f"{OURS}source_layers": Entry.number(plan.layers, UINT32),
        KEPT: Entry.array(plan.kept, INT32),
        f"{OURS}strategy": Entry.text(plan.strategy),
    }


def check_gguf_output(model: GgufFile, output: Path) -> None:
    """Refuse an output that cannot be made, before layers are selected for it."""
    if PART.search(output.name):
        named = PART.sub(".gguf", output.name)
        raise InputError(
            f"{output.name} names a part; name {named}, and divide it with llama-gguf-split", option="output"
        )
    if output.resolve() in {part.resolve() for part in model.parts}:
        raise OutputError(f"{output} is the model itself; name another file", option="output")
    check_new(output, make_folders=True)
