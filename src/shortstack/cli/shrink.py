"""shrink: the whole line with a recipe."""

from __future__ import annotations

import math
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from shortstack.cli import console
from shortstack.cli.dry_run import DryRun, show_dry_run
from shortstack.cli.options import CommonOptions, Model, Out, expand_fields, resume_hint
from shortstack.machine.formats import duration, show_layers
from shortstack.shrinking import ShrinkOptions

if TYPE_CHECKING:
    from shortstack.shrinking.result import ShrinkResult


def shrink(
    model: Model,
    /,
    *,
    output: Out,
    options: Annotated[ShrinkOptions, expand_fields()] = ShrinkOptions(),
    dry_run: DryRun = False,
    session: Annotated[CommonOptions, expand_fields(without="stream|device_map")] = CommonOptions(),
) -> None:
    """Prune, repair, heal and measure a model in one command.

    The weights come with a report and a model card.

    $ shortstack shrink org/model --drop 25% --data notes.txt -o small
    """
    began = time.monotonic()

    from shortstack.shrinking import shrink as shrink_model

    if dry_run:
        return _preview(model, output, options, session)
    with session.report.bars() as progress, resume_hint("run the same command again"):
        base = session.source.open(model, progress)
        result = shrink_model(base, output, options, compute=session.compute, progress=progress, began=began)
    if session.report.json:
        return console.show_json(result.to_dict())
    show_shrink(result)
    if "healing" in result.skipped:
        session.report.next_step("heal", output, "--data", *(options.data or ("YOUR.txt",)), "-o", f"{output}-healed")
    else:
        tasks = ("--tasks", options.tasks) if options.tasks else ()
        session.report.next_step("evaluate", output, "--probes", *tasks, *session.alone.command_line)
    return None


def _preview(model: str, output: Path, options: ShrinkOptions, session: CommonOptions) -> None:
    from shortstack.shrinking.line import preview

    with session.report.bars() as progress:
        base = session.source.open(model, progress)
        budget, memory, disk, seconds = preview(base, output, options, compute=session.compute)
    amounts = {name: value for name, value in asdict(budget).items() if options.tasks or name != "documents"}
    limit = seconds if math.isfinite(seconds) else None
    rows = [*((name.replace("_", " "), str(value)) for name, value in amounts.items())]
    rows.append(("time limit", duration(limit) if limit else "none"))
    data = {"budget": amounts, "seconds": limit}
    show_dry_run(rows, memory, disk, session.report, output=output, data=data)


def show_shrink(result: ShrinkResult) -> None:
    """Print the verdict with its reasons, both models' answers and measures, and the candidates that were compared."""
    console.show(result.verdict.decision)
    for reason in result.reasons:
        console.show(f"- {reason}")
    plan = result.plan
    console.show(f"Removed: {len(plan.removed)} of {plan.layers} layers, {show_layers(plan.removed)}.")
    for cut in result.tried:
        console.show(f"Tried: {cut.layers} layers, {cut.kept} of the {cut.measure} kept.")
    for said in result.answers:
        if "pruned" in said:
            console.show_answers(said)
    console.show_result(result)
    console.show(f"To make the same model again: {result.command}")
