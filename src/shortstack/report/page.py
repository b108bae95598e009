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
from typing import Any

from markupsafe import Markup

from shortstack.report.figures import Figure, figures
from shortstack.report.findings import Findings
from shortstack.report.format import counted, listed, shown
from shortstack.report.labels import brief, words
from shortstack.report.summary import depth_finding, key_figures, opening, usual_settings
from shortstack.report.table import Table
from shortstack.report.templates import templates
from shortstack.runs.records import StepRecord, TrialRecord

FIRST_LINE = "<!doctype html><!-- shortstack report -->"
DEPTH = "How much can go"
WITHOUT_TABLE = {"metrics": "Which layers to remove", "healing": "How to heal", "sizes": "What it saves"}


@dataclass(frozen=True)
class Section:
    """A question, what the runs say to it, and the figures and the table that show it."""

    key: str
    title: str
    finding: str
    figures: Sequence[Figure]
    table: Table | None


@dataclass(frozen=True)
class Entry:
    """A step or trial as the page lists it: where it stands on the page, and its facts in words."""

    id: str
    title: str
    state: str
    facts: Sequence[tuple[str, str]]
    links: Sequence[tuple[str, str]] = ()
    error: str | None = None


@dataclass(frozen=True)
class Chip:
    """A level of a factor that the filter offers."""

    token: str
    name: str
    full: str


class Page:
    """What the template is given."""

    def __init__(self, findings: Findings, tables: Sequence[Table]) -> None:
        self.findings, self.tables, self.runs = findings, tables, findings.runs
        self.ids = {key: f"s{number}" for number, key in enumerate(self.runs.steps)}
        self.titles = {self.ids[key]: f"{step.kind} {key[:8]}, {step.state}" for key, step in self.runs.steps.items()}
        self.tokens = {
            (name, level): f"{place}.{number}"
            for place, (name, levels) in enumerate(findings.levels.items())
            for number, level in enumerate(levels)
        }

    def facets(self, factors: Mapping[str, str]) -> str:
        """A row's levels as the words that the filter looks for."""
        return " ".join(token for pair in factors.items() if (token := self.tokens.get(pair)))

    @property
    def chips(self) -> list[tuple[str, list[Chip]]]:
        return [
            (name, [Chip(self.tokens[name, level], brief(level, 28), level) for level in levels])
            for name, levels in self.findings.levels.items()
        ]

    @cached_property
    def sections(self) -> list[Section]:
        """The tables with their figures; figures whose table is not there stand in a section of their own."""
        drawn: dict[str, list[Figure]] = {}
        for figure in figures(self.findings, self.facets):
            drawn.setdefault(figure.section, []).append(figure)
        sections = [Section("depth", DEPTH, depth_finding(self.findings), drawn.pop("depth", []), None)]
        sections += [Section(each.key, each.title, each.finding, drawn.pop(each.key, []), each) for each in self.tables]
        sections += [Section(key, WITHOUT_TABLE[key], "", rest, None) for key, rest in drawn.items()]
        return [section for section in sections if section.figures or section.table]

    @cached_property
    def environments(self) -> list[str]:
        """Each set of versions once; steps name it by its place."""
        return list(dict.fromkeys(_versions(step) for step in self.runs.steps.values() if step.versions))

    @property
    def tests(self) -> str:
        """How differences were judged anywhere on the page."""
        return listed(sorted(set().union(*(table.tests for table in self.tables))))

    @property
    def steps(self) -> list[Entry]:
        return [self._step(step) for step in self.runs.steps.values()]

    @property
    def trials(self) -> list[Entry]:
        return [self._trial(trial) for trial in self.runs.trials]

    @property
    def failures(self) -> list[tuple[Entry, list[Entry]]]:
        """Each failed trial with its failed steps."""
        return [
            (self._trial(trial), [self._step(step) for step in trial.steps.values() if step.state == "failed"])
            for trial in self.runs.trials
            if trial.state == "failed" or any(step.state == "failed" for step in trial.steps.values())
        ]

    def links(self, keys: Iterable[str]) -> str:
        """The places of steps on the page."""
        return " ".join(self.ids[key] for key in keys if key in self.ids)

    def _step(self, step: StepRecord) -> Entry:
        started = datetime.fromtimestamp(step.started, UTC).strftime("%Y-%m-%d %H:%M UTC") if step.started else None
        environment = self.environments.index(_versions(step)) + 1 if step.versions else None
        facts = [
            ("state", step.state),
            ("key", step.key),
            ("command", step.command),
            ("settings", _json(step.arguments)),
            ("inputs", _json(step.inputs)),
            ("time", None if step.seconds is None else shown(step.seconds, "seconds")),
            ("started", started),
            ("host", step.host),
            ("peak memory", shown(float(step.peak_rss_bytes), "bytes") if step.peak_rss_bytes else None),
            ("versions", f"{environment}: {self.environments[environment - 1]}" if environment else None),
        ]
        title = f"{step.kind} {step.key[:8]}"
        return Entry(
            self.ids[step.key], title, step.state, [(name, each) for name, each in facts if each], error=step.error
        )

    def _trial(self, trial: TrialRecord) -> Entry:
        settings = [(name, words(value)) for name, value in trial.settings.items()]
        links = [(role.replace("_", " "), self.ids[step.key]) for role, step in trial.steps.items()]
        return Entry(f"t{trial.number}", f"trial {trial.number}", trial.state, settings, links)


def _versions(step: StepRecord) -> str:
    return ", ".join(f"{name} {version}" for name, version in step.versions.items())


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, ensure_ascii=False) if value else ""


def render(findings: Findings, tables: Sequence[Table], *, version: str) -> str:
    """The whole page. Every name in it is escaped, and nothing but its own script may run in it."""
    folder = files("shortstack.report")
    script, style = ((folder / name).read_text(encoding="utf-8") for name in ("page.js", "page.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    environment = templates()
    environment.filters |= {"counted": counted, "brief": brief}
    return environment.get_template("page.html.j2").render(
        page=Page(findings, tables),
        opening=opening(findings),
        usual=usual_settings(findings),
        key_figures=key_figures(findings),
        version=version,
        first_line=Markup(FIRST_LINE),  # noqa: S704  our own
        script=Markup(script),  # noqa: S704  our own
        style=Markup(style),  # noqa: S704  our own
        digest=digest,
    )
