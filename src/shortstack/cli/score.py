"""score: every layer by one or more metrics, in one pass over the layers."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from shortstack.cli.options import CALIBRATION, Model, Session, flat
from shortstack.data import CalibrationText
from shortstack.machine.files import check_new, check_picture
from shortstack.machine.options import check_options, option
from shortstack.scoring import METRICS
from shortstack.scoring.metrics import metrics_named


@dataclass(frozen=True)
class ScoreOptions:
    metric: str = option("ppl", help=f"Comma-separated: {', '.join(METRICS)}, or all.")
    window: int | None = option(None, help="Also score every block of this many layers.", minimum=1)
    output: Annotated[Path | None, Parameter(alias="-o")] = option(None, help="Write the scores to this JSON file.")
    plot: Path | None = option(None, help="Draw the scores, their order and agreement: an .svg file.")

    def __post_init__(self) -> None:
        check_options(self)

    def check(self) -> None:
        """Say what is wrong with names, and with where scores go, before any model is opened."""
        metrics_named(self.metric)
        if self.output:
            check_new(self.output)
        if self.plot:
            check_picture(self.plot)


def score(
    model: Model,
    /,
    *,
    options: Annotated[ScoreOptions, flat()] = ScoreOptions(),
    text: Annotated[CalibrationText, flat(CALIBRATION)] = CalibrationText(),
    session: Annotated[Session, flat()] = Session(),
) -> None:
    """Score every layer by one or more metrics, in one pass over the layers.

    Low = remove first.

    $ shortstack score org/model --metric all -o scores.json
    """
    options.check()

    from shortstack.scoring import score as score_layers

    with session.report.bars() as progress:
        checkpoint = session.source.open(model, progress)
        needs_text = any(metric.needs_text for metric in metrics_named(options.metric))
        scores = score_layers(
            checkpoint,
            text if needs_text else None,
            metrics=options.metric,
            window=options.window,
            compute=session.compute,
            progress=progress,
        )
    session.report.result(scores, options.output, options.plot)
    if options.output:
        session.report.next_step("plan", options.output, "--metric", scores.default_metric, "--drop", "25%")
    elif options.metric != ScoreOptions.metric:
        how = "--metric", scores.default_metric, "--drop", "25%", "-o", "plan.json"
        session.report.next_step("plan", model, *how, *session.source.words)
    else:
        session.report.next_cut(model, checkpoint, *session.source.words)
