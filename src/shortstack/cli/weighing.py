"""Verbs that say what a model costs: profile."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

from shortstack import console, tables
from shortstack.cli.application import verb
from shortstack.cli.options import Device, Dtype, Model, Report, Source, parse_batch_sizes


@verb()
def profile(
    directory: Model,
    source: Source,
    report: Report,
    against: Annotated[
        str | None, typer.Option(help="Another model: runs take turns, for ratios of speed.", show_default=False)
    ] = None,
    batch_size: Annotated[str, typer.Option(help="Sequences at once: one number, or several with commas.")] = "1,8",
    prompt: Annotated[int, typer.Option(min=2, help="Tokens of each prompt; MACs are counted over as many.")] = 128,
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate after the first.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Runs that count, after one to warm up.")] = 6,
    no_speed: Annotated[bool, typer.Option("--no-speed", help="Count only; no weight is loaded.")] = False,
    device: Annotated[Device, typer.Option(help="Where to compute.")] = Device.auto,
    dtype: Annotated[Dtype, typer.Option(help="What to compute in.")] = Dtype.auto,
) -> None:
    """Count parameters, bytes and multiply-accumulates; measure prefill and decode speed and peak memory."""
    sizes = parse_batch_sizes(batch_size)

    from shortstack.profiling import profile as profile_checkpoint
    from shortstack.timing import Load as Generated

    with report.bars() as progress:
        checkpoint = source.open(directory, progress)
        found = profile_checkpoint(
            checkpoint,
            against=replace(source, revision=None).open(against, progress) if against else None,
            batch_sizes=() if no_speed else sizes,
            load=Generated(prompt=prompt, new_tokens=new_tokens),
            repeats=repeats,
            dtype=dtype.value,
            device=device.value,
            progress=progress,
        )
    if report.json:
        return console.show_json(found.to_dict())
    tables.show_profile(found)
    if checkpoint.record:
        report.next_step("evaluate", directory, *source.words)
    else:
        report.next_step("prune", directory, "--drop", "25%", "-o", "pruned", *source.words)
    return None
