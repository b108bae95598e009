"""prune: write the model without some layers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from shortstack.cli import console
from shortstack.cli.app import verb
from shortstack.cli.choice import Calibration, Choice
from shortstack.cli.options import (
    REPAIR_SAMPLES,
    Compute,
    Model,
    Out,
    RepairSamples,
    Report,
    Source,
    check_unused,
    unused,
)
from shortstack.cli.plan import show_plan
from shortstack.cli.repair import show_repair
from shortstack.errors import InputError
from shortstack.machine.files import read_json
from shortstack.planning import Plan


@verb()
def prune(
    model: Model,
    output: Out,
    choice: Choice,
    calibration: Calibration,
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
        typer.Option(help="Fill shards up to this, e.g. 5GB. Default: follow the source.", show_default=False),
    ] = None,
) -> None:
    """Write the model without some layers, at the speed of cp.

    Byte ranges are copied; the result loads with plain transformers.
    """
    shard_bytes = _parse_size(max_shard_size)
    choice.check(planned=plan_file is not None)
    if not repair and repair_samples != REPAIR_SAMPLES:
        raise unused("prune without --repair", "--repair-samples", repair_samples)
    if not repair and (plan_file or choice.layers is not None):
        check_unused("--plan" if plan_file else "--layers", calibration, compute)
    planned = Plan.from_dict(read_json(plan_file), where=plan_file) if plan_file else None

    from shortstack.pruning import prune as prune_checkpoint
    from shortstack.pruning.pruner import fits

    with report.bars() as progress:
        checkpoint = source.open(model, progress)
        fits(output, checkpoint, planned or choice.like(checkpoint))
        chosen, scores = (planned, None) if planned else choice.plan_for(checkpoint, calibration, compute, progress)
        repaired = calibration.repair(checkpoint, chosen, compute, progress, repair_samples) if repair else None
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
