"""How a report opens: which setting to take, whether it is worth keeping, and what was studied."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Sequence
from itertools import takewhile

from shortstack.machine.formats import brief, counted, listed, shown
from shortstack.report.figures import score_text
from shortstack.report.findings import Findings
from shortstack.report.judged import gap
from shortstack.report.results import AVERAGE, Measure, Result
from shortstack.report.significance import Difference, difference

Compared = tuple[Result, Measure, Difference]  # a setting, its score, and how far that is from the unpruned model's


def lead(findings: Findings) -> str:
    """Which setting is best and by how much, and whether it is worth keeping: two sentences for each model.

    They are about the largest cut at which some setting is not shown to be worse than the unpruned model, where smaller ones
    have such a setting too; else about the best of all.
    """
    if len(findings.results) < 2 or findings.runs.conclusion:
        return ""
    return " ".join(filter(None, (_of_model(findings, model) for model in findings.bases)))


def _of_model(findings: Findings, model: str) -> str:
    base = findings.score(findings.bases[model])
    ranked = [(each, score) for each, score in findings.ranked(findings.by_model.get(model, [])) if each.removed]
    if not base or not ranked:
        return ""
    compared = [(each, score, difference(score, base)) for each, score in ranked]
    amounts = sorted({each.removed or 0 for each, _ in ranked})
    worse = {amount: [_worse(change) for each, _, change in compared if each.removed == amount] for amount in amounts}
    not_worse = [*takewhile(lambda amount: not all(worse[amount]), amounts)]
    (best, score, change), *others = [each for each in compared if not not_worse or each[0].removed == not_worse[-1]]
    name, by = findings.name(best, {"model", "drop"}), _headline(findings)
    of = f" of {brief(model)}" if len(findings.bases) > 1 else ""
    first = f"With {counted(best.removed or 0, 'layer')}{of} gone, {name} is best by the {by}, {score_text(score)}"
    beside = _beside(findings, score, others, {"model", "drop"} if not_worse else {"model"})
    return f"{first}{beside}. {_kept(best, base, change, amounts, not_worse)}"


def _worse(change: Difference) -> bool:
    return change.worse or change.value == -math.inf


def _beside(findings: Findings, best: Measure, others: Sequence[Compared], without: Collection[str]) -> str:
    """How far the best is from the next, whose name leaves out factors that both share."""
    if not others:
        return ", and no other was measured"
    (second, score, _), change = others[0], difference(best, others[0][1])
    name = findings.name(second, without)
    if change.significant:
        return f": {gap(change, score.kind)}, than the next, {name}"
    known = "which is within chance of it" if change.p is not None else "with no standard error to tell them apart"
    return f"; the next is {name}, {known}"


def _kept(best: Result, base: Measure, change: Difference, amounts: Sequence[int], not_worse: Sequence[int]) -> str:
    """Whether it is worth keeping instead of the unpruned model."""
    step, unpruned = best.evaluation, f"the unpruned model's {score_text(base)}"
    if step and (step.result.get("collapse") or {}).get("collapsed"):
        return "It is not worth keeping: what it writes freely has collapsed."
    if _worse(change):
        return f"It is {gap(change, base.kind)}, than {unpruned}: keep it only where its size is worth that."
    if change.p is None:
        return f"Whether it is worse than {unpruned} is not known: there is no standard error."
    apart, beyond = gap(change, base.kind), [counted(least, "layer") for least in amounts[len(not_worse) :][:1]]
    if not not_worse:
        less = f"every setting without {beyond[0]} is worse"
        return f"Whether it is worth keeping is open: {apart}, than {unpruned}, where {less}."
    rest = f"; with {beyond[0]} gone every setting is" if beyond else ""
    return f"As far as this study can tell it is worth keeping: not shown to be worse than {unpruned} ({apart}){rest}."


def _headline(findings: Findings) -> str:
    name = findings.headline
    kind, label = name.partition(":")[0], brief(findings.names.get(name, ""))
    return "average" if name == AVERAGE else f"perplexity on {label}" if kind == "perplexity" else f"score on {label}"


def opening(findings: Findings) -> str:
    """Say what was studied and measured, and what labels leave out."""
    if not findings.factors:
        return "The store holds no trial yet."
    models = dict.fromkeys(each["model"] for each in findings.factors)
    varied = [f"{name} ({len(levels)})" for name, levels in findings.levels.items()]
    differ = f" that differ in {listed(varied)}" if varied else ""
    kinds = [counted(len(some), kind) for kind in ("task", "perplexity", "probe") if (some := findings.measured(kind))]
    measured = f", measured on {listed(kinds)}" if kinds else ""
    settings, names = counted(len(findings.results), "setting"), listed([brief(each) for each in models])
    seeds = max((each.seeds for each in findings.results), default=1)
    drawn = f", with {seeds} seeds" if seeds > 1 else ""
    verbs = {"calibration": "calibrated on", "data": "healed on"}
    usual = [f"{verbs[name]} {brief(level)}" for name, level in findings.usual.items() if name in findings.levels]
    return f"{settings} of {names}{differ}{drawn}{measured}." + (
        f" Where nothing else is said: {listed(usual)}." if usual else ""
    )


def key_figures(findings: Findings) -> list[tuple[str, str, str]]:
    """(what, number, what to make of it): the trials, and the time."""
    states = Counter(trial.state for trial in findings.runs.trials)
    rest = [f"{count} {state}" for state, count in states.items() if state != "done"]
    figures = [("trials done", f"{states['done']:,}", listed(rest) if rest else "none failed")]
    done = [step for step in findings.runs.steps.values() if step.state == "done"]
    hosts = {step.host for step in done if step.host}
    on = f"{counted(len(done), 'step')} on {counted(max(1, len(hosts)), 'machine')}"
    return [*figures, ("of computing", shown(float(sum(step.seconds or 0 for step in done)), "seconds"), on)]
