"""score: every layer by one or more metrics, in one pass over the layers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from shortstack.cli.options import CALIBRATION, NEW, PICTURE, Calibration, Model, Session, flat
from shortstack.machine.options import check_options, option
from shortstack.scoring import METRICS
from shortstack.scoring.metrics import metrics_named


@dataclass(frozen=True)
class ScoreOptions:
    metric: str = option("ppl", help=f"Comma-separated: {', '.join(METRICS)}, or all.")
    window: int | None = option(None, help="Also score every block of this many layers.", minimum=1)

    def __post_init__(self) -> None:
        check_options(self)
        metrics_named(self.metric)


def score(
    model: Model,
    /,
    *,
    options: Annotated[ScoreOptions, flat()] = ScoreOptions(),
    output: Annotated[Path | None, NEW, Parameter(alias="-o", help="Write the scores to this JSON file.")] = None,
    plot: Annotated[
        Path | None, PICTURE, Parameter(help="Draw the scores, their order and agreement: an .svg file.")
    ] = None,
    calibration: Annotated[Calibration, flat(CALIBRATION)] = Calibration(),
    session: Annotated[Session, flat()] = Session(),
) -> None:
    """Score every layer by one or more metrics, in one pass over the layers.

    Low = remove first.

    $ shortstack score org/model --metric all -o scores.json
    """
    from shortstack.scoring import score as score_layers

    with session.report.bars() as progress:
        checkpoint = session.source.open(model, progress)
        needs_text = any(metric.needs_text for metric in metrics_named(options.metric))
        scores = score_layers(
            checkpoint,
            calibration.text if needs_text else None,
            metrics=options.metric,
            window=options.window,
            compute=session.compute,
            progress=progress,
        )
    session.report.result(scores, output, plot)
    if output:
        session.report.next_step("plan", output, "--metric", scores.default_metric, "--drop", "25%")
    elif options.metric != ScoreOptions.metric:
        how = "--metric", scores.default_metric, "--drop", "25%", "-o", "plan.json"
        session.report.next_step("plan", model, *how, *session.source.command_line)
    else:
        session.report.next_cut(model, checkpoint, *session.source.command_line)
