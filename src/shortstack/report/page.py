"""The page: one HTML file that needs nothing else, from the rows, a template, a style sheet and a small script."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from importlib.resources import files
from itertools import count
from typing import Any

from markupsafe import Markup

from shortstack.charts.drawing import page_style, templates
from shortstack.machine.formats import brief, counted, listed, shown
from shortstack.machine.tables import Table
from shortstack.report.figure import Figure
from shortstack.report.figures import figures
from shortstack.report.findings import Findings
from shortstack.report.labels import shortened, words
from shortstack.report.significance import SAME
from shortstack.report.summary import key_figures, lead, opening
from shortstack.runs.records import StepRecord

FIRST_LINE = "<!doctype html><!-- shortstack report -->"
DEPTH = "How much can go"
WITHOUT_TABLE = {
    "kept": "What is kept",
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


ROWS, BLOCKS = 9, 3  # of a block, and blocks of a table, that page.css shows before the others are asked for
MANY = 100  # rows of all tables: from there on only findings and charts are open


class Page:
    """Data of the template beside the records of the runs."""

    def __init__(self, findings: Findings, tables: Sequence[Table]) -> None:
        self.findings, self.tables, self.runs, self.levels = findings, tables, findings.runs, findings.levels
        self.ids = {key: f"s{number}" for number, key in enumerate(self.runs.steps)}
        self.tokens = {
            (name, level): f"{place}.{number}"
            for place, (name, levels) in enumerate(findings.levels.items())
            for number, level in enumerate(levels)
        }

    @cached_property
    def compact(self) -> bool:
        """Whether tables are folded, since there are many rows to look at."""
        return sum(len(table.rows) for table in self.tables) > MANY

    def is_long(self, table: Table) -> bool:
        """Whether a part of its rows is folded: more blocks than are shown, or more rows in one of those."""
        repeated, places = self.repeated(table), count()
        rows = [bool(block.title) + sum(next(places) not in repeated for _ in block.rows) for block in table.blocks]
        return len(table.blocks) > BLOCKS or max(rows, default=0) > ROWS

    @staticmethod
    def repeated(table: Table) -> set[int]:
        """Rows of unpruned models, by their places in the table, that say again what one before them says."""
        seen: set[tuple[str, ...]] = set()
        found: set[int] = set()
        for place, row in enumerate(table.rows):
            said = tuple(cell.text for cell in row.cells)
            if row.base and said in seen:
                found.add(place)
            seen |= {said} if row.base else set()
        return found

    def facets(self, factors: Mapping[str, str]) -> str:
        """A row's levels as the words that the filter looks for."""
        return " ".join(token for pair in factors.items() if (token := self.tokens.get(pair)))

    @cached_property
    def sections(self) -> list[Section]:
        """The tables with their figures; figures whose table is not there stand in a section of their own."""
        drawn: dict[str, list[Figure]] = {}
        for figure in figures(self.findings, self.facets):
            drawn.setdefault(figure.section, []).append(figure)
        sections = [Section("kept", WITHOUT_TABLE["kept"], drawn.pop("kept", []), None)]
        sections += [Section("depth", DEPTH, drawn.pop("depth", []), None)]
        sections += [Section(each.key, each.title, drawn.pop(each.key, []), each) for each in self.tables]
        sections += [Section(key, WITHOUT_TABLE[key], rest, None) for key, rest in drawn.items()]
        return [section for section in sections if section.figures or section.table]

    @cached_property
    def settings(self) -> dict[int, Mapping[str, Any]]:
        """The settings of each trial by its number, with short paths; its steps' commands have the full ones."""
        trials = self.runs.trials
        short = shortened([trial.settings for trial in trials])
        return {trial.number: settings for trial, settings in zip(trials, short, strict=True)}

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

    def links(self, keys: Iterable[str]) -> str:
        """The places of steps on the page."""
        return " ".join(self.ids[key] for key in keys if key in self.ids)

    def versions(self, step: StepRecord) -> str:
        """The number of a step's set of versions, and what is in it."""
        return f"{self.environments.index(_versions(step)) + 1}: {_versions(step)}" if step.versions else ""


def _versions(step: StepRecord) -> str:
    return ", ".join(f"{name} {version}" for name, version in step.versions.items())


def _time(seconds: float | None) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%d %H:%M UTC") if seconds else ""


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) if value else ""


def render(findings: Findings, tables: Sequence[Table], *, version: str) -> str:
    """The whole page. Every name in it is escaped, and nothing but its own script may run in it."""
    folder = files("shortstack.report")
    script, style = ((folder / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = templates("shortstack.report")
    environment.filters |= {
        "brief": brief,
        "counted": counted,
        "json": _json,
        "shown": shown,
        "time": _time,
        "words": words,
    }
    return environment.get_template("page.html.j2").render(
        page=Page(findings, tables),
        opening=opening(findings),
        lead=lead(findings),
        key_figures=key_figures(findings),
        version=version,
        first_line=Markup(FIRST_LINE),  # noqa: S704  our own
        script=Markup(script),  # noqa: S704  our own
        style=page_style() + Markup(style),  # noqa: S704  our own
        digest=digest,
    )
