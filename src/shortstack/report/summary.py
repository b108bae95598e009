"""How a report opens: what was studied, the key figures, and how much can go."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

from shortstack.report.findings import Findings
from shortstack.report.format import counted, listed, shown
from shortstack.report.labels import PLAIN, brief
from shortstack.report.results import Result
from shortstack.report.sentences import headline, score_text
from shortstack.report.significance import difference


def opening(findings: Findings) -> str:
    """What was studied and what was measured."""
    if not findings.factors:
        return "The store holds no trial yet."
    levels = {name: _levels(findings, name) for name in findings.factors[0]}

    def part(clause: str, factor: str, noun: str, *, most: int = 2) -> list[str]:
        return [clause.format(_names(levels[factor], noun, most=most))] if levels[factor] else []

    cut = [
        f"{_amounts(levels['drop'])} of {_names(levels['model'], 'model', most=3)} were removed",
        *part("chosen by {}", "metric", "metric"),
        *part("calibrated on {}", "calibration", "text selection"),
    ]
    ways = [
        *part("at once or by {}", "strategy", "schedule", most=4),
        *(["with and without repair"] if "repair" in findings.levels else part("with repair", "repair", "")),
        *part("healed by {}", "heal", "variant"),
        *part("on {}", "data", "data selection"),
    ]
    seeds = len({trial.settings.get("seed") for trial in findings.runs.trials})
    ways += [f"with {seeds} seeds"] if seeds > 1 else []
    kinds = ("task", "perplexity", "probe")
    measured = [counted(len(findings.measured(kind)), kind) for kind in kinds if findings.measured(kind)]
    clauses = [", ".join(cut), ", ".join(ways), f"measured on {listed(measured)}" if measured else ""]
    text = "; ".join(clause for clause in clauses if clause)
    return f"{text[0].upper()}{text[1:]}."


def usual_settings(findings: Findings) -> str:
    """What labels leave out."""
    verbs = {"calibration": "calibrated on", "data": "healed on"}
    varied = [f"{verbs[name]} {brief(level)}" for name, level in findings.usual.items() if name in findings.levels]
    return f"Where nothing else is said: {listed(varied)}." if varied else ""


def _names(levels: Sequence[str], noun: str, *, most: int) -> str:
    """The names of a few, the number of many."""
    return listed([brief(name) for name in levels]) if len(levels) <= most else counted(len(levels), noun)


def _levels(findings: Findings, name: str) -> list[str]:
    """The levels of a factor that are something, in order."""
    levels = dict.fromkeys(each[name] for each in findings.factors)
    return [level for level in levels if level not in ("none", PLAIN.get(name))]


def _amounts(levels: Sequence[str]) -> str:
    """How many layers were removed, from the least to the most.

    >>> _amounts(["50%", "25%"]), _amounts(["8", "4"]), _amounts([f"{n}%" for n in range(5, 80, 5)])
    ('25% and 50% of the layers', '4 and 8 layers', '5% to 75% of the layers')
    >>> _amounts(["4", "8", "5%", "50%", "75%"])
    '4 layers to 75% of the layers'
    """
    if all(level.rstrip("%").replace(".", "", 1).isdigit() for level in levels):
        levels = sorted(levels, key=lambda level: (level.endswith("%"), float(level.rstrip("%"))))
    counts = all(level.isdigit() for level in levels)
    if len(levels) > 4:
        amounts = f"{levels[0] if counts else _amount(levels[0])} to {levels[-1]}"
    else:
        amounts = listed([*levels]) if levels else "some"
    return f"{amounts} layers" if counts else f"{amounts} of the layers"


def _amount(level: str) -> str:
    """
    >>> _amount("25%"), _amount("1")
    ('25%', '1 layer')
    """
    return counted(int(level), "layer") if level.isdigit() else level


def key_figures(findings: Findings) -> list[tuple[str, str, str]]:
    """(what, number, what to make of it): the trials, the best at each amount removed, the time."""
    states = Counter(trial.state for trial in findings.runs.trials)
    rest = [f"{count} {state}" for state, count in states.items() if state != "done"]
    figures = [("trials done", f"{states['done']:,}", listed(rest) if rest else "none failed")]
    figures += [_best_figure(findings, amount, best) for amount, best in _spread(best_at_each(findings), 4)]
    done = [step for step in findings.runs.steps.values() if step.state == "done"]
    hosts = {step.host for step in done if step.host}
    on = f"{counted(len(done), 'step')} on {counted(max(1, len(hosts)), 'machine')}"
    return [*figures, ("of computing", shown(float(sum(step.seconds or 0 for step in done)), "seconds"), on)]


def best_at_each(findings: Findings) -> list[tuple[str, Result]]:
    """The best result of each amount removed, least removed first; of several models the one that keeps most."""
    best: dict[str, tuple[float, Result]] = {}
    for each in findings.results:
        amount, kept = each.factors["drop"], _kept_share(findings, each)
        if not math.isnan(kept) and (amount not in best or kept > best[amount][0]):
            best[amount] = (kept, each)
    return sorted(((amount, each) for amount, (_, each) in best.items()), key=lambda pair: pair[1].removed or 0)


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many items, the first and the last among them.

    >>> _spread("abcdefg", 3)
    ['a', 'd', 'g']
    """
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def _kept_share(findings: Findings, result: Result) -> float:
    """How good a result is beside its unpruned model; NaN where it was not measured."""
    ours, base = findings.score(result), findings.base(result)
    if ours is None or math.isnan(ours.better):
        return math.nan
    if base is None or base.value == 0 or not math.isfinite(base.value):
        return ours.better
    return ours.value / base.value if ours.higher else base.value / ours.value


def _best_figure(findings: Findings, amount: str, best: Result) -> tuple[str, str, str]:
    base = findings.base(best)
    notes = [f"unpruned {score_text(base)}" if base else "", findings.label(best, {"drop"})]
    what = f"best {headline(findings)}, {amount} removed"
    return what, score_text(findings.score(best)), "; ".join(note for note in notes if note)


def depth_finding(findings: Findings) -> str:
    """The best setting of each amount removed, and up to where it is not worse than the unpruned model."""
    words, near, worse = [], [], False
    for amount, each in _spread(best_at_each(findings), 6):
        ours, base = findings.score(each), findings.base(each)
        if ours and base:
            words.append(f"{score_text(ours)} with {_amount(amount)} removed")
            worse = worse or difference(ours, base).worse
            near += [] if worse else [_amount(amount)]
    if len(words) < 2:
        return ""
    within = f" Up to {near[-1]} it is not worse than the unpruned model, beyond chance." if near else ""
    return f"The {headline(findings)} of the best setting is {listed(words)}.{within}"
