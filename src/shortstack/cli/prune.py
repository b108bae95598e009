"""prune: write the model without some layers.

To a .gguf file a .gguf model is cut: layers are selected on its dequantised weights, its own bytes are copied.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter
from pydantic import Field

from shortstack.cli.options import CALIBRATION, Calibration, CommonOptions, Model, check_unused, expand_fields
from shortstack.cli.plan import WHICH, say_moved
from shortstack.errors import InputError
from shortstack.machine.options import options
from shortstack.planning import Cut, Plan, Selection, plan_of, select

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint
    from shortstack.machine.progress import Progress


@options
class PruneOptions:
    """A plan to apply, and whether kept layers are refitted."""

    plan: Path | None = Field(None, description="A plan.json; replaces the options that select layers.")
    repair: bool = Field(False, description="Refit the kept layers in closed form, so that the cut costs less.")
    repair_samples: int = Field(256, ge=8, description="Maximum windows to repair on; at least eight per text.")


def prune(
    model: Model,
    /,
    *,
    output: Annotated[
        Path,
        Parameter(alias="-o", help="New directory, or a .gguf file for a .gguf model; never overwritten."),
    ],
    how: Annotated[PruneOptions, expand_fields()] = PruneOptions(),
    selection: Annotated[Selection, expand_fields(WHICH)] = Selection(),
    calibration: Annotated[Calibration, expand_fields(CALIBRATION)] = Calibration(),
    session: Annotated[CommonOptions, expand_fields()] = CommonOptions(),
) -> None:
    """Write the model without some layers, by copying bytes.

    No tensor is loaded; the result loads with plain transformers. A .gguf model stays GGUF if OUTPUT ends in .gguf.

    $ shortstack prune org/model --strategy repaired-blocks --drop 8 --repair -o out
    """
    named = _named(how, selection, calibration, session)
    if output.suffix == ".gguf":
        return _prune_file(model, output, how, named, selection, calibration, session)

    from shortstack.checkpoint import CheckpointWriter
    from shortstack.pruning import prune as prune_checkpoint
    from shortstack.repairing import Repair

    with session.report.bars() as progress:
        checkpoint = session.source.open(model, progress)
        CheckpointWriter(output, source=checkpoint.directory, nbytes=0)  # refuses a place before hours of work
        cut: Cut = named or _selected(checkpoint, selection, calibration, session, progress)
        repair = calibration.text.of_all(how.repair_samples) if how.repair else None
        pruned = prune_checkpoint(checkpoint, cut, output, repair=repair, compute=session.compute, progress=progress)
    plan, repaired = Plan.from_dict(pruned.record["plan"], where=output), pruned.record["repair"]
    shown = [plan, Repair.from_dict(repaired)] if repaired else [plan]
    session.report.show({**plan.to_dict(), "repair": repaired, "output": str(output)}, *shown)
    session.report.next_step("verify", output, *session.alone.command_line)
    return None


def _named(
    how: PruneOptions, selection: Selection, calibration: Calibration, session: CommonOptions
) -> Plan | str | None:
    """Return the plan or the layers that are named; refuse options that then change nothing."""
    if not how.repair:
        check_unused("prune without --repair", PruneOptions(repair_samples=how.repair_samples))
    if how.plan is None and selection.layers is None:
        return None
    where = "--plan" if how.plan else "--layers"
    check_unused(where, *([selection] if how.plan else []), *(() if how.repair else (calibration, session.compute)))
    check_unused(where, Calibration(num_samples=calibration.num_samples))
    return Plan.load(how.plan) if how.plan else selection.layers


def _selected(
    checkpoint: Checkpoint, selection: Selection, calibration: Calibration, session: CommonOptions, progress: Progress
) -> Plan:
    plan = select(checkpoint, selection, calibration.text, compute=session.compute, progress=progress)
    say_moved(plan)
    return plan


def _prune_file(
    model: str,
    output: Path,
    how: PruneOptions,
    named: Plan | str | None,
    selection: Selection,
    calibration: Calibration,
    session: CommonOptions,
) -> None:
    """Cut a .gguf file as it is; selected layers are moved where the file cannot express the cut."""
    from shortstack.checkpoint.gguf_file import read_gguf
    from shortstack.checkpoint.source import gguf_of
    from shortstack.pruning import prune_gguf
    from shortstack.pruning.gguf_depth import GgufDepth
    from shortstack.pruning.gguf_pruner import check_gguf_output

    source = gguf_of(model)
    if source is None:
        raise InputError("only a .gguf model can be written as .gguf; name a directory", option="output")
    if how.repair:
        raise InputError("refitted weights cannot be written as .gguf; name a directory as output", option="repair")
    check_unused("prune of a .gguf file", session.source)
    file = read_gguf(source)
    depth = GgufDepth.of(file)
    sizes = file.sizes(depth.layers)
    check_gguf_output(file, output)
    with session.report.bars() as progress:
        if named is None:
            checkpoint = session.source.open(model, progress)
            how_made: dict[str, Any] = {"compute": session.compute, "progress": progress}
            plan = select(checkpoint, selection, calibration.text, sizes=sizes, is_exact=depth.is_exact, **how_made)
            say_moved(plan)
        else:
            plan = plan_of(named, depth.layers)
        prune_gguf(source, plan, output, progress=progress)
    plan = plan.sized(sizes)
    session.report.show({**plan.to_dict(), "repair": None, "output": str(output)}, plan)
    session.report.next_step("verify", output, "--base", model)
