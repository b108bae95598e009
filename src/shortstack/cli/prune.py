"""prune: write the model without some layers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

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
from shortstack.planning import Choice, Plan, choose


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
    shard_bytes = _parse_size(max_shard_size)
    _check(choice, plan_file)
    if not repair and repair_samples != REPAIR_SAMPLES:
        raise unused("prune without --repair", "--repair-samples", repair_samples)
    if not repair and (plan_file or choice.layers is not None):
        check_unused("--plan" if plan_file else "--layers", text, compute)
    planned = Plan.from_dict(read_json(plan_file), where=plan_file) if plan_file else None

    from shortstack.pruning import prune as prune_checkpoint
    from shortstack.pruning.pruner import fits

    with report.bars() as progress:
        checkpoint = source.open(model, progress)
        fits(output, checkpoint, planned or choice.like(checkpoint.anatomy.layers))
        chosen = planned
        scores = None
        if chosen is None:
            found = choose(checkpoint, choice, text, compute=compute, progress=progress)
            say_moved(found)
            chosen, scores = found.plan, found.scores
        windows = replace(text, samples=repair_samples)
        repaired = refitted(checkpoint, chosen, windows, compute, progress) if repair else None
        prune_checkpoint(
            checkpoint,
            chosen,
            output,
            max_shard_bytes=shard_bytes,
            scores=scores.to_dict() if scores else None,
            repair=repaired,
            progress=progress,
        )
        chosen = chosen.sized(checkpoint.sizes)
    if report.json:
        told = repaired.to_dict() if repaired else None
        return console.show_json({**chosen.to_dict(), "repair": told, "output": str(output)})
    show_plan(chosen)
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


def _parse_size(text: str | None) -> int | None:
    units = {"KB": 10**3, "MB": 10**6, "GB": 10**9, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30}
    if text is None:
        return None
    digits = text.rstrip("KMGIBkmgib")
    unit = text[len(digits) :].upper()
    if not digits.isdecimal() or unit not in units or not int(digits):
        raise InputError(
            "--max-shard-size",
            expected="a size like 5GB or 500MB",
            found=repr(text),
            fix="write a whole number and a unit",
        )
    return int(digits) * units[unit]
