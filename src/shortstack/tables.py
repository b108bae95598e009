"""The results of the verbs as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shortstack import console
from shortstack.metrics import METRICS, Scores
from shortstack.planning import Plan, show_layers

if TYPE_CHECKING:
    from shortstack.evaluation import Evaluation
    from shortstack.healing import Healing
    from shortstack.verification import Verification


def show_scores(scores: Scores) -> None:
    """Each layer's score by each metric, and the place at which it would go."""
    orders = {name: scores.order(name) for name in scores.scores}
    rows = [
        [
            str(layer),
            *(
                cell
                for name, values in scores.scores.items()
                for cell in (console.number(values[layer]), str(orders[name].index(layer) + 1))
            ),
        ]
        for layer in range(scores.layers)
    ]
    columns = ["layer", *(column for name in scores.scores for column in (name, "removed as"))]
    base = (
        f"; unpruned perplexity {console.number(METRICS['ppl'].function(scores.base_loss))}"
        if scores.base_loss is not None
        else ""
    )
    tokens = (
        scores.tokens
        and f" on {scores.tokens['samples']} x {scores.tokens['length']} tokens of {scores.tokens['source']}"
    )
    console.show_table(f"scores{tokens or ''}{base} (low = remove first)", columns, rows)


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


def show_verification(directory: str, found: Verification) -> None:
    """Each check and how it ended."""
    rows = [(name, "ok" if check["ok"] else "FAILED", check["detail"]) for name, check in found.checks.items()]
    console.show_table(directory, ("check", "result", "detail"), rows)


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
        ("held-out loss, before to after", f"{loss['held_out_before']:.4f} to {loss['held_out']:.4f}"),
        ("seconds", f"{found['seconds']:.0f}"),
        ("peak memory", console.size(found["peak_rss_bytes"])),
    ]
    console.show_table(f"healed: {healing.output}", ("", healing.method), rows)


def show_evaluation(title: str, evaluation: Evaluation) -> None:
    """The perplexity on each text, with what it was measured on."""
    rows = [
        (
            name,
            console.number(found.value),
            f"{found.tokens:,}",
            f"{found.loss:.4f} +- {found.loss_stderr:.4f}" if found.windows["samples"] > 1 else f"{found.loss:.4f}",
            "yes" if found.windows["bos"] else "no",
            found.dtype,
        )
        for name, found in evaluation.perplexity.items()
    ]
    console.show_table(title, ("text", "perplexity", "tokens", "loss +- s.e.", "BOS", "computed in"), rows)
