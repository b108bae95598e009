"""How a report opens: what was studied, the key figures, and how much can go."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import takewhile

from shortstack.report.findings import Findings
from shortstack.report.format import counted, listed, shown
from shortstack.report.labels import PLAIN, brief
from shortstack.report.sentences import about_collapse, headline
from shortstack.report.significance import difference


def opening(findings: Findings) -> str:
    """What was studied and what was measured."""
    if not findings.factors:
        return "The store holds no trial yet."
    levels = {name: _levels(findings, name) for name in findings.factors[0]}

    def part(clause: str, factor: str, noun: str, *, most: int = 2) -> list[str]:
        return [clause.format(_names(levels[factor], noun, most=most))] if levels[factor] else []

    removed = [each.removed for each in findings.results if each.removed]
    cut = [
        f"{_amounts(levels['drop'], removed)} of {_names(levels['model'], 'model', most=3)} were removed",
        *part("chosen by {}", "metric", "metric"),
        *part("calibrated on {}", "calibration", "text selection"),
    ]
    ways = [
        *part("at once or by {}", "strategy", "schedule", most=4),
        *(["with and without repair"] if "repair" in findings.levels else part("with repair", "repair", "")),
        *part("healed by {}", "heal", "variant"),
        *part("on {}", "data", "data selection"),
    ]
    seeds = max((each.seeds for each in findings.results), default=1)
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


def _amounts(levels: Sequence[str], removed: Sequence[int] = ()) -> str:
    """How much was removed, from the least to the most; where counts stand beside shares, in layers, if those are known.

    >>> _amounts(["50%", "25%"]), _amounts(["8", "4"]), _amounts([f"{n}%" for n in range(5, 80, 5)])
    ('25% and 50% of the layers', '4 and 8 layers', '5% to 75% of the layers')
    >>> _amounts(["4", "5%", "75%"], [4, 2, 23]), _amounts(["4", "5%"])
    ('2 to 23 layers', '4 layers and 5% of the layers')
    """
    if all(level.rstrip("%").replace(".", "", 1).isdigit() for level in levels):
        levels = sorted(levels, key=lambda level: (level.endswith("%"), float(level.rstrip("%"))))
    counts = all(level.isdigit() for level in levels)
    if removed and not counts and any(level.isdigit() for level in levels):
        return f"{min(removed)} to {max(removed)} layers"
    if len(levels) > 4:
        amounts = f"{levels[0] if counts else _amount(levels[0])} to {levels[-1]}"
    else:
        amounts = listed([*levels] if counts else [_amount(level) for level in levels]) if levels else "some"
    return f"{amounts} layers" if counts else f"{amounts} of the layers"


def _amount(level: str) -> str:
    """
    >>> _amount("25%"), _amount("1")
    ('25%', '1 layer')
    """
    return counted(int(level), "layer") if level.isdigit() else level


def lead(findings: Findings) -> str:
    """What helps to decide, in two sentences: how much can go, and how many settings have collapsed.

    Of one setting its own verdict says it.
    """
    if not findings.bases or len(findings.results) < 2:
        return ""
    return " ".join(filter(None, (how_much(findings), *about_collapse(findings))))


def how_much(findings: Findings) -> str:
    """Up to which amount some setting is not shown to be worse than the unpruned model, of a study of one model.

    Each is tested on its own: a correction for many would call more of them alike. One whose loss is infinite is worse. What
    stands behind an amount at which every setting is worse is chance: of many tests some find nothing.
    """
    by_amount: dict[int, list[bool]] = {}
    for each, score in findings.ranked(findings.results):
        base = findings.base(each)
        change = difference(score, base) if base else None
        if change and each.removed and (change.p is not None or change.value == -math.inf):
            by_amount.setdefault(each.removed, []).append(change.worse or change.value == -math.inf)
    if not by_amount or len(findings.bases) > 1:
        return ""
    amounts = sorted(by_amount)
    held = [*takewhile(lambda amount: not all(by_amount[amount]), amounts)]
    if not held:
        return _all_worse(findings, by_amount)
    most, beyond = held[-1], amounts[len(held) : len(held) + 1]
    same, of = by_amount[most].count(False), len(by_amount[most])
    some = f"{same} of {of} settings" if of > 1 else "the setting"
    rest = f"; with {beyond[0]} every one is" if beyond else ""
    are = "are" if of > 1 and same > 1 else "is"
    alike = f"{are} not shown to be worse than the unpruned model in the {headline(findings)}"
    return f"With {counted(most, 'layer')} gone {some} {alike}{rest}."


def _all_worse(findings: Findings, by_amount: Mapping[int, Sequence[bool]]) -> str:
    """Where the smallest cut costs already; by_amount: whether each setting is worse, by the layers removed."""
    least = min(by_amount)
    larger = [worse for amount, some in by_amount.items() if amount > least for worse in some]
    stray = larger.count(False)
    if not stray:
        return f"Every setting is worse than its unpruned model in the {headline(findings)}, beyond chance."
    settings = counted(len(larger), "setting")
    worse = f"every setting is worse than the unpruned model in the {headline(findings)}, beyond chance"
    some = f"{stray} of {settings} {'is' if stray == 1 else 'are'} not shown to be"
    first = f"With {counted(least, 'layer')} gone already {worse}"
    return f"{first}; of larger cuts {some}, which so many tests leave to chance."


def key_figures(findings: Findings) -> list[tuple[str, str, str]]:
    """(what, number, what to make of it): the trials, and the time."""
    states = Counter(trial.state for trial in findings.runs.trials)
    rest = [f"{count} {state}" for state, count in states.items() if state != "done"]
    figures = [("trials done", f"{states['done']:,}", listed(rest) if rest else "none failed")]
    done = [step for step in findings.runs.steps.values() if step.state == "done"]
    hosts = {step.host for step in done if step.host}
    on = f"{counted(len(done), 'step')} on {counted(max(1, len(hosts)), 'machine')}"
    return [*figures, ("of computing", shown(float(sum(step.seconds or 0 for step in done)), "seconds"), on)]
