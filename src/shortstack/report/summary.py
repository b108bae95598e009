"""How a report opens: two sentences, a picture and a table that say whether to keep it, or which setting to take."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from shortstack.machine.formats import brief, counted, listed, shown
from shortstack.machine.tables import Table
from shortstack.report.contest import Contest, best_table, differences
from shortstack.report.figures import Figure
from shortstack.report.findings import Findings
from shortstack.report.kept import Kept


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
    kinds = [counted(len(some), kind) for kind in ("task", "perplexity", "probe") if (some := findings.measured(kind))]
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
