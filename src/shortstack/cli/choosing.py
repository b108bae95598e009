"""Verbs that measure layers and choose some: score, sweep, plan."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shortstack import console, plots, tables
from shortstack.cli.application import verb
from shortstack.cli.calibration import Calibration
from shortstack.cli.choice import Choice
from shortstack.cli.options import (
    MODEL,
    REPAIR_SAMPLES,
    Compute,
    Model,
    RepairSamples,
    Report,
    Source,
    check_unused,
)
from shortstack.errors import InputError
from shortstack.jsonfiles import check_new, read_json
from shortstack.metrics import METRICS, metrics_named
from shortstack.planning import Sizes
from shortstack.removals import show_layers
from shortstack.scores import Scores

if TYPE_CHECKING:
    from shortstack.evaluation import Tasks

METRIC_NAMES = ", ".join(METRICS)


@verb()
def score(
    model: Model,
    calibration: Calibration,
    compute: Compute,
    source: Source,
    report: Report,
    metric: Annotated[str, typer.Option(help=f"Comma-separated: {METRIC_NAMES}, or all.")] = "ppl",
    window: Annotated[
        int | None, typer.Option(min=1, help="Also score every block of so many layers.", show_default=False)
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the scores to this JSON file.")] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Draw the orders and how far they agree: an .svg, .png or .pdf file.")
    ] = None,
) -> None:
    """Score every layer by one or more metrics, in one walk.

    Low = remove first.
    """
    if output:
        check_new(output)
    if plot:
        plots.check_picture(plot)
        _check_orders(metric)
    with report.bars() as progress:
        checkpoint = source.open(model, progress)
        scores = calibration.score(checkpoint, metric.split(","), compute, progress, window=window)
    if output:
        scores.save(output)
    if plot:
        plots.score_map(scores, plot, drop="25%")
    if report.json:
        return console.show_json(scores.to_dict())
    tables.show_scores(scores)
    again, drop = [] if output else source.words, "25%" if scores.scores else scores.window
    report.next_step("plan", output or model, "--metric", scores.default_metric, "--drop", drop, *again)
    return None


def _check_orders(metric: str) -> None:
    """Refuse to draw orders of layers where no metric has one."""
    if not any(each.singles for each in metrics_named(name.strip() for name in metric.split(","))):
        raise InputError(
            "--plot", expected="a metric that scores single layers", found=metric, fix="add one, such as ppl"
        )


@verb()
def sweep(
    model: Model,
    calibration: Calibration,
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
    plot: Annotated[Path | None, typer.Option(help="Draw the curve: an .svg, .png or .pdf file.")] = None,
) -> None:
    """Measure the model cut at every depth, in one walk.

    A cut takes the last layers.
    """
    if repair:
        calibration.check_repair()
    if plot:
        plots.check_picture(plot)
    with report.bars() as progress:
        checkpoint = source.open(model, progress)
        found = calibration.sweep(
            checkpoint,
            compute,
            progress,
            max_loss=max_loss,
            task=_multiple_choice(task, limit, data_dir),
            repair_samples=repair_samples if repair else None,
        )
    if plot:
        depths = [{name: value for name, value in asdict(depth).items() if value is not None} for depth in found.depths]
        plots.depth_curve(depths, plot, title=f"{model}, cut at every depth", knee=found.knee)
    if report.json:
        return console.show_json(found.to_dict())
    tables.show_sweep(model, found)
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

    return Tasks(task, limit=limit, data=data_dir) if standard else Path(task)


@verb("plan")
def plan_verb(
    model_or_scores: Annotated[str, typer.Argument(help=f"A scores.json, or a model. {MODEL}", show_default=False)],
    choice: Choice,
    calibration: Calibration,
    compute: Compute,
    source: Source,
    report: Report,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the plan to this JSON file.")] = None,
) -> None:
    """Choose the layers to remove, from scores or a model.

    A model is scored first when the metric needs it.
    """
    if output:
        check_new(output)
    choice.check()
    if _is_scores(model_or_scores):
        if choice.measures:
            raise InputError(
                model_or_scores,
                expected="a model, to measure shorter forms of it",
                found="scores of the whole model",
                fix="name the model instead of the scores",
            )
        check_unused(model_or_scores, calibration, compute, source)
        scores = Scores.from_dict(read_json(Path(model_or_scores)), where=model_or_scores)
        chosen = choice.plan(scores, compute.seed)
        chosen = chosen.sized(Sizes.from_dict(scores.model, where=model_or_scores))
        model = str(scores.model.get("source", "MODEL"))
    else:
        model = model_or_scores
        if choice.layers is not None:
            check_unused("--layers", calibration, compute)
        with report.bars() as progress:
            checkpoint = source.open(model, progress)
            chosen, _ = choice.plan_for(checkpoint, calibration, compute, progress)
            chosen = chosen.sized(checkpoint.sizes)
    if output:
        chosen.save(output)
    if report.json:
        return console.show_json(chosen.to_dict())
    tables.show_plan(chosen)
    how = ("--plan", output) if output else ("--layers", show_layers(chosen.removed).replace(" ", ""))
    report.next_step("prune", model, *how, *source.words, "-o", "pruned")
    return None


def _is_scores(name: str) -> bool:
    """Whether an argument names a scores file rather than a model; .gguf is the one model that is a file."""
    return not os.path.isdir(name) and (name.endswith(".json") or os.path.isfile(name)) and not name.endswith(".gguf")
