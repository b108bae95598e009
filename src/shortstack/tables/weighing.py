"""What models weigh, how fast they are, and how they compare, as tables."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from shortstack import console

if TYPE_CHECKING:
    from shortstack.profiling import Counts, Profile
    from shortstack.timing import Ratio


def show_profile(found: Profile) -> None:
    """What was counted, beside the other model where there is one; then the speeds, and how they compare."""
    each = [found.counts, *([found.against.counts] if found.against else [])]
    columns = [_counted(counts) for counts in each]
    labels = list(dict.fromkeys(label for column in columns for label in column))
    rows = [[label, *(column.get(label, "-") for column in columns)] for label in labels]
    if found.peak_bytes:
        rows.append(["peak memory", console.size(found.peak_bytes), *["-"] * (len(each) - 1)])
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
    told["weight bytes"] = console.size(counts.weight_bytes)
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
    return f"{console.number(statistics.median(runs))} ({console.number(min(runs))} to {console.number(max(runs))})"


def _ratio(ratio: Ratio) -> str:
    """The ratio, and the interval where there is one."""
    return f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})" if ratio.confidence else f"{ratio.value:.2f}"
