"""score: every layer by one or more metrics, in one walk."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from shortstack.charts.checks import check_picture
from shortstack.cli import console
from shortstack.cli.options import CALIBRATION, Model, Session, flat, typed
from shortstack.data import CalibrationText
from shortstack.machine.files import check_new
from shortstack.machine.formats import number, show_layers
from shortstack.machine.options import check_options, option
from shortstack.scoring import METRICS
from shortstack.scoring.metrics import metrics_named
from shortstack.scoring.orders import removal_order

if TYPE_CHECKING:
    from shortstack.scoring import Scores


BAR = 10  # characters of the longest bar


@dataclass(frozen=True)
class ScoreOptions:
    """Which scores, and where they go."""

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
    asked: Annotated[ScoreOptions, flat()] = ScoreOptions(),
    text: Annotated[CalibrationText, flat(CALIBRATION)] = CalibrationText(),
    session: Annotated[Session, flat()] = Session(),
) -> None:
    """Score every layer by one or more metrics, in one walk.

    Low = remove first.

    $ shortstack score org/model --metric all -o scores.json
    """
    asked.check()

    from shortstack.decoder import calibration_tokens
    from shortstack.scoring import score as score_layers

    with session.report.bars() as progress:
        checkpoint = session.source.open(model, progress)
        needs_text = any(each.needs_text for each in metrics_named(asked.metric))
        tokens = (
            calibration_tokens(checkpoint, text, compute=session.compute, progress=progress) if needs_text else None
        )
        scores = score_layers(
            checkpoint, tokens, metrics=asked.metric, window=asked.window, compute=session.compute, progress=progress
        )
    if session.report.json:
        console.show_json(scores.to_dict())
    else:
        show_scores(scores)
    if asked.output:  # shown before: a full disk does not cost the result
        scores.save(asked.output)
    if asked.plot:
        scores.plot().save(asked.plot)
    if session.report.json:
        return
    if asked.output:
        drop = "25%" if scores.scores else scores.window
        session.report.next_step("plan", asked.output, "--metric", scores.default_metric, "--drop", drop)
    else:
        read = (text,) if needs_text else ()
        compute = replace(session.compute, device_map=None)  # which no repair takes
        session.report.next_cut(model, checkpoint, *typed(*read, compute, session.source))
    return


def show_scores(scores: Scores) -> None:
    """Each layer's score by each metric and, in brackets, the place at which it would go; then those of the windows."""
    base = (
        f"; unpruned perplexity {number(METRICS['ppl'].function(scores.base_loss))}"
        if scores.base_loss is not None and not scores.kinds
        else "; ppl is times the unpruned perplexity"
        if "ppl" in (*scores.scores, *scores.blocks)
        else ""
    )
    tokens = scores.tokens or {}
    on = f" on {tokens['samples']} x {tokens['length']} tokens of {tokens['source']}" if tokens else ""
    title = f"scores{on}{base} (low = remove first; in brackets the order of removal)"
    if scores.scores:
        columns = {metric: _ranked(values) for metric, values in scores.scores.items()}
        console.show_columns(title, ("layer", [str(layer) for layer in range(scores.layers)]), columns)
    show_abilities(scores)
    if scores.blocks and (size := scores.window):
        blocks = [show_layers(range(start, start + size)) for start in range(scores.layers - size + 1)]
        heading = f"blocks of {size} layers"
        columns = {metric: _ranked(values) for metric, values in scores.blocks.items()}
        console.show_columns(heading if scores.scores else f"{heading}: {title}", ("layers", blocks), columns)


def show_abilities(scores: Scores) -> None:
    """What each layer carries: what its removal costs on each kind of text, and which look cheap on one and are not."""
    lost = {source: kind.lost() for source, kind in scores.kinds.items()}
    costs = {source: values for source, values in lost.items() if values is not None}
    short = {source: Path(source).name for source in costs}
    names = short if len(set(short.values())) == len(short) else {source: source for source in costs}
    if len(costs) < 2:
        return
    most = max((value for values in costs.values() for value in values if math.isfinite(value)), default=0.0)
    columns = {names[source]: [_cost(value, most) for value in values] for source, values in costs.items()}
    measured = {kind.measure for kind in scores.kinds.values()}
    title = f"what each layer carries: {' or '.join(sorted(measured))} without it, by kind of text"
    console.show_columns(title, ("layer", [str(layer) for layer in range(scores.layers)]), columns)
    first = next(iter(costs))
    for source in list(costs)[1:]:
        hidden = scores.hidden_carriers(first, source)
        if hidden:
            console.show(f"Cheap on {names[first]} and dear on {names[source]}: {show_layers(hidden)}.")


def _cost(value: float, most: float) -> str:
    """A number, and a bar for its square root: what is dear is many times what is cheap."""
    bar = "#" * round(BAR * math.sqrt(max(min(value, most), 0) / most)) if most > 0 else ""
    return f"{value:6.2f} {bar:<{BAR}}"


def _ranked(values: Sequence[float]) -> list[str]:
    place = {index: place for place, index in enumerate(removal_order(values), start=1)}
    return [f"{number(value)} ({place[index]:>2})" for index, value in enumerate(values)]
