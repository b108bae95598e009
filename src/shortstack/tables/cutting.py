"""What was cut, verified and repaired, as tables."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from shortstack import console

if TYPE_CHECKING:
    from shortstack.repairing import Repair
    from shortstack.verification import Verification


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
