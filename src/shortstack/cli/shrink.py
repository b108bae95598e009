"""shrink: the whole line with a recipe."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from shortstack.cli import console
from shortstack.cli.dry_run import DryRun, show_dry_run
from shortstack.cli.options import Model, Out, Session, flat, going_on
from shortstack.machine.formats import duration, show_layers, size
from shortstack.shrinking import ShrinkOptions

if TYPE_CHECKING:
    from shortstack.planning import Plan
    from shortstack.shrinking.result import Shrunk


def shrink(
    model: Model,
    /,
    *,
    output: Out,
    options: Annotated[ShrinkOptions, flat(without="length")] = ShrinkOptions(),
    dry_run: DryRun = False,
    session: Annotated[Session, flat(without="stream|device_map")] = Session(),
) -> None:
    """Prune, repair, heal and measure a model in one command.

    Choose layers, remove them, repair, heal and measure, by a recipe. The weights come with a report and a model card.

    $ shortstack shrink org/model --drop 25% --data notes.txt -o small
    """
    began = time.monotonic()

    from shortstack.shrinking import shrink as shrink_model

    if dry_run:
        return _preview(model, output, options, session)
    again = f"run the same command again; finished work is in {output}.partial"
    with session.report.bars() as progress, going_on(again):
        source = session.source.open(model, progress)
        shrunk = shrink_model(source, output, options, compute=session.compute, progress=progress, began=began)
    if session.report.json:
        return console.show_json(shrunk.to_dict())
    show_shrunk(shrunk)
    if shrunk.healing is None and shrunk.left_out:
        words = session.alone.command_line
        session.report.next_heal(output, None, *words, data=options.data, recipe=options.recipe)
    else:
        tasks = ("--tasks", options.tasks) if options.tasks else ()
        session.report.next_measure(output, None, *tasks, *session.alone.command_line)
    return None


def _preview(model: str, output: Path, options: ShrinkOptions, session: Session) -> None:
    from shortstack.shrinking.clock import WHAT
    from shortstack.shrinking.preview import preview_shrink

    with session.report.bars() as progress:
        source = session.source.open(model, progress)
        forecast = preview_shrink(source, output, options, compute=session.compute)
    amounts = asdict(forecast.amounts)
    told = [name for name in WHAT if options.tasks or name != "documents"]
    rows = [*_cut_rows(forecast.cut), *((WHAT[name], str(amounts[name])) for name in told)]
    by_clock = "as many steps as the other work leaves time for" if forecast.heals else "none"
    healing = f"{forecast.steps} steps" if forecast.steps else by_clock
    seconds = forecast.seconds if math.isfinite(forecast.seconds) else None
    rows += [("healing", healing), ("time limit", duration(seconds) if seconds else "none")]
    removed = len(forecast.cut.removed) if forecast.cut else None
    known: dict[str, Any] = {"remove": removed, "steps": forecast.steps, "seconds": seconds, "amounts": amounts}
    known |= {"left_out": [*forecast.left_out], "notes": [*forecast.notes]}
    if not session.report.json:
        show_reasons(forecast.notes)
    show_dry_run(rows, forecast.requirements, session.report, output=output, data=known)


def _cut_rows(cut: Plan | None) -> list[tuple[str, str]]:
    """Say how many layers go, and what the weights take then."""
    if cut is None or cut.bytes is None:
        return [("layers to remove", "as many as keep the quality")]
    before, after = size(cut.bytes.before), size(cut.bytes.after)
    return [("layers to remove", f"{len(cut.removed)} of {cut.layers}"), ("weights", f"{after} instead of {before}")]


def show_reasons(reasons: Sequence[str]) -> None:
    """Print a line for each number that the verdict rests on."""
    for reason in reasons:
        console.show(f"- {reason}")


def show_shrunk(shrunk: Shrunk) -> None:
    """Print whether to keep it, both models' answers and measures, the cuts that were compared, and why one was chosen."""
    console.show(shrunk.verdict)
    show_reasons(shrunk.reasons)
    plan = shrunk.plan
    console.show(f"Removed: {len(plan.removed)} of {plan.layers} layers, {show_layers(plan.removed)}.")
    for tried in shrunk.tried:
        console.show(f"Tried: {tried}.")
    for said in shrunk.answers:
        if "shortened" in said:  # else there was no time to ask the shortened model
            console.show_answers(said)
    console.show_result(shrunk)
    console.show(shrunk.why)
    console.show(f"To make the same model again: {shrunk.command}")
