"""The report of a study: what its store holds, as tables, figures and one page; nothing is measured again.

>>> write_report("runs", "report.html")  # doctest: +SKIP
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

from shortstack.machine.files import atomic_write, check_new
from shortstack.machine.tables import Table, markdown_text
from shortstack.machine.typed import typed
from shortstack.report.findings import Findings
from shortstack.report.page import FIRST_LINE, Opening, Page, opening, render, scope
from shortstack.report.tables import all_tables
from shortstack.runs import Runs
from shortstack.runs.records import StepRecord, TrialRecord, last_line, read


@dataclass(frozen=True)
class Report:
    """A study's tables, to be written in any form."""

    findings: Findings
    opening: Opening
    tables: Sequence[Table]

    @classmethod
    def of(cls, runs: str | Path | Runs) -> Report:
        """Make the tables of a study's folder, or of what was read from one.

        Raises:
            InputError: there is no store in the folder.
            DataError: it is no store of a study.
        """
        findings = Findings.of(runs if isinstance(runs, Runs) else read(runs))
        first = opening(findings)
        return cls(findings, first, [*([first.table] if first.table else []), *all_tables(findings)])

    def html(self) -> str:
        """Render one page that needs no network and no other file."""
        return render(Page(self.findings, self.opening, self.tables), version=version("shortstack"))

    def markdown(self) -> str:
        runs = self.findings.runs
        parts = [f"# {markdown_text(runs.title)}", *map(markdown_text, (self.opening.lead, scope(self.findings)))]
        for table in self.tables:
            legend = table.legend("**bold**", "*italic*")
            parts += [f"## {table.title}", markdown_text(table.caption), table.markdown(), legend]
        if runs.failures:
            parts += ["## What failed", "\n".join(markdown_text(_failure(*failure)) for failure in runs.failures)]
        return "\n\n".join(filter(None, parts)) + "\n"

    def csv(self) -> dict[str, str]:
        """Write a CSV file for each table, by name."""
        return {f"{table.key}.csv": table.csv() for table in self.tables}


def _failure(trial: TrialRecord, steps: Sequence[StepRecord]) -> str:
    return f"- trial {trial.number}{''.join(f', in {step.kind}: {last_line(step.error)}' for step in steps)}"


@typed
def write_report(runs: str | Path, output: str | Path) -> Path:
    """Write the page of a study; only a page that a report wrote before is replaced.

    Raises:
        InputError: there is no store in the folder.
        DataError: it is no store of a study.
        OutputError: the output is something else, or cannot be written.
    """
    output = Path(output)
    check_page(output)
    write_page(Report.of(runs), output)
    return output


def check_page(output: Path) -> None:
    """Refuse an output that cannot be written, or that is there and no report."""
    if not (output.is_file() and output.read_bytes().startswith(FIRST_LINE.encode())):
        check_new(output)


def write_page(report: Report, output: Path) -> None:
    """Write the page, whole or not at all; check_page says whether it may be."""
    with atomic_write(output) as partial:
        partial.write_text(report.html(), encoding="utf-8")


def write_csv(report: Report, folder: Path) -> None:
    """Write a CSV file for each table into a new folder."""
    check_new(folder)
    folder.mkdir()
    for name, text in report.csv().items():
        with atomic_write(folder / name) as partial:
            partial.write_text(text, encoding="utf-8")
