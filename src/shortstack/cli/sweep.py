"""sweep: the model cut at every depth."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shortstack.cli import console, plots
from shortstack.cli.app import verb
from shortstack.cli.options import REPAIR_SAMPLES, Model, RepairSamples, Session, repair_text
from shortstack.data import CalibrationText
from shortstack.errors import InputError
from shortstack.machine.formats import number

if TYPE_CHECKING:
    from shortstack.evaluation import Tasks
    from shortstack.scoring import Sweep


@verb()
def sweep(
    model: Model,
    text: CalibrationText,
    session: Session,
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

    from shortstack.data.splits import HELD_OUT
    from shortstack.scoring import sweep as sweep_depths

    with session.report.bars() as progress:
        checkpoint = session.source.open(model, progress)
        curve = sweep_depths(
            checkpoint,
            text.tokens(checkpoint.tokenizer(), session.compute.seed, at_least=HELD_OUT if repair else None),
            task=_multiple_choice(task, limit, data_dir),
            repair=repair,
            compute=session.compute,
            progress=progress,
        )
        if max_loss is not None:
            curve = curve.within(max_loss)
    if plot:
        depths = [{name: value for name, value in asdict(depth).items() if value is not None} for depth in curve.depths]
        plots.depth_curve(depths, plot, title=f"{model}, cut at every depth", knee=curve.knee)
    if session.report.json:
        return console.show_json(curve.to_dict())
    show_sweep(model, curve)
    if curve.removable:
        session.report.next_step(
            "prune", model, "--metric", "reverse", "--drop", curve.removable, "-o", "pruned", *session.source.words
        )
    else:
        session.report.next_step("score", model, "--metric", "all", "-o", "scores.json", *session.source.words)
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


def show_sweep(model: str, curve: Sweep) -> None:
    """Every depth, with the loss as a bar, the knee marked, and how many layers can go."""
    losses = [depth.loss for depth in curve.depths]
    low, span = min(losses), max(losses) - min(losses) or 1.0
    wide = 11 if curve.task or curve.removable_repaired is not None else 23  # what a terminal of 80 columns leaves
    rows = [
        (
            str(depth.layers),
            f"{depth.loss:.4f}",
            number(depth.perplexity),
            number(depth.kl),
            *([f"{depth.accuracy:.3f} ± {depth.accuracy_stderr:.3f}"] if curve.task else []),
            *([number(depth.repaired_perplexity)] if depth.repaired_perplexity is not None else []),
            "█" * (1 + round(wide * (depth.loss - low) / span)) + " knee" * (gone == curve.knee),
        )
        for gone, depth in enumerate(curve.depths)
    ]
    on = f"{curve.tokens['samples']} x {curve.tokens['length']} tokens of {curve.tokens['source']}"
    repaired = curve.removable_repaired is not None
    more = [*(["accuracy"] if curve.task else []), *(["repaired"] if repaired else [])]
    heading = ("layers", "loss", "perplexity", "KL", *more, "loss, drawn")
    console.show_table(f"{model} cut at every depth, on {on}", heading, rows)
    if curve.task:
        console.show(f"Accuracy ± its standard error on {curve.task['questions']} questions of {curve.task['source']}.")
    if repaired:
        console.show(
            "Measured on one window in four; the last kept layer was refitted on the others: its perplexity is `repaired`."
        )
    if curve.knee is None:
        console.show("The curve of the loss has no knee: it is never below the line from its first point to its last.")
    some = f"{curve.removable} layer{'s' * (curve.removable != 1)}"
    with_repair = f" ({curve.removable_repaired} with repair)" if repaired else ""
    console.show(f"{some}{with_repair} can go from the tail with a loss of at most {curve.max_loss:.4f}.")
