"""profile: how large and how fast a model is."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Annotated

import typer

from shortstack.cli import console
from shortstack.cli.app import verb
from shortstack.cli.option_groups import Only
from shortstack.cli.options import Model, Report, Source, check_unused, parse_batch_sizes
from shortstack.machine.device import Compute
from shortstack.machine.formats import number, size

if TYPE_CHECKING:
    from shortstack.profiling import Profile
    from shortstack.profiling.profiler import Counts
    from shortstack.profiling.speed import Ratio


@dataclass(frozen=True)
class Timed:
    """The runs that speed is measured by."""

    batch_size: Annotated[str, typer.Option(help="Sequences at once: one number, or several with commas.")] = "1,8"
    new_tokens: Annotated[int, typer.Option(min=1, help="Tokens to generate after the first.")] = 32
    repeats: Annotated[int, typer.Option(min=1, help="Runs that count, after one to warm up.")] = 6


@verb()
def profile(
    directory: Model,
    timed: Timed,
    compute: Annotated[Compute, Only("device", "dtype")],
    source: Source,
    report: Report,
    against: Annotated[
        str | None, typer.Option(help="Another model: runs take turns, for ratios of speed.", show_default=False)
    ] = None,
    prompt: Annotated[int, typer.Option(min=2, help="Tokens of each prompt; MACs are counted over as many.")] = 128,
    no_speed: Annotated[bool, typer.Option("--no-speed", help="Count only; no weight is loaded.")] = False,
) -> None:
    """Count parameters, bytes and multiply-accumulates; measure prefill and decode speed and peak memory."""
    sizes = parse_batch_sizes(timed.batch_size)
    if no_speed:
        check_unused("profile --no-speed", timed)

    from shortstack.profiling import profile as profile_checkpoint
    from shortstack.profiling.speed import Load as Generated

    with report.bars() as progress:
        checkpoint = source.open(directory, progress)
        found = profile_checkpoint(
            checkpoint,
            against=replace(source, revision=None).open(against, progress) if against else None,
            batch_sizes=() if no_speed else sizes,
            load=Generated(prompt=prompt, new_tokens=timed.new_tokens),
            repeats=timed.repeats,
            compute=compute,
            progress=progress,
        )
    if report.json:
        return console.show_json(found.to_dict())
    show_profile(found)
    if checkpoint.record:
        report.next_step("evaluate", directory, *source.words)
    else:
        report.next_step("prune", directory, "--drop", "25%", "-o", "pruned", *source.words)
    return None


def show_profile(found: Profile) -> None:
    """What was counted, beside the other model where there is one; then the speeds, and how they compare."""
    each = [found.counts, *([found.against.counts] if found.against else [])]
    columns = [_counted(counts) for counts in each]
    labels = list(dict.fromkeys(label for column in columns for label in column))
    rows = [[label, *(column.get(label, "-") for column in columns)] for label in labels]
    if found.peak_bytes:
        rows.append(["peak memory", size(found.peak_bytes), *["-"] * (len(each) - 1)])
    console.show_table("profile", ("", *(counts.model for counts in each)), rows)
    if found.speed:
        _show_speeds(found)


def _counted(counts: Counts) -> dict[str, str]:
    """What was counted of a model, by its label in the table."""
    found = counts.parameters
    told = {"parameters": f"{found.total:,}"}
    told |= {f"  {part}": f"{number:,}" for part, number in found.parts.items()}
    if found.tied:
        told["  head"] = "tied"
    told["weight bytes"] = size(counts.weight_bytes)
    if counts.macs:
        told |= {f"MACs per token, {counts.macs.tokens} tokens": f"{counts.macs.per_token:,}"}
        told |= {"  by the paper's rule, all tokens": f"{counts.macs.paper:,}"} if counts.macs.paper else {}
    if counts.cache:
        told[f"cache bytes per token, {counts.dtype}"] = f"{counts.cache.per_token:,}"
        if counts.cache.per_token_beyond != counts.cache.per_token:
            told["  when all windows are full"] = f"{counts.cache.per_token_beyond:,}"
        if counts.cache.fixed:
            told["  fixed, a sequence"] = f"{counts.cache.fixed:,}"
    return told


def _show_speeds(found: Profile) -> None:
    heading, rows = ["batch", "prefill", "decode"], []
    for place, speed in enumerate(found.speed):
        rows.append([str(speed.batch), _spread(speed.prefill_runs), _spread(speed.decode_runs)])
        if found.against:
            paired = found.against.ratios[place]
            rows[-1] += [_ratio(paired.prefill), _ratio(paired.decode)]
    device, threads = found.machine["device"], found.machine["threads"]
    on = f"cpu, threads: {threads}" if device == "cpu" else device
    title = f"tokens per second ({on}), median (slowest to fastest run)"
    if found.against:
        heading += ["prefill ratio", "decode ratio"]
    console.show_table(title, heading, rows)
    if found.against:
        sure = found.against.ratios[0].decode.confidence
        bracket = (
            f", in brackets what covers the true one in {sure:.0%} of cases" if sure else "; of one run no interval"
        )
        console.show(f"Ratios: of runs in turns, the median{bracket}.")


def _spread(runs: Sequence[float]) -> str:
    return f"{number(statistics.median(runs))} ({number(min(runs))} to {number(max(runs))})"


def _ratio(ratio: Ratio) -> str:
    """The ratio, and the interval where there is one."""
    return f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})" if ratio.confidence else f"{ratio.value:.2f}"
