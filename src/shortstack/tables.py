"""The results of the verbs as tables."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from shortstack import console
from shortstack.metrics import METRICS
from shortstack.planning import Plan, show_layers
from shortstack.scores import Scores, removal_order

if TYPE_CHECKING:
    from rich.console import Group

    from shortstack.estimating import Estimate
    from shortstack.healing.forecast import Forecast
    from shortstack.healing.healer import Healing
    from shortstack.profiling import Counts, Profile
    from shortstack.repairing import Repair
    from shortstack.running import Outcome
    from shortstack.shrinking import Shrunk
    from shortstack.sweeping import Sweep
    from shortstack.timing import Ratio
    from shortstack.verification import Verification
    from shortstack.watching import Frame


def show_scores(scores: Scores) -> None:
    """Each layer's score by each metric and, in brackets, the place at which it would go; then those of the windows."""
    base = (
        f"; unpruned perplexity {console.number(METRICS['ppl'].function(scores.base_loss))}"
        if scores.base_loss is not None
        else ""
    )
    tokens = scores.tokens or {}
    on = f" on {tokens['samples']} x {tokens['length']} tokens of {tokens['source']}" if tokens else ""
    title = f"scores{on}{base} (low = remove first; in brackets the order of removal)"
    if scores.scores:
        columns = {metric: _ranked(values) for metric, values in scores.scores.items()}
        console.show_columns(title, ("layer", [str(layer) for layer in range(scores.layers)]), columns)
    if scores.window and scores.window_scores:
        starts = range(scores.layers - scores.window + 1)
        blocks = [show_layers(range(start, start + scores.window)) for start in starts]
        heading = f"blocks of {scores.window} layers"
        columns = {metric: _ranked(values) for metric, values in scores.window_scores.items()}
        console.show_columns(heading if scores.scores else f"{heading}: {title}", ("layers", blocks), columns)


def _ranked(values: Sequence[float]) -> list[str]:
    place = {index: place for place, index in enumerate(removal_order(values), start=1)}
    return [f"{console.number(value)} ({place[index]:>2})" for index, value in enumerate(values)]


def show_sweep(model: str, found: Sweep) -> None:
    """What was found at every depth, with the loss as a bar, the knee marked, and how many layers can go."""
    losses = [depth.loss for depth in found.depths]
    low, span = min(losses), max(losses) - min(losses) or 1.0
    wide = 11 if found.task or found.removable_repaired is not None else 23  # what a terminal of 80 columns leaves
    rows = [
        (
            str(depth.layers),
            f"{depth.loss:.4f}",
            console.number(depth.perplexity),
            console.number(depth.kl),
            *([f"{depth.accuracy:.3f} ± {depth.accuracy_stderr:.3f}"] if found.task else []),
            *([console.number(depth.repaired_perplexity)] if depth.repaired_perplexity is not None else []),
            "█" * (1 + round(wide * (depth.loss - low) / span)) + " knee" * (gone == found.knee),
        )
        for gone, depth in enumerate(found.depths)
    ]
    on = f"{found.tokens['samples']} x {found.tokens['length']} tokens of {found.tokens['source']}"
    repaired = found.removable_repaired is not None
    more = [*(["accuracy"] if found.task else []), *(["repaired"] if repaired else [])]
    heading = ("layers", "loss", "perplexity", "KL", *more, "loss, drawn")
    console.show_table(f"{model} cut at every depth, on {on}", heading, rows)
    if found.task:
        console.show(f"Accuracy ± its standard error on {found.task['questions']} questions of {found.task['source']}.")
    if repaired:
        console.show(
            "Measured on one window in four; the last kept layer was refitted on the others: its perplexity is `repaired`."
        )
    if found.knee is None:
        console.show("The curve of the loss has no knee: it is never below the line from its first point to its last.")
    some = f"{found.removable} layer{'s' * (found.removable != 1)}"
    with_repair = f" ({found.removable_repaired} with repair)" if repaired else ""
    console.show(f"{some}{with_repair} can go from the tail with a loss of at most {found.max_loss:.4f}.")


