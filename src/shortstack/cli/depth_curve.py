"""depth-curve: the model cut at every depth."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import Parameter

from shortstack.cli import console
from shortstack.cli.options import CALIBRATION, Model, Session, flat
from shortstack.data import CalibrationText
from shortstack.errors import InputError
from shortstack.machine.files import check_new, check_picture
from shortstack.machine.options import check_options, option

if TYPE_CHECKING:
    from shortstack.evaluation import Tasks


@dataclass(frozen=True)
class DepthOptions:
    """Options of the depth curve."""

    max_loss: float | None = option(
        None,
        help="Report how many layers can go up to this loss, in nats. Default: 1.5 times the perplexity.",
        minimum=0,
    )
    task: str | None = option(
        None, help="Multiple-choice questions to answer at every depth: a .jsonl file, or a task such as piqa."
    )
    limit: int | float | None = option(
        None, help="Only the first n documents of --task, or 10%.", minimum=1, shares=True
    )
    data_dir: Path | None = option(None, help="A folder of .jsonl or .parquet files for --task.")
    output: Annotated[Path | None, Parameter(alias="-o")] = option(None, help="Also write the curve to this JSON file.")
    plot: Path | None = option(None, help="Draw the curve: an .svg file.")

    def __post_init__(self) -> None:
        check_options(self)

    @property
    def questions(self) -> Path | Tasks | None:
        """A file of questions, or a standard task."""
        standard = self.task is not None and not self.task.endswith(".jsonl")
        for name, value in (("limit", self.limit), ("data_dir", self.data_dir)):
            if value is not None and not standard:
                raise InputError(
                    f"--task {self.task}" if self.task else "none",
                    expected="a standard task",
                    fix="add --task piqa",
                    option=name,
                )
        if self.task is None:
            return None

        from shortstack.evaluation import Tasks

        try:
            return Tasks(self.task, limit=self.limit, data_dir=self.data_dir) if standard else Path(self.task)
        except InputError as error:
            raise (error.but(option="task") if error.option == "tasks" else error) from error


def depth_curve(
    model: Model,
    /,
    *,
    asked: Annotated[DepthOptions, flat()] = DepthOptions(),
    text: Annotated[CalibrationText, flat(CALIBRATION)] = CalibrationText(),
    session: Annotated[Session, flat()] = Session(),
) -> None:
    """Measure the model cut at every depth, in one walk.

    A cut takes the last layers.

    $ shortstack depth-curve org/model --task piqa --limit 200
    """
    if asked.output:
        check_new(asked.output)
    if asked.plot:
        check_picture(asked.plot)
    questions = asked.questions

    from shortstack.decoder import calibration_tokens
    from shortstack.scoring import depth_curve as depth_curve_of

    with session.report.bars() as progress:
        checkpoint = session.source.open(model, progress)
        tokens = calibration_tokens(checkpoint, text, compute=session.compute, progress=progress)
        curve = depth_curve_of(
            checkpoint,
            tokens,
            task=questions,
            compute=session.compute,
            progress=progress,
        )
        if asked.max_loss is not None:
            curve = curve.within(asked.max_loss)
    if asked.plot:
        curve.plot().save(asked.plot)
    session.report.result(curve.to_dict(), lambda: console.show_result(curve), asked.output)
    if curve.removable:
        how = ("--metric", "reverse", "--drop", curve.removable)
        session.report.next_prune(model, checkpoint, *how, *session.source.words)
    else:
        session.report.next_cut(model, checkpoint, *session.source.words)
    return
