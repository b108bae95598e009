"""profile: how large and how fast a model is."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from shortstack.cli import console
from shortstack.cli.options import Model, Saved, Session, check_unused, flat, group
from shortstack.machine.files import check_new
from shortstack.machine.formats import number, size
from shortstack.machine.progress import Progress, silent
from shortstack.profiling import Timing

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint
    from shortstack.profiling import Profile
    from shortstack.profiling.profiler import Counts
    from shortstack.profiling.speed import Ratio


def profile(
    model: Model,
    /,
    *,
    against: Annotated[
        str | None, Parameter(help="Another model, timed in turns with this one, for ratios of speed.")
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
    if output:
        check_new(output)

    from shortstack.profiling import profile as profile_checkpoint

    with session.report.bars() as progress:
        checkpoint = session.source.open(model, progress)
        result = profile_checkpoint(
            checkpoint,
            against=_open(against, session, progress),
            timing=timing,
            compute=session.compute,
            progress=progress,
        )

    session.report.result(result.to_dict(), lambda: show_profile(result), output)
    if checkpoint.record:
        session.report.next_measure(model, against or checkpoint.made_from, *session.source.words)
    else:
        session.report.next_cut(model, checkpoint, *session.source.words)
    return


def _open(model: str | None, session: Session, progress: Progress = silent) -> Checkpoint | None:
    return session.alone.open(model, progress) if model else None


def show_profile(result: Profile) -> None:
    """What was counted, beside the other model where there is one; then the speeds, and how they compare."""
    models = [result.counts, *([result.against.counts] if result.against else [])]
    columns = [_counted(counts) for counts in models]
    labels = list(dict.fromkeys(label for column in columns for label in column))
    rows = [[label, *(column.get(label, "-") for column in columns)] for label in labels]
    if result.peak_bytes:
        rows.append(["peak memory", size(result.peak_bytes), *["-"] * (len(models) - 1)])
    console.show_table("profile", ("", *(counts.model for counts in models)), rows)
    if result.speed:
        _show_speeds(result)
    if result.untimed:
        console.show(f"Not timed: {result.untimed}.")


def _counted(counts: Counts) -> dict[str, str]:
    """What was counted of a model, by its label in the table."""
    parameters = counts.parameters
    cells = {"parameters": f"{parameters.total:,}"}
    cells |= {f"  {part}": f"{amount:,}" for part, amount in parameters.parts.items()}
    if parameters.tied:
        cells["  head"] = "tied"
    cells["weight bytes"] = size(counts.weight_bytes)
    if counts.macs:
        cells |= {f"MACs per token, {counts.macs.tokens} tokens": f"{counts.macs.per_token:,}"}
        cells |= {"  by the paper's rule, all tokens": f"{counts.macs.paper:,}"} if counts.macs.paper else {}
    if counts.cache:
        cells[f"cache bytes per token, {counts.dtype}"] = f"{counts.cache.per_token:,}"
        if counts.cache.per_token_beyond != counts.cache.per_token:
            cells["  when all windows are full"] = f"{counts.cache.per_token_beyond:,}"
        if counts.cache.fixed:
            cells["  fixed, a sequence"] = f"{counts.cache.fixed:,}"
    return cells


def _show_speeds(result: Profile) -> None:
    heading, rows = ["batch", "prefill", "decode"], []
    for place, speed in enumerate(result.speed):
        rows.append([str(speed.batch), _spread(speed.prefill_runs), _spread(speed.decode_runs)])
        if result.against:
            paired = result.against.ratios[place]
            rows[-1] += [_ratio(paired.prefill), _ratio(paired.decode)]
    device, threads = result.machine["device"], result.machine["threads"]
    on = f"cpu, threads: {threads}" if device == "cpu" else device
    title = f"tokens per second ({on}), median (slowest to fastest run)"
    if result.against:
        heading += ["prefill ratio", "decode ratio"]
    console.show_table(title, heading, rows)
    if result.against:
        sure = result.against.ratios[0].decode.confidence
        bracket = (
            f", in brackets what covers the true one in {sure:.0%} of cases" if sure else "; of one run no interval"
        )
        console.show(f"Ratios: of runs in turns, the median{bracket}.")


def _spread(runs: Sequence[float]) -> str:
    return f"{number(statistics.median(runs))} ({number(min(runs))} to {number(max(runs))})"


def _ratio(ratio: Ratio) -> str:
    """The ratio, and the interval where there is one."""
    return f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})" if ratio.confidence else f"{ratio.value:.2f}"