def show_plan(chosen: Plan) -> None:
    """What goes, what stays, and what that saves."""

    def change(before: str, after: str, share: float) -> str:
        return f"{before} to {after} ({share:+.1%})"

    rows = [
        ("removed", show_layers(chosen.removed)),
        ("kept", show_layers(chosen.kept)),
        ("layers", f"{chosen.layers} to {len(chosen.kept)}"),
    ]
    if chosen.parameters and chosen.bytes:
        p, b = chosen.parameters, chosen.bytes
        rows.append(("parameters", change(f"{p.before:,}", f"{p.after:,}", p.after / p.before - 1)))
        rows.append(("bytes", change(console.size(b.before), console.size(b.after), b.after / b.before - 1)))
    console.show_table("plan (layers numbered from 0, ranges inclusive)", ("", chosen.strategy), rows)
    if chosen.compared:
        sets = [(name, console.number(value)) for name, value in chosen.compared.items()]
        console.show_table("KL from the unpruned model on held-out tokens, nats", ("layers chosen by", "KL"), sets)


def show_verification(directory: str, found: Verification) -> None:
    """Each check and how it ended."""
    rows = [(name, "ok" if check["ok"] else "FAILED", check["detail"]) for name, check in found.checks.items()]
    console.show_table(directory, ("check", "result", "detail"), rows)


def show_repair(found: Repair) -> None:
    """Held-out perplexity before and after, and what was refitted."""
    losses = {"unpruned": found.loss_unpruned, "cut": found.loss_before, "cut and repaired": found.loss_after}
    rows = [(name, f"{loss:.4f}", console.number(math.exp(loss))) for name, loss in losses.items()]
    console.show_table("repair", ("held-out windows", "loss", "perplexity"), rows)
    on = f"{found.tokens['samples']} x {found.tokens['length']} tokens of {found.tokens['source']}"
    if not found.kept:
        console.show(f"No repair on {on} lowered the held-out loss, so the cut stays as it is.")
        return
    largest = sorted(found.fits, key=lambda fit: fit.error)[:3]
    told = ", ".join(f"layer {fit.layer} {fit.weight} {1 - fit.error:.0%}" for fit in largest)
    console.show(f"{len(found.fits)} weights refitted on {on}, one window in four held out.")
    console.show(f"Of what the cut changed, the most was regained by {told}.")


def show_healing(healing: Healing) -> None:
    """What was trained, for how long, and what it did to the loss."""
    found = healing.to_dict()
    loss = found["loss"]
    rows = [
        ("trained parameters", f"{found['trainable_parameters']:,}"),
        ("optimizer steps", str(found["steps"])),
        (
            "training loss, first to last",
            f"{loss['first']:.4f} to {loss['last']:.4f}" if loss["first"] is not None else "no entry",
        ),
        ("held-out loss, before to best", f"{loss['held_out_before']:.4f} to {loss['held_out']:.4f}"),
        ("tokens per second", f"{found['tokens_per_s']:,.0f}"),
        ("seconds", f"{found['seconds']:.0f}"),
        ("peak memory", console.size(found["peak_rss_bytes"])),
    ]
    console.show_table(f"healed: {healing.output}", ("", healing.method), rows)
    if not found["best_step"]:
        console.show("No held-out loss was lower than the one before training: the weights are as they were.")
    elif found["best_step"] < found["steps"]:
        console.show(f"The weights are those of step {found['best_step']}, where the held-out loss was lowest.")
    if found["stopped"]:
        console.show(f"Training ended at step {found['steps']}: {found['stopped']}.")
    elif found["skipped_steps"]:
        console.show(f"{found['skipped_steps']} steps were left out: their gradient was no number.")


def show_forecast(found: Forecast) -> None:
    """What healing would train, and what that takes."""
    rows = [
        ("trained parameters", f"{found.trainable_parameters:,}"),
        (
            "in",
            f"{len(found.trained)} modules, from {found.trained[0]} to {found.trained[-1]}" if found.trained else "-",
        ),
        ("samples, held out", f"{found.samples:,}, {found.held_out:,}"),
        ("tokens, of them learnt", f"{found.tokens:,}, {found.learnt_tokens:,}"),
        ("optimizer steps", f"{found.steps:,}"),
        ("memory, about", console.size(found.memory_bytes)),
        (
            "disk for what is computed once",
            f"{console.size(found.cache_bytes)}, {console.size(found.missing_bytes)} to write",
        ),
        ("time, about", f"{found.seconds:,.0f} s"),
    ]
    if found.turns:
        gone = ", ".join(map(str, found.turns))
        rows.append(("turns, each at most that", f"{len(found.turns)}; before them go {gone} layers"))
    console.show_table("dry run: nothing is trained", ("", "healing"), rows)


