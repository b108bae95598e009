"""What was healed, or would be, as tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from shortstack import console

if TYPE_CHECKING:
    from shortstack.healing.forecast import Forecast
    from shortstack.healing.healer import Healing


LOSSES = {"sft": "loss", "distill": "distance from the teacher"}


def show_healing(healing: Healing) -> None:
    """What was trained, for how long, and what it did to the loss."""
    found = healing.to_dict()
    loss, kind = found["loss"], LOSSES[healing.objective]
    rows = [
        ("trained parameters", f"{found['trainable_parameters']:,}"),
        ("optimizer steps", str(found["steps"])),
        (
            f"training {kind}, first to last",
            f"{loss['first']:.4f} to {loss['last']:.4f}" if loss["first"] is not None else "no entry",
        ),
        (f"held-out {kind}, before to best", f"{loss['held_out_before']:.4f} to {loss['held_out']:.4f}"),
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
