"""prune: write the model without some layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from shortstack.checkpoint.writer import parse_size
from shortstack.cli import console
from shortstack.cli.app import verb
from shortstack.cli.options import (
    REPAIR_SAMPLES,
    Model,
    Out,
    RepairSamples,
    Report,
    Source,
    check_unused,
    unused,
)
from shortstack.cli.plan import say_moved, show_plan
from shortstack.cli.repair import refitted, show_repair
from shortstack.data import CalibrationText
from shortstack.errors import InputError
from shortstack.machine.device import Compute
from shortstack.machine.files import read_json
from shortstack.planning import Choice, Chosen, Plan, choose


@verb()
def prune(
    model: Model,
    output: Out,
    choice: Choice,
    text: CalibrationText,
    compute: Compute,
    source: Source,
    report: Report,
    plan_file: Annotated[
        Path | None, typer.Option("--plan", help="A plan.json; instead of the options that choose layers.")
    ] = None,
    repair: Annotated[
        bool, typer.Option("--repair", help="Refit kept layers in closed form, so that the cut costs less.")
    ] = False,
    repair_samples: RepairSamples = REPAIR_SAMPLES,
    max_shard_size: Annotated[
        str | None,
        typer.Option(
            help="Fill weight files up to this, such as 5GB. Default: as the source is divided.", show_default=False
        ),
    ] = None,
) -> None:
    """Write the model without some layers, at the speed of cp.

    Byte ranges are copied; the result loads with plain transformers.
    """
    if max_shard_size is not None:
        parse_size(max_shard_size)
    _check(choice, plan_file)
    if not repair and repair_samples != REPAIR_SAMPLES:
        raise unused("prune without --repair", "--repair-samples", repair_samples)
    if not repair and (plan_file or choice.layers is not None):
        check_unused("--plan" if plan_file else "--layers", text, compute)
    planned = Plan.from_dict(read_json(plan_file), where=plan_file) if plan_file else None

    from shortstack.pruning import prune as prune_checkpoint
    from shortstack.pruning.pruner import check_fits

    with report.bars() as progress:
        checkpoint = source.open(model, progress)
        check_fits(output, checkpoint, planned or choice.like(checkpoint.anatomy.layers))
        if planned:
            chosen = Chosen(planned, planned)
        else:
            chosen = choose(checkpoint, choice, text, compute=compute, progress=progress)
        say_moved(chosen)
        windows = replace(text, samples=repair_samples)
        repaired = refitted(checkpoint, chosen.plan, windows, compute, progress) if repair else None
        prune_checkpoint(checkpoint, chosen, output, repair=repaired, max_shard_size=max_shard_size, progress=progress)
        plan = chosen.plan.sized(checkpoint.sizes)
    if report.json:
        told = repaired.to_dict() if repaired else None
        return console.show_json({**plan.to_dict(), "repair": told, "output": str(output)})
    show_plan(plan)
    if repaired:
        show_repair(repaired)
    report.next_step("verify", output, "--against", model, *source.words)
    return None


def _check(choice: Choice, plan_file: Path | None) -> None:
    """Refuse options that choose layers beside a plan, or none of both."""
    if plan_file is None:
        choice.check()
    elif choice != Choice():
        raise InputError(
            "--plan",
            expected="a plan alone",
            found="options that choose layers beside it",
            fix="give one or the other",
        )
