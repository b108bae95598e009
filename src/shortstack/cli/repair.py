"""repair: refit the kept layers of a cut."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING, Annotated

import typer

from shortstack.cli import console
from shortstack.cli.app import verb
from shortstack.cli.option_groups import Only
from shortstack.cli.options import REPAIR_SAMPLES, Out, RepairSamples, Report, Source
from shortstack.data import CalibrationText
from shortstack.machine.device import Compute
from shortstack.machine.formats import number

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint
    from shortstack.machine.progress import Progress
    from shortstack.planning import Plan
    from shortstack.repairing import Repair


@verb("repair")
def repair_verb(
    directory: Annotated[str, typer.Argument(help="A checkpoint that shortstack pruned.", show_default=False)],
    source_model: Annotated[str, typer.Option("--source", help="The model it was cut from.", show_default=False)],
    output: Out,
    text: Annotated[CalibrationText, Only("text", "length")],
    compute: Compute,
    source: Source,
    report: Report,
    repair_samples: RepairSamples = REPAIR_SAMPLES,
) -> None:
    """Refit the kept layers of a cut in closed form.

    No training, no new parameters.
    """
    from shortstack.pruning import prune as prune_checkpoint
    from shortstack.pruning.pruner import check_fits
    from shortstack.pruning.verification import cut_of

    text = replace(text, samples=repair_samples)
    with report.bars() as progress:
        origin = source.open(source_model, progress)
        chosen = cut_of(replace(source, revision=None).open(directory, progress), origin)
        check_fits(output, origin, chosen)
        repaired = refitted(origin, chosen, text, compute, progress)
        prune_checkpoint(origin, chosen, output, repair=repaired, progress=progress)
    if report.json:
        return console.show_json({**repaired.to_dict(), "output": str(output)})
    show_repair(repaired)
    report.next_step("heal", output, "--data", "pydoc", "-o", "healed", *replace(source, revision=None).words)
    return None


def refitted(
    checkpoint: Checkpoint, chosen: Plan, text: CalibrationText, compute: Compute, progress: Progress
) -> Repair:
    """What refitting kept layers gives for a cut."""
    from shortstack.repairing import repair
    from shortstack.repairing.fit import HELD_OUT

    tokens = text.tokens(checkpoint.tokenizer(), compute.seed, at_least=HELD_OUT)
    return repair(checkpoint, frozenset(chosen.removed), tokens, compute=compute, progress=progress)


def show_repair(found: Repair) -> None:
    """Held-out perplexity before and after, and what was refitted."""
    losses = {"unpruned": found.loss_unpruned, "cut": found.loss_before, "cut and repaired": found.loss_after}
    rows = [(name, f"{loss:.4f}", number(math.exp(loss))) for name, loss in losses.items()]
    console.show_table("repair", ("held-out windows", "loss", "perplexity"), rows)
    on = f"{found.tokens['samples']} x {found.tokens['length']} tokens of {found.tokens['source']}"
    if not found.kept:
        console.show(f"No repair on {on} lowered the held-out loss, so the cut stays as it is.")
        return
    largest = sorted(found.fits, key=lambda fit: fit.error)[:3]
    told = ", ".join(f"layer {fit.layer} {fit.weight} {1 - fit.error:.0%}" for fit in largest)
    console.show(f"{len(found.fits)} weights refitted on {on}, one window in four held out.")
    console.show(f"Of what the cut changed, the most was regained by {told}.")
