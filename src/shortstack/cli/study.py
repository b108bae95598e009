"""study: a grid of trials, resumable."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from shortstack.cli import console
from shortstack.cli.app import verb
from shortstack.cli.options import Reporting, going_on
from shortstack.errors import InputError, parameter
from shortstack.machine.formats import duration, size
from shortstack.study.run_options import RunOptions

if TYPE_CHECKING:
    from shortstack.study.costs import Estimate
    from shortstack.study.runner import StudyOutcome


@verb()
def study(
    file: Annotated[
        str, typer.Argument(help="A study's YAML file; or the word schema, for its JSON schema.", show_default=False)
    ],
    run: RunOptions,
    report: Reporting,
) -> None:
    """Run a grid of trials, each step once.

    Killed and started again, it goes on.
    """
    from shortstack.study import grid, run_study

    if file == "schema":
        return console.show_json(grid.schema())
    if run.dry_run:
        return _estimate(file, report)
    if run.output is None:
        fix = f"add {parameter('output', 'runs')}, or {parameter('dry_run', True)}"
        raise InputError(parameter("output"), expected="a folder for the study", found="none", fix=fix)
    with report.bars() as progress, going_on(f"the same command goes on from there; what is done lies in {run.output}"):
        outcome = run_study(
            file, run.output, launcher=run.launcher, artefacts=run.artefacts, keep=run.keep, progress=progress
        )
    if report.json:
        console.show_json(outcome.to_dict())
    else:
        show_outcome(outcome)
    report.next_step("report", run.output)
    if outcome.failed:
        raise typer.Exit(1)
    return None


def _estimate(file: str, report: Reporting) -> None:
    """What the study would take."""
    from shortstack.study import costs, read_study

    study = read_study(file)
    with report.bars():
        estimate = costs.estimate(study)
    if report.json:
        return console.show_json(estimate.to_dict())
    show_estimate(study.title or file, estimate)
    report.next_step("study", file, "-o", "runs")
    return None


def show_estimate(title: str, estimate: Estimate) -> None:
    """A study's steps, what sharing saves, and what they would take."""
    rows = [
        (kind, f"{estimate.asked[kind]:,}", f"{steps:,}", duration(estimate.seconds[kind]))
        for kind, steps in estimate.steps.items()
    ]
    rows.append(("start of a worker", "", "", duration(estimate.start_seconds)))
    asked, steps = sum(estimate.asked.values()), sum(estimate.steps.values())
    rows.append(("all", f"{asked:,}", f"{steps:,}", duration(estimate.total_seconds)))
    heading = ("step", "of all trials", "shared, at most", "one worker, about")
    console.show_table(f"{title}: {estimate.trials:,} trials; nothing is run", heading, rows)
    most, least, memory, cache, read = (
        "unknown" if nbytes is None else size(nbytes)
        for nbytes in (
            *(estimate.disk_bytes, estimate.least_disk_bytes),
            *(estimate.memory_bytes, estimate.cache_bytes, estimate.read_bytes),
        )
    )
    console.show(f"Weights take at most {most} of disk if all are kept, and {least} at a time with --keep none.")
    console.show(f"Weights read, by all steps, about: {read}.")
    console.show(f"Cache, about: {cache}; `shortstack cache` shows and clears it.")
    console.show(f"Memory of the largest step, about: {memory}.")
    for reason in estimate.unknown:
        console.show(f"Unknown: {reason}.")


def show_outcome(outcome: StudyOutcome) -> None:
    """How a study ended, and what failed."""
    rows = [
        ("trials done", f"{outcome.done:,} of {outcome.trials:,}"),
        ("trials failed", f"{outcome.failed:,}"),
        ("steps run now", f"{outcome.steps:,}"),
        ("steps done before", f"{outcome.skipped:,}"),
    ]
    console.show_table(str(outcome.output), ("", "study"), rows)
    for failure in outcome.failures:
        console.show(f"Failed: {failure['kind']}, {failure['error'].strip().splitlines()[-1]}")
        console.show(f"  log {failure['log']}")
