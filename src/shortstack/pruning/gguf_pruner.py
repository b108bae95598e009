"""prune() for GGUF: the bytes of kept layers under their new numbers, and metadata as the runtime's rules want it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from shortstack.checkpoint.gguf_file import (
    INT32,
    PART,
    UINT16,
    UINT32,
    Entry,
    GgufFile,
    GgufTensor,
    part_names,
    read_gguf,
    write_gguf,
)
from shortstack.checkpoint.pieces import KERNEL_BLOCK_BYTES
from shortstack.checkpoint.writer import parse_size
from shortstack.errors import InputError, OutputError, PlanError
from shortstack.machine.files import check_disk, check_new, rename_new, scratch_beside, sync_tree
from shortstack.machine.locks import OutputLock
from shortstack.machine.memory import Requirements
from shortstack.machine.progress import Progress, in_notebooks
from shortstack.machine.typed import typed
from shortstack.planning import Cut, Plan, plan_of
from shortstack.pruning.gguf_depth import GgufDepth

SPLIT = "split."  # of a model in parts: what each says of its place among them
OURS = "shortstack."
KEPT = f"{OURS}kept_layers"
STALE = "general.size_label"  # says how large the source is


@typed
def prune_gguf(
    source: str | Path,
    plan: Cut,
    output: str | Path,
    *,
    max_shard_size: str | int | None = None,
    progress: Progress = in_notebooks,
) -> Path:
    """Write a .gguf model without plan.removed as the new file `output`, by copying bytes; nothing is dequantised.

    Kept layers stay byte for byte; their numbers, and metadata by layer, become those of the shorter model. With
    max_shard_size the output is divided into parts, small-00001-of-00003.gguf and so on, of at most so many bytes where
    single tensors are no larger. Returns the file by which the model is opened: the first part.

    Raises:
        PlanError: the plan is for a model of another depth.
        ArchitectureError: the cut is not exact; or nobody knows what depends on depth.
        CheckpointError: the file is damaged, or a part of it is missing.
        OutputError: `output` exists, or does not fit the disk.
    """
    source, output = Path(source), Path(output)
    model = read_gguf(source)
    depth = GgufDepth.of(model)
    plan = plan_of(plan, depth.layers)
    check_depth(plan, depth)
    check_gguf_output(model, plan, output)
    entries = {**pruned_metadata(depth, plan), **_provenance(source, plan)}
    return _Output(output, model, entries, kept_tensors(model, plan), max_shard_size).write(progress)


def check_depth(plan: Plan, depth: GgufDepth) -> None:
    """Refuse a plan for a model of another depth."""
    if plan.layers != depth.layers:
        expected, found = f"a plan for the model's {depth.layers} layers", f"a plan for {plan.layers} layers"
        raise PlanError(found, expected=expected, fix="make the plan from this model", where=depth.where)


def pruned_metadata(depth: GgufDepth, plan: Plan) -> dict[str, Entry]:
    """Return the metadata of the pruned model, without that on its source."""
    entries = depth.without(plan.kept)
    return {name: each for name, each in entries.items() if name != STALE and not name.startswith((SPLIT, OURS))}


def kept_tensors(model: GgufFile, plan: Plan) -> list[GgufTensor]:
    """The tensors of the pruned model under their new names, still where the source has them, in the source's order.

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
    """Return the new file's metadata on its source."""
    return {
        f"{OURS}version": Entry.text(version("shortstack")),
        f"{OURS}source": Entry.text(source.name),
        f"{OURS}source_layers": Entry.number(plan.layers, UINT32),
        KEPT: Entry.array(plan.kept, INT32),
        f"{OURS}strategy": Entry.text(plan.strategy),
    }


@dataclass(frozen=True)
class _Output:
    """The new model, in one file, or in parts."""

    path: Path
    model: GgufFile
    entries: Mapping[str, Entry]
    tensors: Sequence[GgufTensor]
    max_shard_size: str | int | None

    def write(self, progress: Progress) -> Path:
        """Write all, or nothing; the first part, by which the model is opened, gets its name last."""
        shares, counted = self._shares(), self._counted(progress)
        names = part_names(self.path.name, len(shares))
        for name in names:
            check_new(self.path.with_name(name), make_folders=True)
        with scratch_beside(self.path) as scratch, OutputLock(self.path):
            for name, entries, tensors in zip(names, self._metadata(len(names)), shares, strict=True):
                write_gguf(scratch / name, entries, tensors, like=self.model, on_bytes=counted)
            sync_tree(scratch)
            _name_all([(scratch / name, self.path.with_name(name)) for name in names])
        return self.path.with_name(names[0])

    def _counted(self, progress: Progress) -> Callable[[int], None]:
        """Tells of bytes as they are written."""
        total, done = sum(len(tensor.data) for tensor in self.tensors), 0

        def on_bytes(count: int) -> None:
            nonlocal done
            done = min(total, done + count)
            progress("writing weights", done, total)

        return on_bytes

    def _shares(self) -> list[list[GgufTensor]]:
        """The tensors of each part, filled to the size."""
        limit, shares, filled = None, list[list[GgufTensor]](), 0
        if self.max_shard_size is not None:
            limit = parse_size(self.max_shard_size)
        for tensor in self.tensors:
            if not shares or (limit is not None and filled + len(tensor.data) > limit):
                shares.append([])
                filled = 0
            shares[-1].append(tensor)
            filled += len(tensor.data)
        return shares

    def _metadata(self, parts: int) -> list[dict[str, Entry]]:
        """Of each part: the first has the model's, all say which they are."""
        if parts == 1:
            return [dict(self.entries)]
        tensors = {f"{SPLIT}tensors.count": Entry.number(len(self.tensors), INT32)}
        count = {f"{SPLIT}count": Entry.number(parts, UINT16), **tensors}
        places = [{**count, f"{SPLIT}no": Entry.number(number, UINT16)} for number in range(parts)]
        return [{**self.entries, **places[0]}, *places[1:]]


def _name_all(renamed: Sequence[tuple[Path, Path]]) -> None:
    """Give files their names, the first one's last; where one is taken by now, none."""
    named = list[Path]()
    try:
        for made, output in reversed(renamed):
            check_new(output)
            rename_new(made, output)
            named.append(output)
    except BaseException:
        for output in named:
            with suppress(OSError):
                output.unlink()
        raise


def check_gguf_output(model: GgufFile, plan: Plan, output: Path) -> None:
    """Refuse an output that cannot be made, or that has no room for so many layers, before anything is computed for it."""
    if PART.search(output.name):
        fix = f"name it {PART.sub('.gguf', output.name)}, with max_shard_size for parts"
        raise InputError(output.name, expected="a name without a part", fix=fix, option="output")
    if output.resolve() in {part.resolve() for part in model.parts}:
        expected, fix = "an output outside the input", "name another"
        raise OutputError("the model itself", expected=expected, fix=fix, where=output)
    check_new(output, make_folders=True)
    check_disk(output, file_requirements(model, plan).disk_bytes)


def file_requirements(model: GgufFile, plan: Plan) -> Requirements:
    """Of copying a file's bytes: no more memory than a block of them."""
    return Requirements(KERNEL_BLOCK_BYTES, sum(len(tensor.data) for tensor in kept_tensors(model, plan)))
