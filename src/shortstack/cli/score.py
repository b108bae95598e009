"""score: every layer by one or more metrics, in one pass over the layers."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from pydantic import Field

from shortstack.cli.options import (
    CALIBRATION,
    NEW,
    PICTURE,
    Calibration,
    CommonOptions,
    Model,
    check_unused,
    expand_fields,
)
from shortstack.data import Text
from shortstack.machine.options import options
from shortstack.scoring import METRICS
from shortstack.scoring.metrics import metrics_named


@options
class ScoreOptions:
    """What is measured."""

    metric: str = Field(default="ppl", description=f"Comma-separated: {', '.join(METRICS)}, or all.")
    window: int | None = Field(default=None, ge=1, description="Also score every block of this many layers.")

    def __post_init__(self) -> None:
        metrics_named(self.metric)


DEPTH_CURVE = "Instead measure the model without its last layers, for every number of them."


def score(
    model: Model,
    /,
    *,
    what: Annotated[ScoreOptions, expand_fields()] = ScoreOptions(),
    depth_curve: Annotated[bool, Parameter(help=DEPTH_CURVE)] = False,
    output: Annotated[Path | None, NEW, Parameter(alias="-o", help="Write the scores to this JSON file.")] = None,
    plot: Annotated[
        Path | None, PICTURE, Parameter(help="Draw the scores, their order and agreement: an .svg file.")
    ] = None,
    calibration: Annotated[Calibration, expand_fields(CALIBRATION)] = Calibration(),
    session: Annotated[CommonOptions, expand_fields()] = CommonOptions(),
) -> None:
    """Score every layer by one or more metrics, in one pass over the layers.

    Low = remove first.

    $ shortstack score org/model --metric all -o scores.json
    """
    if depth_curve:
        check_unused("--depth-curve", what)
        return _depth_curve(model, output, plot, calibration.text, session)

    from shortstack.scoring import score as score_layers

    with session.report.bars() as progress:
        checkpoint = session.source.open(model, progress)
        needs_text = any(metric.needs_text for metric in metrics_named(what.metric))
        scores = score_layers(
            checkpoint,
            calibration.text if needs_text else None,
            metrics=what.metric,
            window=what.window,
            compute=session.compute,
            progress=progress,
        )
    session.report.result(scores, output, plot)
    if output:
        session.report.next_step("plan", output, "--metric", scores.default_metric, "--drop", "25%")
    elif what != ScoreOptions():
        how = "--metric", scores.default_metric, "--drop", "25%", "-o", "plan.json"
        session.report.next_step("plan", model, *how, *session.source.command_line)
    else:
        session.report.next_cut(model, checkpoint, *session.source.command_line)
    return None


def _depth_curve(model: str, output: Path | None, plot: Path | None, text: Text, session: CommonOptions) -> None:
    from shortstack.scoring import depth_curve

    with session.report.bars() as progress:
        checkpoint = session.source.open(model, progress)
        curve = depth_curve(checkpoint, text, compute=session.compute, progress=progress)
    session.report.result(curve, output, plot)
    if curve.removable:
        how = ("--metric", "reverse", "--drop", curve.removable)
        session.report.next_prune(model, checkpoint, *how, *session.source.command_line)
    else:
        session.report.next_cut(model, checkpoint, *session.source.command_line)
