"""depth-curve: the model cut at every depth."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from shortstack.cli.options import CALIBRATION, NEW, PICTURE, Calibration, Model, Session, flat


def depth_curve(
    model: Model,
    /,
    *,
    output: Annotated[Path | None, NEW, Parameter(alias="-o", help="Also write the curve to this JSON file.")] = None,
    plot: Annotated[Path | None, PICTURE, Parameter(help="Draw the curve: an .svg file.")] = None,
    calibration: Annotated[Calibration, flat(CALIBRATION)] = Calibration(),
    session: Annotated[Session, flat()] = Session(),
) -> None:
    """Measure the model cut at every depth, in one pass over the layers.

    A cut takes the last layers.

    $ shortstack depth-curve org/model --plot depths.svg
    """
    from shortstack.scoring import depth_curve as depth_curve_of

    with session.report.bars() as progress:
        checkpoint = session.source.open(model, progress)
        curve = depth_curve_of(checkpoint, calibration.text, compute=session.compute, progress=progress)
    session.report.result(curve, output, plot)
    if curve.removable:
        how = ("--metric", "reverse", "--drop", curve.removable)
        session.report.next_prune(model, checkpoint, *how, *session.source.command_line)
    else:
        session.report.next_cut(model, checkpoint, *session.source.command_line)
