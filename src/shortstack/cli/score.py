"""score: every layer by one or more metrics, in one walk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from shortstack.cli import console, plots
from shortstack.cli.app import verb
from shortstack.cli.options import Model, Report, Source
from shortstack.data import CalibrationText
from shortstack.errors import InputError
from shortstack.machine.device import Compute
from shortstack.machine.files import check_new
from shortstack.machine.formats import number
from shortstack.planning.layer_sets import show_layers
from shortstack.scoring import METRICS
from shortstack.scoring.metrics import metrics_named
from shortstack.scoring.scores import removal_order

if TYPE_CHECKING:
    from shortstack.scoring import Scores


METRIC_NAMES = ", ".join(METRICS)


@verb()
def score(
    model: Model,
    text: CalibrationText,
    compute: Compute,
    source: Source,
    report: Report,
    metric: Annotated[str, typer.Option(help=f"Comma-separated: {METRIC_NAMES}, or all.")] = "ppl",
    window: Annotated[
        int | None, typer.Option(min=1, help="Also score every block of so many layers.", show_default=False)
    ] = None,
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Write the scores to this JSON file.")] = None,
    plot: Annotated[
        Path | None,
        typer.Option(help="Draw the orders and how far they agree: an .svg, .png or .pdf file (extra plot)."),
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

    from shortstack.scoring import score as score_layers

    with report.bars() as progress:
        checkpoint = source.open(model, progress)
        needs_text = any(each.needs_text for each in metrics_named(name.strip() for name in metric.split(",")))
        tokens = text.tokens(checkpoint.tokenizer(), compute.seed) if needs_text else None
        scores = score_layers(checkpoint, tokens, metrics=metric, window=window, compute=compute, progress=progress)
    if output:
        scores.save(output)
    if plot:
        plots.score_map(scores, plot, drop="25%")
    if report.json:
        return console.show_json(scores.to_dict())
    show_scores(scores)
    again, drop = [] if output else source.words, "25%" if scores.scores else scores.window
    report.next_step("plan", output or model, "--metric", scores.default_metric, "--drop", drop, *again)
    return None


def _check_orders(metric: str) -> None:
    """Refuse to draw orders of layers where no metric has one."""
    if not any(each.singles for each in metrics_named(name.strip() for name in metric.split(","))):
        raise InputError(
            "--plot", expected="a metric that scores single layers", found=metric, fix="add one, such as ppl"
        )


def show_scores(scores: Scores) -> None:
    """Each layer's score by each metric and, in brackets, the place at which it would go; then those of the windows."""
    base = (
        f"; unpruned perplexity {number(METRICS['ppl'].function(scores.base_loss))}"
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
    return [f"{number(value)} ({place[index]:>2})" for index, value in enumerate(values)]
