"""shrink: the whole line with a recipe."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from shortstack.cli import console
from shortstack.cli.app import verb
from shortstack.cli.dry_run import DryRun, lacking, show_lacking
from shortstack.cli.option_groups import Without
from shortstack.cli.options import Model, Out, Reporting, Session, going_on
from shortstack.machine.formats import duration, number, size
from shortstack.study import ShrinkOptions

if TYPE_CHECKING:
    from shortstack.study.shrink_dry_run import Foreseen
    from shortstack.study.shrinker import Shrunk


@verb()
def shrink(
    model: Model,
    output: Out,
    options: ShrinkOptions,
    session: Annotated[Session, Without("stream", "revision", "trust_remote_code", "device_map")],
    dry_run: DryRun = False,
) -> None:
    """Make a model shorter, from its name to a healed checkpoint.

    Score, plan, repair, heal and evaluate as a recipe has it; report and model card lie beside the weights.
    """
    if dry_run:
        return _foresee(model, output, options, session)

    from shortstack.study import shrink as shrink_model
    from shortstack.study import workers

    again = f"the same command goes on from there; what is done lies in {output}.study"
    with session.report.bars() as progress, going_on(again):
        shrunk = shrink_model(
            model, output, options, compute=session.compute, launcher=workers.local, progress=progress
        )
    if session.report.json:
        return console.show_json(shrunk.to_dict())
    show_shrunk(shrunk)
    session.report.next_measure(output, model)
    return None


def _foresee(model: str, output: Path, options: ShrinkOptions, session: Session) -> None:
    from shortstack.study.shrink_dry_run import foresee_shrink

    with session.report.bars():
        foreseen = foresee_shrink(model, output, options, compute=session.compute)
    report_foreseen(foreseen, output, session.report, device=session.compute.device)


def report_foreseen(foreseen: Foreseen, output: Path, report: Reporting, *, device: str = "auto") -> None:
    """What was foreseen, what does not fit, and what comes next."""
    short = lacking(foreseen.memory_bytes or 0, foreseen.disk_bytes, output, device=device)
    if report.json:
        return console.show_json(foreseen.to_dict() | {"lacking": short})
    show_foreseen(foreseen)
    show_lacking(short, report)
    return None


def show_foreseen(foreseen: Foreseen) -> None:
    """What each kind of step takes, and all; what there is no time for."""
    from shortstack.study.whole_progress import KINDS

    rows = [(said, duration(foreseen.seconds[kind])) for kind, said in KINDS.items() if kind in foreseen.seconds]
    rows += [
        ("answers, speed, int8, report", duration(foreseen.after)),
        ("all", f"{duration(foreseen.all_seconds)}, of {duration(60 * foreseen.minutes)}"),
        ("memory of a step", "unknown" if foreseen.memory_bytes is None else size(foreseen.memory_bytes)),
        ("disk, until the end", size(foreseen.disk_bytes)),
        ("weights read", "unknown" if foreseen.read_bytes is None else size(foreseen.read_bytes)),
    ]
    console.show_table("dry run: nothing is computed or written", ("", "about"), rows)
    if foreseen.trials > 1:
        console.show(f"Of {foreseen.trials} trials, the most there are, as if a quarter of the layers went.")
    if foreseen.all_seconds > 60 * foreseen.minutes:
        least = duration(foreseen.all_seconds)
        console.show(f"More than --minutes {foreseen.minutes:g}: with the least of everything it takes {least}.")
    if foreseen.left_out:
        console.show(f"For want of time: {'; '.join(foreseen.left_out)}. --minutes allows more.")


def show_shrunk(shrunk: Shrunk) -> None:
    """Whether to keep it; every model's perplexity and answers; the cuts that were compared, and why one was chosen."""
    console.show(shrunk.verdict)
    for tried in shrunk.tried:
        console.show(f"Tried: {tried}.")
    if shrunk.left_out:
        console.show(f"For want of time: {'; '.join(shrunk.left_out)}. --minutes allows more.")
    roles = {"unpruned": "evaluate_base", "pruned": "evaluate_pruned", "healed": "evaluate_healed"}
    models = {name: shrunk.steps[role]["perplexity"] for name, role in roles.items() if role in shrunk.steps}
    rows = [(text, *(number(each[text]["value"]) for each in models.values())) for text in models["unpruned"]]
    console.show_table(f"{shrunk.output}: perplexity", ("text", *models), rows)
    for said in shrunk.beside.answers:
        console.show_answers(said)
    if shrunk.compared:
        rows = [(layers, number(found)) for layers, found in sorted(shrunk.compared.items(), key=lambda each: each[1])]
        console.show_table("cuts that were compared", ("cut", "nats per token"), rows)
    console.show(shrunk.why)
