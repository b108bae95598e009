"""How a report opens: what was studied, the key figures, and how much can go."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from shortstack.report.findings import Findings
from shortstack.report.format import counted, duration, listed
from shortstack.report.labels import NONE, brief, factors
from shortstack.report.results import Result
from shortstack.report.sentences import column, said, sure
from shortstack.report.significance import difference


def opening(found: Findings) -> str:
    """What was studied and what was measured."""
    known = factors([trial.settings for trial in found.runs.trials])
    if not known:
        return "The store holds no trial yet."
    levels = {name: _levels(known, name) for name in known[0]}
    cut = [
        f"{_amounts(levels['drop'])} of {_named(levels['model'], 'model', most=3)} were removed",
        *_part("chosen by {}", levels["metric"], "metric"),
        *_part("calibrated on {}", levels["calibration"], "text selection"),
    ]
    ways = [
        *_part("at once or by {}", levels["strategy"], "schedule", most=4),
        *(["with and without repair"] if "repair" in found.levels else _part("with repair", levels["repair"], "")),
        *_part("healed by {}", levels["heal"], "variant"),
        *_part("on {}", levels["data"], "data selection"),
    ]
    seeds = len({trial.settings.get("seed") for trial in found.runs.trials})
    ways += [f"with {seeds} seeds"] if seeds > 1 else []
    nouns = (("task", "task"), ("perplexity", "perplexity"), ("probe", "probe"))
    measured = [counted(len(found.measured(kind)), noun) for kind, noun in nouns if found.measured(kind)]
    clauses = [", ".join(cut), ", ".join(ways), f"measured on {listed(measured)}" if measured else ""]
    told = "; ".join(clause for clause in clauses if clause)
    return f"{told[0].upper()}{told[1:]}."


def usual(found: Findings) -> str:
    """What labels leave out."""
    verbs = {"calibration": "calibrated on", "data": "healed on"}
    varied = [f"{verbs[name]} {brief(level)}" for name, level in found.usual.items() if name in found.levels]
    return f"Where nothing else is said: {listed(varied)}." if varied else ""


def _part(clause: str, levels: Sequence[str], noun: str, *, most: int = 2) -> list[str]:
    return [clause.format(_named(levels, noun, most=most))] if levels else []


def _named(levels: Sequence[str], noun: str, *, most: int = 2) -> str:
    """The names of a few, the number of many."""
    return listed([brief(name) for name in levels]) if len(levels) <= most else counted(len(levels), noun)


def _levels(known: Sequence[Mapping[str, str]], name: str) -> list[str]:
    """The levels of a factor that are something, in order."""
    return list(dict.fromkeys(each[name] for each in known if each[name] not in ("none", NONE.get(name))))


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
        said = f"{levels[0] if counts else _amount(levels[0])} to {levels[-1]}"
    else:
        said = listed([*levels]) if levels else "some"
    return f"{said} layers" if counts else f"{said} of the layers"


def _amount(level: str) -> str:
    """
    >>> _amount("25%"), _amount("1")
    ('25%', '1 layer')
    """
    return counted(int(level), "layer") if level.isdigit() else level


def key_figures(found: Findings) -> list[tuple[str, str, str]]:
    """(what, number, what to make of it): the trials, the best at each amount removed, the time."""
    states = Counter(trial.state for trial in found.runs.trials)
    rest = [f"{count} {state}" for state, count in states.items() if state != "done"]
    figures = [("trials done", f"{states['done']:,}", listed(rest) if rest else "none failed")]
    figures += [_best_figure(found, amount, best) for amount, best in _spread(best_at_each(found), 4)]
    done = [step for step in found.runs.steps.values() if step.state == "done"]
    hosts = {step.host for step in done if step.host}
    on = f"{counted(len(done), 'step')} on {counted(max(1, len(hosts)), 'machine')}"
    return [*figures, ("of computing", duration(sum(step.seconds or 0 for step in done)), on)]


def best_at_each(found: Findings) -> list[tuple[str, Result]]:
    """The best result of each amount removed, least removed first; of several models the one that keeps most."""
    best: dict[str, Result] = {}
    for each in found.results:
        amount = each.factors["drop"]
        if not math.isnan(_kept_share(found, each)) and (
            amount not in best or _kept_share(found, each) > _kept_share(found, best[amount])
        ):
            best[amount] = each
    return sorted(best.items(), key=lambda pair: pair[1].removed or 0)


def _spread(items: Sequence[Any], most: int) -> list[Any]:
    """At most so many items, the first and the last among them.

    >>> _spread("abcdefg", 3)
    ['a', 'd', 'g']
    """
    if len(items) <= most:
        return list(items)
    return [items[round(place * (len(items) - 1) / (most - 1))] for place in range(most)]


def _kept_share(found: Findings, result: Result) -> float:
    """How good a result is beside its unpruned model; NaN where it was not measured."""
    ours, base = found.score(result), found.score(found.bases.get(result.model))
    if ours is None or math.isnan(ours.better):
        return math.nan
    if base is None or base.value == 0 or not math.isfinite(base.value):
        return ours.better
    return ours.value / base.value if ours.higher else base.value / ours.value


def _best_figure(found: Findings, amount: str, best: Result) -> tuple[str, str, str]:
    ours, base = found.score(best), found.score(found.bases.get(best.model))
    about = [f"unpruned {said(base)}"] if base else []
    label = found.label(best, {"drop"})
    return (
        f"best {column(found, plain=True)}, {amount} removed",
        said(ours),
        "; ".join([*about, *([label] if label else [])]),
    )


def of_depths(found: Findings) -> str:
    """The best setting of each amount removed, and up to where it is within noise of the unpruned model."""
    told, fine, worse = [], [], False
    for amount, each in _spread(best_at_each(found), 6):
        ours, base = found.score(each), found.score(found.bases.get(each.model))
        if ours and base:
            change = difference(ours, base)
            told.append(f"{said(ours)} with {_amount(amount)} removed")
            worse = worse or (sure(change) and change.value < 0)
            fine += [] if worse else [_amount(amount)]
    if len(told) < 2:
        return ""
    near = f" Up to {fine[-1]} it is within noise of the unpruned model." if fine else ""
    return f"{column(found)} of the best setting is {listed(told)}.{near}"
