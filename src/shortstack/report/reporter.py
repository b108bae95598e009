"""The report of a study or of a shrink as one HTML page, Markdown or CSV; nothing is measured again.

The layout is always the same: figures, tables, what both models write, how the numbers were made.

>>> write_report("runs", "report.html")  # doctest: +SKIP
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path

from markupsafe import Markup

from shortstack.charts.drawing import page_style, templates
from shortstack.machine.files import atomic_write, check_new
from shortstack.machine.formats import brief, counted, listed, shown
from shortstack.machine.tables import Table, markdown_text
from shortstack.report.figures import figures
from shortstack.report.findings import Findings
from shortstack.report.tables import all_tables
from shortstack.runs import Runs
from shortstack.runs.records import StepRecord, TrialRecord, last_line, read

FIRST_LINE = "<!doctype html><!-- shortstack report -->"


@dataclass(frozen=True)
class Report:
    """Tables of a study, to be written in any form."""

    findings: Findings
    tables: Sequence[Table]

    @classmethod
    def of(cls, runs: str | Path | Runs) -> Report:
        """Make the tables of a study's folder, or of what was read from one.

        Raises:
            DataError: the folder has no store of a study, or the store is damaged.
        """
        findings = Findings.of(runs if isinstance(runs, Runs) else read(runs))
        return cls(findings, all_tables(findings))

    @property
    def scope(self) -> str:
        """What was studied and measured, and what labels leave out."""
        findings = self.findings
        if not findings.factors:
            return "The store holds no trial yet."
        models = dict.fromkeys(trial["model"] for trial in findings.factors)
        varied = [f"{name} ({len(levels)})" for name, levels in findings.levels.items()]
        differ = f" that differ in {listed(varied)}" if varied else ""
        columns = {kind: findings.measured(kind) for kind in ("task", "perplexity", "probe")}
        kinds = [counted(len(names), kind) for kind, names in columns.items() if names]
        measured = f", measured on {listed(kinds)}" if kinds else ""
        settings, names = counted(len(findings.results), "setting"), listed([brief(model) for model in models])
        seeds = max((result.seeds for result in findings.results), default=1)
        drawn = f", with {seeds} seeds" if seeds > 1 else ""
        verbs = {"calibration": "calibrated on", "data": "healed on"}
        usual = [f"{verbs[name]} {brief(level)}" for name, level in findings.usual.items() if name in findings.levels]
        rest = f" If nothing else is said: {listed(usual)}." if usual else ""
        return f"{settings} of {names}{differ}{drawn}{measured}.{rest}"

    @property
    def done(self) -> str:
        """The trials by state, and the time that their steps took."""
        trials = listed([f"{count} {state}" for state, count in self.states.items()]) or "none"
        seconds = float(sum(step.seconds or 0 for step in self.findings.runs.steps.values()))
        return f"Trials: {trials}." + (f" Their steps took {shown(seconds, 'seconds')}." if seconds else "")

    @property
    def states(self) -> Counter[str]:
        return Counter(trial.state for trial in self.findings.runs.trials)

    def html(self) -> str:
        """Render one page that needs no network and no other file.

        Every name in it is escaped, and nothing but its own script may run in it.
        """
        folder, runs = files("shortstack.report"), self.findings.runs
        script, style = ((folder / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
        environment = templates("shortstack.report")
        environment.filters |= {"brief": brief, "counted": counted, "shown": shown, "time": _time}
        environment.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False) if value else ""
        return environment.get_template("page.html.j2").render(
            runs=runs,
            report=self,
            figures=figures(self.findings),
            ids={key: f"s{number}" for number, key in enumerate(runs.steps)},  # of steps on the page
            settings={  # in short; the steps have the full ones
                trial.number: {**said, "seed": str(trial.settings.get("seed", ""))}
                for trial, said in zip(runs.trials, self.findings.factors, strict=True)
            },
            version=version("shortstack"),
            first_line=Markup(FIRST_LINE),  # noqa: S704  our own
            script=Markup(script),  # noqa: S704  our own
            style=page_style() + Markup(style),  # noqa: S704  our own
            digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        )

    def markdown(self) -> str:
        runs = self.findings.runs
        parts = [f"# {markdown_text(runs.title)}", markdown_text(self.scope)]
        for table in self.tables:
            legend = table.legend("**bold**", "*italic*")
            parts += [f"## {table.title}", markdown_text(table.caption), table.markdown(), legend]
        if runs.failures:
            parts += ["## What failed", "\n".join(markdown_text(_failure(*failure)) for failure in runs.failures)]
        return "\n\n".join(filter(None, parts)) + "\n"

    def csv(self) -> dict[str, str]:
        """Return the text of a CSV file for each table, by the file's name."""
        return {f"{table.key}.csv": table.csv() for table in self.tables}


def _time(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC") if seconds else ""


def _failure(trial: TrialRecord, steps: Sequence[StepRecord]) -> str:
    return f"- trial {trial.number}{''.join(f', in {step.kind}: {last_line(step.error)}' for step in steps)}"


def write_report(runs: str | Path, output: str | Path) -> Path:
    """Write the page of a study; only a page that a report wrote before is replaced.

    Raises:
        DataError: the folder has no store of a study, or the store is damaged.
        OutputError: the output is something else, or cannot be written.
    """
    output = Path(output)
    check_page(output)
    write_page(Report.of(runs), output)
    return output


def check_page(output: Path) -> None:
    """Refuse an output that cannot be written, or that exists and is no report."""
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
