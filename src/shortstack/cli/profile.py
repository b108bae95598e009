"""profile: how large and how fast a model is."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from cyclopts import Parameter

from shortstack.cli.options import Model, Saved, Session, check_unused, flat, group
from shortstack.profiling import Timing


def profile(
    model: Model,
    /,
    *,
    against: Annotated[
        str | None, Parameter(help="Another model, timed in alternation with this one, to get speed ratios.")
    ] = None,
    no_speed: Annotated[bool, Parameter(negative=(), help="Count only; no weight is loaded.")] = False,
    output: Saved = None,
    timing: Annotated[Timing, flat(group("How speed is measured"))] = Timing(),
    session: Annotated[Session, flat(without="seed|stream|device_map")] = Session(),
) -> None:
    """Count parameters, bytes and operations; measure speed and memory.

    $ shortstack profile small --against org/model
    """
    if no_speed:
        check_unused("profile --no-speed", replace(timing, prompt=Timing.prompt))
        timing = replace(timing, batch_size=())

    from shortstack.profiling import profile as profile_checkpoint

    with session.report.bars() as progress:
        checkpoint = session.source.open(model, progress)
        result = profile_checkpoint(
            checkpoint,
            against=session.open_unpruned(against, checkpoint, progress) if against else None,
            timing=timing,
            compute=session.compute,
            progress=progress,
        )

    session.report.result(result, output)
    if checkpoint.record:
        session.report.next_measure(model, against, *session.source.command_line)
    else:
        session.report.next_cut(model, checkpoint, *session.source.command_line)
