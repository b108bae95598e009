"""Scores, depth curves and plans as tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from shortstack import console
from shortstack.metrics import METRICS
from shortstack.removals import show_layers
from shortstack.scores import removal_order

if TYPE_CHECKING:
    from shortstack.planning import Plan
    from shortstack.scores import Scores
    from shortstack.sweeping import Sweep


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
