"""Verbs that write a shorter model and check it: prune, repair, verify."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer

from shortstack import console, tables
from shortstack.cli.application import verb
from shortstack.cli.calibration import Calibration
from shortstack.cli.choice import Choice
from shortstack.cli.options import (
    REPAIR_SAMPLES,
    Compute,
    Device,
    Model,
    Out,
    RepairSamples,
    Report,
    Source,
    check_unused,
    unused,
)
from shortstack.errors import InputError
from shortstack.jsonfiles import read_json
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

    from shortstack.pruning import fits
    from shortstack.pruning import prune as prune_checkpoint

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
    tables.show_plan(chosen)
    if repaired:
        tables.show_repair(repaired)
    report.next_step("verify", output, "--against", model, *source.words)
    return None


@verb("repair")
def repair_verb(
    directory: Annotated[str, typer.Argument(help="A checkpoint that shortstack pruned.", show_default=False)],
    source_model: Annotated[str, typer.Option("--source", help="The model it was cut from.", show_default=False)],
    output: Out,
    calibration: Calibration,
    compute: Compute,
    source: Source,
    report: Report,
    repair_samples: RepairSamples = REPAIR_SAMPLES,
) -> None:
    """Refit the kept layers of a cut in closed form.

    No training, no new parameters.
    """
    from shortstack.pruning import fits
    from shortstack.pruning import prune as prune_checkpoint
    from shortstack.verification import cut_of

    calibration.check_repair()
    with report.bars() as progress:
        origin = source.open(source_model, progress)
        chosen = cut_of(replace(source, revision=None).open(directory, progress), origin)
        fits(output, origin, chosen)
        repaired = calibration.repair(origin, chosen, compute, progress, repair_samples)
        prune_checkpoint(origin, chosen, output, repair=repaired, progress=progress)
    if report.json:
        return console.show_json({**repaired.to_dict(), "output": str(output)})
    tables.show_repair(repaired)
    report.next_step("heal", output, "--data", "pydoc", "-o", "healed", *replace(source, revision=None).words)
    return None


@verb()
def verify(
    directory: Annotated[str, typer.Argument(help="A checkpoint shortstack wrote.", show_default=False)],
    source: Source,
    report: Report,
    against: Annotated[
        str | None, typer.Option(help="The model it was made from: compare logits with it, those layers skipped.")
    ] = None,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.cpu,
) -> None:
    """Check that a checkpoint is whole and computes what it should.

    Digests, tensors and, with --against, that the logits equal the source's without those layers.
    """
    if not against:
        check_unused("verify without --against", replace(source, trust_remote_code=False))

    from shortstack.verification import verify as verify_checkpoint

    with report.bars() as progress:
        checkpoint = replace(source, revision=None).open(
            directory, progress
        )  # --revision is of the model it is against
        origin = source.open(against, progress) if against else None
        result = verify_checkpoint(checkpoint, against=origin, device=device.value, progress=progress)
    if report.json:
        console.show_json(result.to_dict())
    else:
        tables.show_verification(directory, result)
    if not result.ok:
        raise typer.Exit(1)
    healed, trust = checkpoint.record["verb"] == "heal", replace(source, revision=None).words
    then = ("evaluate", directory) if healed else ("heal", directory, "--data", "pydoc", "-o", "healed")
    report.next_step(*then, *trust)


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
