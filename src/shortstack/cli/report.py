"""report: a study's results as a page, tables and files."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

from cyclopts import Parameter

from shortstack.cli import console
from shortstack.cli.options import NEW, SAID, OutputOptions, expand_fields
from shortstack.errors import InputError
from shortstack.machine.formats import counted

PAGE = "report.html"
HELP = f"HTML page to write; only replaces a report. Default: RUNS/{PAGE}."


def report(
    runs: Annotated[Path, Parameter(help="Folder of a study, finished or not.")],
    /,
    *,
    output: Annotated[Path | None, Parameter(alias="-o", help=HELP)] = None,
    markdown: Annotated[bool, Parameter(help="Print the tables as Markdown on stdout.")] = False,
    csv: Annotated[Path | None, NEW, Parameter(help="New directory for the tables as CSV files.")] = None,
    output_options: Annotated[OutputOptions, expand_fields(SAID)] = OutputOptions(),
) -> None:
    """Show what a study found, as one page or as tables.

    $ shortstack report runs -o page.html
    """
    from shortstack.report import Report
    from shortstack.report.reporter import check_page, write_csv, write_page

    if markdown and output_options.json:
        raise InputError("--json has no effect with --markdown; run the command once for each", option="markdown")
    page = output or (None if markdown or csv else runs / PAGE)
    study = Report.of(runs)
    if page:
        check_page(page)
    if csv:
        write_csv(study, csv)
    if page:
        write_page(study, page)
    if output_options.json:
        return console.show_json(
            {
                "output": None if page is None else str(page),
                "csv": None if csv is None else str(csv),
                "trials": {state: study.states[state] for state in ("done", "running", "failed", "waiting")},
                "scope": study.scope,
                "tables": [{"key": table.key, "title": table.title} for table in study.tables],
            }
        )
    if markdown:
        sys.stdout.write(study.markdown())
        return None
    console.show(study.scope)
    for table in study.tables:
        console.show(f"{table.title}: {counted(len(table.rows), 'row')}")
    output_options.say(f"open {page} in a browser" if page else f"look at {csv}")
    return None
