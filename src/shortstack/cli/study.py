"""study: a grid of trials, resumable."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from shortstack.cli import console
from shortstack.cli.dry_run import lacking
from shortstack.cli.options import SAID, Reporting, flat, going_on
from shortstack.errors import InputError
from shortstack.machine.memory import Requirements
from shortstack.study.workers import RunOptions


def study(
    file: Annotated[str, Parameter(help="A study's YAML file, or `schema` to print the JSON schema.")],
    /,
    *,
    output: Annotated[
        Path | None, Parameter(alias="-o", help="Folder of the study; an existing one is continued.")
    ] = None,
    run: Annotated[RunOptions, flat()] = RunOptions(),
    report: Annotated[Reporting, flat(SAID)] = Reporting(),
) -> None:
    """Run a grid of trials, each step once.

    If it is killed, the same command continues it.

    $ shortstack study trials.yaml --workers 4 -o runs
    """
    from shortstack.study import grid, run_study

    if file == "schema":
        return console.show_json(grid.schema())
    if run.dry_run:
        return _count(file, output, report)
    if output is None:
        fix = "name one, or look at the plan with --dry-run"
        raise InputError("none", expected="a folder for the study", fix=fix, option="output")
    with report.bars() as progress, going_on(f"run the same command again; finished work is in {output}"):
        outcome = run_study(file, output, launcher=run.launcher, keep=run.keep, progress=progress)
    report.result(outcome)
    report.next_step("report", output)
    if outcome.failed:
        sys.exit(1)
    return None


def _count(file: str, output: Path | None, report: Reporting) -> None:
    from shortstack.study.step_counts import step_counts

    with report.bars():
        counts = step_counts(file, output)
    needed = Requirements(disk_bytes=counts.disk_bytes or 0)
    if report.json:
        return console.show_json({**asdict(counts), "lacking": lacking(needed, output)})
    console.show_result(counts)
    for shortage in lacking(needed, output):
        console.show(f"It does not fit here with --keep all: {shortage}.")
    report.say(
        "the same command without --dry-run" if output else "the same command with -o runs in place of --dry-run"
    )
    return None