def show_estimate(title: str, found: Estimate) -> None:
    """A study's steps, what sharing saves, and what they would take."""
    rows = [
        (kind, f"{found.asked[kind]:,}", f"{steps:,}", console.duration(found.seconds[kind]))
        for kind, steps in found.steps.items()
    ]
    seconds = [*found.seconds.values()]
    total = None if None in seconds else sum(second or 0.0 for second in seconds)
    rows.append(("all", f"{sum(found.asked.values()):,}", f"{sum(found.steps.values()):,}", console.duration(total)))
    heading = ("step", "of all trials", "shared, at most", "one worker, about")
    console.show_table(f"{title}: {found.trials:,} trials; nothing is run", heading, rows)

    def told(value: int | None) -> str:
        return "unknown" if value is None else console.size(value)

    console.show(
        f"Disk for weights, at most: {told(found.disk_bytes)} kept, {told(found.least_disk_bytes)} with --keep none."
    )
    console.show(f"Memory of the largest step, about: {told(found.memory_bytes)}.")
    for reason in found.unknown:
        console.show(f"Unknown: {reason}.")


def show_outcome(found: Outcome) -> None:
    """How a study ended, and what failed."""
    rows = [
        ("trials done", f"{found.done:,} of {found.trials:,}"),
        ("trials failed", f"{found.failed:,}"),
        ("steps run now", f"{found.steps:,}"),
        ("steps done before", f"{found.skipped:,}"),
    ]
    console.show_table(str(found.folder), ("", "study"), rows)
    for failure in found.failures:
        console.show(f"Failed: {failure['kind']}, {failure['error'].strip().splitlines()[-1]}")
        console.show(f"  log {failure['log']}")


def show_shrunk(found: Shrunk) -> None:
    """The plans that were compared and why one was chosen; then every model's perplexity."""
    if found.candidates:
        rows = [
            (
                each["metric"],
                show_layers(each["removed"]) if each["removed"] else "-",
                console.number(each["perplexity"]) if each["perplexity"] else f"failed: {each['error']}",
            )
            for each in found.candidates
        ]
        console.show_table("plans, each repaired", ("layers chosen by", "removed", "perplexity"), rows)
        console.show(found.why)
    roles = {"unpruned": "evaluate_base", "pruned": "evaluate_pruned", "healed": "evaluate_healed"}
    judged = {name: found.steps[role]["perplexity"] for name, role in roles.items() if role in found.steps}
    texts = list(judged["unpruned"])
    measured = [(text, *(console.number(each[text]["value"]) for each in judged.values())) for text in texts]
    console.show_table(f"{found.output}: perplexity", ("text", *judged), measured)


def frame(found: Frame) -> Group:
    """One look at a running study."""
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(title=found.title or "study", title_justify="left", title_style="bold", header_style="bold")
    for column in ("step", "done", "running", "failed", "at most", "each", ""):
        table.add_column(column, justify="left" if column in ("step", "") else "right")
    for name, kind in found.kinds.items():
        bar = "█" * round(20 * kind.done / max(kind.expected, 1))
        cells = (name, kind.done, kind.running, kind.failed, kind.expected, console.duration(kind.seconds), bar)
        table.add_row(*(Text(str(cell)) for cell in cells))
    states = ", ".join(f"{count} {state}" for state, count in found.trials.items() if count)
    lines = [f"trials: {states or 'none'}"]
    lines += [f"running {each.kind} for {console.duration(each.seconds)}" for each in found.running]
    lines += [f"failed: {failure}" for failure in found.failures]
    ended = "finished" if found.finished else f"to go, at most: {console.duration(found.eta)}"
    return Group(table, *(Text(line) for line in [*lines, ended]))


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
        sure = f"{found.against.ratios[0].decode.confidence:.0%}"
        console.show(f"Ratios: of runs in turns, the median, in brackets what covers the true one in {sure} of cases.")


def _spread(runs: Sequence[float]) -> str:
    return f"{console.number(statistics.median(runs))} ({console.number(min(runs))} to {console.number(max(runs))})"


def _ratio(ratio: Ratio) -> str:
    return f"{ratio.value:.2f} ({ratio.low:.2f} to {ratio.high:.2f})"
