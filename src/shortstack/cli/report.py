"""report: a study's results as a page, tables and files."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from shortstack.cli import console
from shortstack.cli.options import NEW, SAID, Reporting, flat
from shortstack.errors import InputError
from shortstack.machine.formats import counted

if TYPE_CHECKING:
    from shortstack.report import Report

PAGE = "report.html"


def report(
    runs: Annotated[Path, Parameter(help="Folder of a study, finished or not.")],
    /,
    *,
    output: Annotated[
        Path | None, Parameter(alias="-o", help=f"HTML page to write; only replaces a report. Default: RUNS/{PAGE}.")
    ] = None,
    markdown: Annotated[bool, Parameter(help="Print the tables as Markdown on stdout.")] = False,
    csv: Annotated[Path | None, NEW, Parameter(help="New directory for the tables as CSV files.")] = None,
    said: Annotated[Reporting, flat(SAID)] = Reporting(),
) -> None:
    """Show what a study found, as one page or as tables.

    $ shortstack report runs -o page.html
    """
    from shortstack.report import Report
    from shortstack.report.reporter import check_page, write_csv, write_page

    if markdown and said.json:
        expected, fix = "one of them: each is the whole of stdout", "run the command once for each"
        raise InputError("both", expected=expected, fix=fix, where="--markdown, --json")
    page = output or (None if markdown or csv else runs / PAGE)
    study = Report.of(runs)
    if page:
        check_page(page)
    if csv:
        write_csv(study, csv)
    if page:
        write_page(study, page)
    if said.json:
        return console.show_json(_summary(study, page, csv))
    if markdown:
        sys.stdout.write(study.markdown())
        return None
    console.show(study.opening.lead)
    for table in study.tables:
        console.show(f"{table.title}: {counted(len(table.rows), 'row')}")
    said.say(f"open {page} in a browser" if page else f"look at {csv}")
    return None


def _summary(study: Report, page: Path | None, csv: Path | None) -> dict[str, Any]:
    states = Counter(trial.state for trial in study.findings.runs.trials)
    return {
        "output": None if page is None else str(page),
        "csv": None if csv is None else str(csv),
        "trials": {state: states[state] for state in ("done", "running", "failed", "waiting")},
        "lead": study.opening.lead,
        "tables": [{"key": table.key, "title": table.title} for table in study.tables],
    }
