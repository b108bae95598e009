"""profile: how large and how fast a model is."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

from cyclopts import Parameter

from shortstack.cli.options import RECORDED, Base, CommonOptions, Model, Saved, check_unused, expand_fields, group
from shortstack.profiling import Timing


def profile(
    model: Model,
    /,
    *,
    base: Base = RECORDED,
    no_speed: Annotated[bool, Parameter(negative=(), help="Count only; no weight is loaded.")] = False,
    output: Saved = None,
    timing: Annotated[Timing, expand_fields(group("How speed is measured"))] = Timing(),
    session: Annotated[CommonOptions, expand_fields(without="seed|stream|device_map")] = CommonOptions(),
) -> None:
    """Count parameters, bytes and operations; measure speed and memory, in turns with the base model.

    $ shortstack profile pruned
    """
    if no_speed:
        check_unused("--no-speed", replace(timing, prompt=Timing.prompt))
        timing = replace(timing, batch_size="")

    from shortstack.profiling import profile as profile_checkpoint

    with session.report.bars() as progress:
        checkpoint = session.source.open(model, progress)
        opened = session.open_base(base, checkpoint, progress)
        result = profile_checkpoint(checkpoint, base=opened, timing=timing, compute=session.compute, progress=progress)
    session.report.result(result, output)
    if checkpoint.record:
        session.report.next_measure(model, base, *session.source.command_line)
    else:
        session.report.next_cut(model, checkpoint, *session.source.command_line)
