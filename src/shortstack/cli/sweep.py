"""sweep: the model cut at every depth."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shortstack.cli import console, plots
from shortstack.cli.app import verb
from shortstack.cli.options import REPAIR_SAMPLES, Model, RepairSamples, Report, Source, repair_text
from shortstack.data import CalibrationText
from shortstack.errors import InputError
from shortstack.machine.device import Compute
from shortstack.machine.formats import number

if TYPE_CHECKING:
    from shortstack.evaluation import Tasks
    from shortstack.scoring import Sweep


@verb()
def sweep(
    model: Model,
    text: CalibrationText,
    compute: Compute,
    source: Source,
    report: Report,
    max_loss: Annotated[
        float | None,
        typer.Option(help="Say how many layers can go up to this loss, in nats. Default: 1.5 times the perplexity."),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(help="Multiple choice, answered at every depth: a .jsonl file, or a standard task such as piqa."),
    ] = None,
    limit: Annotated[int | None, typer.Option(help="Only the first n documents of --task.", show_default=False)] = None,
    data_dir: Annotated[
        Path | None, typer.Option(help="A folder of .jsonl or .parquet files for --task.", show_default=False)
    ] = None,
    repair: Annotated[
        bool,
        typer.Option("--repair", help="Also refit the last kept layer of each depth; measure on held-out windows."),
    ] = False,
    repair_samples: RepairSamples = REPAIR_SAMPLES,
    plot: Annotated[Path | None, typer.Option(help="Draw the curve: an .svg, .png or .pdf file (extra plot).")] = None,
) -> None:
    """Measure the model cut at every depth, in one walk.

    A cut takes the last layers.
    """
    if repair:
        text = repair_text(text, repair_samples)
    if plot:
        plots.check_picture(plot)

    from shortstack.repairing.fit import HELD_OUT
    from shortstack.scoring import sweep as sweep_depths

    with report.bars() as progress:
        checkpoint = source.open(model, progress)
        found = sweep_depths(
            checkpoint,
            text.tokens(checkpoint.tokenizer(), compute.seed, at_least=HELD_OUT if repair else None),
            max_loss=max_loss,
            task=_multiple_choice(task, limit, data_dir),
            repair=repair,
            compute=compute,
            progress=progress,
        )
    if plot:
        depths = [{name: value for name, value in asdict(depth).items() if value is not None} for depth in found.depths]
        plots.depth_curve(depths, plot, title=f"{model}, cut at every depth", knee=found.knee)
    if report.json:
        return console.show_json(found.to_dict())
    show_sweep(model, found)
    if found.removable:
        report.next_step(
            "prune", model, "--metric", "reverse", "--drop", found.removable, "-o", "pruned", *source.words
        )
    else:
        report.next_step("score", model, "--metric", "all", "-o", "scores.json", *source.words)
    return None


def _multiple_choice(task: str | None, limit: int | None, data_dir: Path | None) -> Path | Tasks | None:
    """A file of questions, or a standard task."""
    standard = task is not None and not task.endswith(".jsonl")
    for option, value in (("--limit", limit), ("--data-dir", data_dir)):
        if value is not None and not standard:
            raise InputError(option, expected="a standard task", found=f"--task {task}", fix="add --task piqa")
    if task is None:
        return None

    from shortstack.evaluation import Tasks

    return Tasks(task, limit=limit, data_dir=data_dir) if standard else Path(task)


def show_sweep(model: str, found: Sweep) -> None:
    """What was found at every depth, with the loss as a bar, the knee marked, and how many layers can go."""
    losses = [depth.loss for depth in found.depths]
    low, span = min(losses), max(losses) - min(losses) or 1.0
    wide = 11 if found.task or found.removable_repaired is not None else 23  # what a terminal of 80 columns leaves
    rows = [
        (
            str(depth.layers),
            f"{depth.loss:.4f}",
            number(depth.perplexity),
            number(depth.kl),
            *([f"{depth.accuracy:.3f} ± {depth.accuracy_stderr:.3f}"] if found.task else []),
            *([number(depth.repaired_perplexity)] if depth.repaired_perplexity is not None else []),
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
