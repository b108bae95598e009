"""The page: its first screen, and one HTML file of rows, a template, a style sheet and a small script."""

from __future__ import annotations

import base64
import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files

from markupsafe import Markup

from shortstack.charts.drawing import page_style, templates
from shortstack.machine.formats import brief, counted, listed, shown
from shortstack.machine.tables import Table
from shortstack.report.contest import Contest, best_table, differences
from shortstack.report.figures import Figure, figures
from shortstack.report.findings import Findings
from shortstack.report.kept import Kept

FIRST_LINE = "<!doctype html><!-- shortstack report -->"
TITLES = {"kept": "Which layers are gone", "depth": "How much can go"}  # of figures, which have no table


@dataclass(frozen=True)
class Opening:
    """The first screen; empty where nothing is there to compare."""

    lead: str = ""
    figure: Figure | None = None
    table: Table | None = None


def opening(findings: Findings) -> Opening:
    """Open with what is kept of one setting, or with which of several is best."""
    subject = findings.subject
    if subject and subject.model in findings.bases:
        kept = Kept.of(findings, subject)
        return Opening(kept.lead, kept.figure(), kept.table())
    contests = [contest for model in findings.bases if (contest := Contest.of(findings, model))] if not subject else []
    if not contests:
        return Opening()
    return Opening(" ".join(contest.lead for contest in contests), differences(contests), best_table(contests))


def scope(findings: Findings) -> str:
    """Say what was studied and measured, and what labels leave out."""
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
    rest = f" Where nothing else is said: {listed(usual)}." if usual else ""
    return f"{settings} of {names}{differ}{drawn}{measured}.{rest}"


def done(findings: Findings) -> str:
    """Count the trials by state, and say what they took."""
    states = Counter(trial.state for trial in findings.runs.trials)
    steps = [step for step in findings.runs.steps.values() if step.state == "done"]
    trials = listed([f"{count} {state}" for state, count in states.items()]) or "none"
    machines = counted(max(1, len({step.host for step in steps if step.host})), "machine")
    if not any(step.seconds for step in steps):  # a shrink's are not timed one by one
        return f"Trials: {trials}."
    seconds = shown(float(sum(step.seconds or 0 for step in steps)), "seconds")
    return f"Trials: {trials}. {counted(len(steps), 'step')} took {seconds} of computing on {machines}."


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
