"""depth-curve: the model cut at every depth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from shortstack.cli.options import CALIBRATION, Model, Session, check_unused, flat
from shortstack.data import CalibrationText
from shortstack.errors import InputError
from shortstack.evaluation import Tasks
from shortstack.machine.files import check_new, check_picture
from shortstack.machine.options import option

OTHER = "tasks|num_fewshot|include|batch_size|max_length|backend|seed"  # what is of evaluate's tasks alone


@dataclass(frozen=True)
class DepthOptions:
    task: str | None = option(
        None, help="Multiple-choice questions to answer at every depth: a .jsonl file, or a task such as piqa."
    )
    output: Annotated[Path | None, Parameter(alias="-o")] = option(None, help="Also write the curve to this JSON file.")
    plot: Path | None = option(None, help="Draw the curve: an .svg file.")


def depth_curve(
    model: Model,
    /,
    *,
    options: Annotated[DepthOptions, flat()] = DepthOptions(),
    standard: Annotated[Tasks, flat(without=OTHER)] = Tasks(),
    text: Annotated[CalibrationText, flat(CALIBRATION)] = CalibrationText(),
    session: Annotated[Session, flat()] = Session(),
) -> None:
    """Measure the model cut at every depth, in one walk.

    A cut takes the last layers.

    $ shortstack depth-curve org/model --task piqa --limit 200
    """
    if options.output:
        check_new(options.output)
    if options.plot:
        check_picture(options.plot)
    questions = _questions(options.task, standard)

    from shortstack.decoder import calibration_tokens
    from shortstack.scoring import depth_curve as depth_curve_of

    with session.report.bars() as progress:
        checkpoint = session.source.open(model, progress)
        tokens = calibration_tokens(checkpoint, text, compute=session.compute, progress=progress)
        curve = depth_curve_of(checkpoint, tokens, task=questions, compute=session.compute, progress=progress)
    session.report.result(curve, options.output, options.plot)
    if curve.removable:
        how = ("--metric", "reverse", "--drop", curve.removable)
        session.report.next_prune(model, checkpoint, *how, *session.source.words)
    else:
        session.report.next_cut(model, checkpoint, *session.source.words)


def _questions(task: str | None, standard: Tasks) -> Path | Tasks | None:
    if task is None or task.endswith(".jsonl"):
        check_unused("depth-curve without a standard --task", standard)
        return Path(task) if task else None
    try:
        return replace(standard, tasks=task)
    except InputError as error:
        raise (error.but(option="task") if error.option == "tasks" else error) from error
