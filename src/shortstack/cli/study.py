"""study: a grid of trials, resumable."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from shortstack.cli import console
from shortstack.cli.options import SAID, OutputOptions, expand_fields, resume_hint
from shortstack.errors import InputError
from shortstack.study.workers import RunOptions


def study(
    file: Annotated[str, Parameter(help="A study's YAML file, or `schema` to print the JSON schema.")],
    /,
    *,
    output: Annotated[
        Path | None, Parameter(alias="-o", help="Folder of the study; an existing one is continued.")
    ] = None,
    run: Annotated[RunOptions, expand_fields()] = RunOptions(),
    status: Annotated[bool, Parameter(help="Show how far the study in --output is, and exit.")] = False,
    dry_run: Annotated[bool, Parameter(help="Run all checks, show trials, steps and disk, and exit.")] = False,
    report: Annotated[OutputOptions, expand_fields(SAID)] = OutputOptions(),
) -> None:
    """Run a grid of trials, each step once.

    If it is killed, the same command continues it.

    $ shortstack study trials.yaml --workers 4 -o runs
    """
    from shortstack.study import grid, plan_study, run_study, study_status

    if file == "schema":
        return console.show_json(grid.schema())
    if dry_run:
        report.result(plan_study(file, keep=run.keep))
        return report.say("the same command without --dry-run")
    if output is None:
        raise InputError("missing; name the folder of the study, or use --dry-run", option="output")
    if status:
        return report.result(study_status(output))
    with report.bars() as progress, resume_hint(f"run the same command again; finished work is in {output}"):
        outcome = run_study(file, output, workers=run.workers, ray=run.ray, keep=run.keep, progress=progress)
    report.result(outcome)
    report.next_step("report", output)
    if outcome.failed:
        sys.exit(1)
    return None
