"""The page: one HTML file that needs nothing else, from the rows, a template, a style sheet and a small script."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.resources import files

from markupsafe import Markup

from shortstack.charts.drawing import page_style, templates
from shortstack.machine.formats import brief, counted, listed, shown
from shortstack.machine.tables import Table
from shortstack.report.figures import Figure, figures
from shortstack.report.findings import Findings
from shortstack.report.significance import SAME
from shortstack.report.summary import Opening, done, scope
from shortstack.runs.records import StepRecord, TrialRecord

FIRST_LINE = "<!doctype html><!-- shortstack report -->"
TITLES = {  # of figures whose table is not there
    "kept": "Which layers are gone",
    "depth": "How much can go",
    "metrics": "Which layers to remove",
    "healing": "How to heal",
    "sizes": "What it saves",
}


@dataclass(frozen=True)
class Section:
    """A question, and the figures and the table that show what the runs say to it."""

    key: str
    title: str
    figures: Sequence[Figure]
    table: Table | None


class Page:
    """Data of the template beside the records of the runs. tables: those below the first."""

    def __init__(self, findings: Findings, opening: Opening, tables: Sequence[Table]) -> None:
        self.findings, self.opening, self.runs = findings, opening, findings.runs
        self.tables = [table for table in tables if table is not opening.table]
        self.ids = {key: f"s{number}" for number, key in enumerate(self.runs.steps)}
        self.scope, self.done = scope(findings), done(findings)

    @cached_property
    def sections(self) -> list[Section]:
        """The tables with their figures; figures whose table is not there stand in a section of their own."""
        drawn: dict[str, list[Figure]] = {}
        for figure in figures(self.findings):
            drawn.setdefault(figure.section, []).append(figure)
        tables = {table.key: table for table in self.tables}
        keys = dict.fromkeys(["kept", "depth", *tables, *drawn])
        titles = TITLES | {key: table.title for key, table in tables.items()}
        return [
            Section(key, titles[key], drawn.get(key, []), tables.get(key)) for key in keys if key in {*drawn, *tables}
        ]

    @property
    def verdict(self) -> str:
        """What else the runs' conclusion says."""
        return self.runs.conclusion.partition(".")[2].strip()

    def settings(self, trial: TrialRecord) -> Mapping[str, str]:
        """The settings of a trial, with short paths; its steps' commands have the full ones."""
        return {**self.findings.factors[self.runs.trials.index(trial)], "seed": str(trial.settings.get("seed", ""))}

    @cached_property
    def environments(self) -> list[str]:
        """Each set of versions once; steps name it by its place."""
        return list(dict.fromkeys(_versions(step) for step in self.runs.steps.values() if step.versions))

    @property
    def tests(self) -> str:
        """How differences were judged anywhere on the page."""
        judged = [cell.judgement for table in self.tables for row in table.rows for cell in row.cells]
        changes = [change for each in judged for change in (each.base, each.best) if change and change.p is not None]
        return listed(sorted({change.how for change in changes} - {SAME}))

    def link(self, steps: Sequence[str]) -> str:
        """The place on the page of the first of these steps."""
        return next((self.ids[key] for key in steps if key in self.ids), "")

    def versions(self, step: StepRecord) -> str:
        """The number of a step's set of versions, and what is in it."""
        return f"{self.environments.index(_versions(step)) + 1}: {_versions(step)}" if step.versions else ""


def _versions(step: StepRecord) -> str:
    return ", ".join(f"{name} {version}" for name, version in step.versions.items())


def _time(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC") if seconds else ""


def render(page: Page, *, version: str) -> str:
    """The whole page. Every name in it is escaped, and nothing but its own script may run in it."""
    folder = files("shortstack.report")
    script, style = ((folder / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    environment = templates("shortstack.report")
    environment.filters |= {"brief": brief, "counted": counted, "shown": shown, "time": _time}
    environment.filters["json"] = lambda value: json.dumps(value, ensure_ascii=False) if value else ""
    return environment.get_template("page.html.j2").render(
        page=page,
        version=version,
        first_line=Markup(FIRST_LINE),  # noqa: S704  our own
        script=Markup(script),  # noqa: S704  our own
        style=page_style() + Markup(style),  # noqa: S704  our own
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )
