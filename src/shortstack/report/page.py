"""The page: one HTML file that needs nothing else, from the rows, a template, a style sheet and a small script."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.resources import files

from markupsafe import Markup

from shortstack.charts.drawing import page_style, templates
from shortstack.machine.formats import brief, counted, shown
from shortstack.machine.tables import Table
from shortstack.report.figures import Figure, figures
from shortstack.report.findings import Findings
from shortstack.report.summary import Opening, done, scope

FIRST_LINE = "<!doctype html><!-- shortstack report -->"
TITLES = {"kept": "Which layers are gone", "depth": "How much can go"}  # of figures, which have no table


class Page:
    """Data of the template beside the records of the runs. tables: those below the first."""

    def __init__(self, findings: Findings, opening: Opening, tables: Sequence[Table]) -> None:
        self.findings, self.opening, self.runs = findings, opening, findings.runs
        self.tables = [table for table in tables if table is not opening.table]
        self.ids = {key: f"s{number}" for number, key in enumerate(self.runs.steps)}
        self.scope, self.done = scope(findings), done(findings)
        self.settings = {  # in short; the steps' commands have the full ones
            trial.number: {**said, "seed": str(trial.settings.get("seed", ""))}
            for trial, said in zip(self.runs.trials, findings.factors, strict=True)
        }

    @property
    def figures(self) -> dict[str, list[Figure]]:
        """The figures by the title of their section."""
        drawn = figures(self.findings)
        return {title: [figure for figure in drawn if figure.section == key] for key, title in TITLES.items()}

    @property
    def verdict(self) -> str:
        """The rest of the runs' conclusion."""
        return self.runs.conclusion.partition(".")[2].strip()

    def link(self, steps: Sequence[str]) -> str:
        """Return the place on the page of the first of these steps."""
        return next((self.ids[key] for key in steps if key in self.ids), "")


def _time(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC") if seconds else ""


def render(page: Page, *, version: str) -> str:
    """Render the whole page. Every name in it is escaped, and nothing but its own script may run in it."""
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
