"""What tables say, in sentences; every word that could be otherwise is computed from the rows."""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shortstack.evaluation.paired import holm
from shortstack.report.findings import Findings, Group
from shortstack.report.format import MINUS, MISSING, counted, duration, listed, points, shown
from shortstack.report.labels import NONE, brief
from shortstack.report.results import AVERAGE, Measure, Result
from shortstack.report.significance import Difference, difference
from shortstack.runs import Runs
from shortstack.runs.records import Step

SURE = 0.05
DOING = {
    "score": "scoring",
    "plan": "planning",
    "prune": "pruning",
    "heal": "healing",
    "turns": "pruning and healing in turns",
    "evaluate": "evaluation",
    "profile": "profiling",
}


def of_metrics(found: Findings, compared: Sequence[Group]) -> str:
    return " ".join([*_winners(found, compared), *_kept(found, compared)])


def of_healing(found: Findings, compared: Sequence[Group]) -> str:
    return " ".join([*_winners(found, compared), *_healed_back(found, compared), *_times(compared)])


def of_strategies(found: Findings, compared: Sequence[Group]) -> str:
    pairs = _against_plain(compared, "strategy")
    said = [*_pairwise(found, pairs, "Step by step", "all at once"), *_slower(pairs)]
    return " ".join(said or _winners(found, compared))


def of_calibrations(found: Findings, compared: Sequence[Group]) -> str:
    """How far each metric moves over the calibrations, and whether its layers do."""
    spans: dict[str, list[float]] = {}
    for group in compared:
        values = [
            score.better for each in group.results if (score := found.score(each)) and math.isfinite(score.better)
        ]
        if len(values) > 1:
            spans.setdefault(group.results[0].factors["metric"], []).append(max(values) - min(values))
    moved = sum(
        len({tuple(plan["removed"]) for each in group.results for plan in each.plans if "removed" in plan}) > 1
        for group in compared
    )
    told = [f"Other calibration text changes which layers go in {moved} of {counted(len(compared), 'comparison')}."]
    if spans:
        most = max(spans, key=lambda metric: max(spans[metric]))
        middle = statistics.median(span for each in spans.values() for span in each)
        told.append(
            f"{column(found)} moves by {_gap(found, middle)} in the median, "
            f"at most by {_gap(found, max(spans[most]))}, with {most}."
        )
    return " ".join(told)


def of_data(found: Findings, compared: Sequence[Group]) -> str:
    return " ".join(_winners(found, compared))


def of_repairs(found: Findings, compared: Sequence[Group]) -> str:
    return " ".join(_pairwise(found, _against_plain(compared, "repair"), "With repair", "without"))


def of_refits(repairs: Sequence[Mapping[str, Any]]) -> str:
    shares = [share for repair in repairs if (share := regained(repair)) is not None]
    if not shares:
        return ""
    kept = sum(bool(repair.get("kept", True)) for repair in repairs)
    middle = (
        f" of {100 * statistics.median(shares):.0f}% in the median"
        if len(shares) > 1
        else f" of {100 * shares[0]:.0f}%"
    )
    return (
        f"Repair lowered the held-out loss in {kept} of {counted(len(repairs), 'cut')}: "
        f"it takes back a share{middle} of what the cut added."
    )


def regained(repair: Mapping[str, Any]) -> float | None:
    """The share of the loss that a cut added and its repair took away: (before - after) / (before - unpruned)."""
    whole, before, after = (repair.get(f"loss_{name}") for name in ("unpruned", "before", "after"))
    if whole is None or before is None or after is None or before <= whole:
        return None
    return float((before - after) / (before - whole))


def of_probes(found: Findings, columns: Sequence[str]) -> str:
    """How often a shorter model writes worse than the unpruned one does, and how many have collapsed."""
    changes = [
        difference(each.measures[name], base.measures[name])
        for each in found.results
        if (base := found.bases.get(each.model))
        for name in columns
        if name in each.measures and name in base.measures
    ]
    worse = sum(sure(change) and change.value < 0 for change in changes)
    told = f"In {worse} of {counted(len(changes), 'comparison')} a shorter model answers worse than its unpruned one"
    steps = [step for each in found.results if (step := each.judged) and step.result.get("collapse")]
    collapsed = sum(bool(step.result["collapse"].get("collapsed")) for step in steps)
    some = f"{collapsed or 'None'} of {counted(len(steps), 'setting')} {'has' if collapsed < 2 else 'have'}"
    answers = [f"{told}, beyond chance."] if changes else []
    return " ".join([*answers, *([f"{some} collapsed in free text."] if steps else [])])


def of_sizes(profiles: Sequence[tuple[str, str, Step]]) -> str:
    """How much smaller and faster the shortest model is."""
    told: list[str] = []
    for model in dict.fromkeys(model for model, _, _ in profiles):
        mine = [(name, step.result) for known, name, step in profiles if known == model]
        (first, base), (name, short) = mine[0], mine[-1]
        if len(mine) < 2 or name == first or not base.get("weight_bytes"):
            continue
        less = 1 - short.get("weight_bytes", math.nan) / base["weight_bytes"]
        faster = _speedups(base, short)
        speed = f" and it writes {listed(faster)}" if faster else ""
        told.append(
            f"Without {counted(int(name), 'layer')} the weights of {brief(model)} are {100 * less:.0f}% smaller{speed}."
        )
    return " ".join(told)


def _speedups(base: Mapping[str, Any], short: Mapping[str, Any]) -> list[str]:
    rates = {each["batch"]: each.get("decode_tokens_per_s") for each in base.get("speed") or ()}
    return [
        f"{each['decode_tokens_per_s'] / rates[each['batch']]:.2f} times as fast at batch {each['batch']}"
        for each in short.get("speed") or ()
        if rates.get(each["batch"]) and each.get("decode_tokens_per_s")
    ]


def of_costs(runs: Runs, uses: Mapping[str, int]) -> str:
    """How long everything took, on what, and what sharing saved."""
    done = [step for step in runs.steps.values() if step.state == "done" and step.seconds]
    if not done:
        return ""
    total = sum(step.seconds or 0 for step in done)
    saved = sum((step.seconds or 0) * max(0, uses.get(step.key, 0) - 1) for step in done)
    kinds: Counter[str] = Counter()
    for step in done:
        kinds[step.kind] += step.seconds or 0  # type: ignore[assignment]
    most, longest = kinds.most_common(1)[0]
    hosts = {step.host for step in done if step.host}
    on = f" on {counted(len(hosts), 'machine')}" if hosts else ""
    sharing = f" Sharing them between trials saved {duration(saved)}." if saved >= 0.01 * total else ""
    steps = counted(len(done), "step")
    return (
        f"{steps} took {duration(total)}{on}, {100 * longest / total:.0f}% of it for {DOING.get(most, most)}.{sharing}"
    )


def of_settings(found: Findings) -> str:
    """The best of all, and how many lie within noise of their unpruned model."""
    scored = [(score, each) for each in found.results if (score := found.score(each)) and not math.isnan(score.better)]
    if not scored:
        return "No setting was measured yet."
    same = 0
    for score, each in scored:
        base = found.score(found.bases.get(each.model))
        same += bool(base) and not (sure(change := difference(score, base)) and change.value < 0)  # type: ignore[arg-type]
    all_of_them = counted(len(scored), "setting")
    by = f"by {column(found, plain=True)}, each on its own"
    if not found.bases:
        return ""
    if not same:
        return f"None of {all_of_them} reaches the unpruned model ({by})."
    some = f"All {all_of_them}" if same == len(scored) > 1 else f"{same} of {all_of_them}"
    return f"{some} {'is' if same == 1 else 'are'} within noise of the unpruned model ({by})."


# Sentences that several tables use


def _winners(found: Findings, compared: Sequence[Group]) -> list[str]:
    """Which level is best, how often, by how much, and how often that may be chance."""
    wins: Counter[str] = Counter()
    leads: list[float] = []
    unsure = 0
    for group in compared:
        ranked = _ranked(found, group)
        if len(ranked) < 2:
            continue
        (first, best), (second, other) = ranked[0], ranked[1]
        wins[group.named(first)] += 1
        leads.append(best.better - other.better)
        unsure += not sure(difference(best, other))
    if not wins:
        return []
    total = sum(wins.values())
    if total == 1:
        group = next(each for each in compared if len(_ranked(found, each)) > 1)
        (first, best), (second, other) = _ranked(found, group)[:2]
        chance = ", which is within noise" if unsure else ""
        return [
            f"{group.named(first)} is best, with {said(best)} against {said(other)} of {group.named(second)}{chance}."
        ]
    order = [f"{name} in {count}" for name, count in wins.most_common(3)]
    finite = [lead for lead in leads if math.isfinite(lead)]
    by = f", by {_gap(found, statistics.median(finite))} in the median" if finite else ""
    return [
        f"{column(found)} is best with {listed(order)} of {counted(total, 'comparison')}{by}.",
        f"In {'all' if unsure == total else unsure or 'none'} of them the second best is within noise of it.",
    ]


def _kept(found: Findings, compared: Sequence[Group]) -> list[str]:
    """How much of the unpruned model's score the best setting of all keeps."""
    pairs = [
        (ranked[0][1].value / base.value, group)
        for group in compared
        if (base := found.score(group.base))
        and base.kind == "share"
        and base.value > 0
        and (ranked := _ranked(found, group))
    ]
    if not pairs:
        return []
    share, group = max(pairs, key=lambda pair: pair[0])
    where = f" ({group.title})" if group.title else ""
    return [f"At most {100 * share:.0f}% of the unpruned model's {column(found, plain=True)} is kept{where}."]


def _healed_back(found: Findings, compared: Sequence[Group]) -> list[str]:
    """The share of what pruning lost that the best healing brings back."""
    shares = []
    for group in compared:
        base, cut, ranked = found.score(group.base), found.score(group.unhealed), _ranked(found, group)
        if base and cut and ranked and base.better > cut.better and math.isfinite(base.better - cut.better):
            shares.append((ranked[0][1].better - cut.better) / (base.better - cut.better))
    if not shares:
        return []
    middle = " in the median" if len(shares) > 1 else ""
    share = f"{100 * statistics.median(shares):.0f}%".replace("-", MINUS)
    return [f"The best healing brings back {share} of what pruning lost{middle}."]


def _times(compared: Sequence[Group]) -> list[str]:
    """The fastest and the slowest method."""
    times: dict[str, list[float]] = {}
    for group in compared:
        for each in group.results:
            seconds = each.seconds("heal")
            if seconds:
                times.setdefault(group.named(each), []).append(seconds)
    if len(times) < 2:
        return []
    middle = {name: statistics.median(found) for name, found in times.items()}
    fast, slow = min(middle, key=middle.__getitem__), max(middle, key=middle.__getitem__)
    return [f"{fast} is quickest ({duration(middle[fast])} in the median), {slow} slowest ({duration(middle[slow])})."]


def _against_plain(compared: Sequence[Group], factor: str) -> list[tuple[Result, Result]]:
    """Each result of a group beside the one at which the factor is at its plain level."""
    plain = [(group, each) for group in compared for each in group.results if group.named(each) == NONE[factor]]
    return [(each, one) for group, one in plain for each in group.results if each is not one]


def _pairwise(found: Findings, pairs: Iterable[tuple[Result, Result]], one: str, other: str) -> list[str]:
    """How often one is better than the other, by how much, and how often beyond chance."""
    changes = [
        difference(ours, theirs)
        for first, second in pairs
        if (ours := found.score(first)) and (theirs := found.score(second))
    ]
    if not changes:
        return []
    better = sum(change.value > 0 for change in changes)
    ps = {str(place): change.p for place, change in enumerate(changes) if change.p is not None}
    beyond = sum(p < SURE for p in holm(ps).values())
    values = [change.value for change in changes if math.isfinite(change.value)]
    middle = f", by {_gap(found, statistics.median(values), compared=True)} in the median" if values else ""
    return [
        f"{one} the {column(found, plain=True)} is better than {other} "
        f"in {better} of {counted(len(changes), 'comparison')}"
        f"{middle}; {beyond or 'none'} of the differences {'is' if beyond < 2 else 'are'} beyond chance."
    ]


def _slower(pairs: Iterable[tuple[Result, Result]]) -> list[str]:
    """How much longer healing takes; scores are shared between settings, and their time says nothing of one."""
    ratios = [ours / theirs for a, b in pairs if (ours := a.seconds("heal")) and (theirs := b.seconds("heal"))]
    return [f"Healing takes {statistics.median(ratios):.1f} times as long in the median."] if ratios else []


def _ranked(found: Findings, group: Group) -> list[tuple[Result, Measure]]:
    """The results of a group with their score, best first."""
    scored = [(each, score) for each in group.results if (score := found.score(each)) and not math.isnan(score.better)]
    return sorted(scored, key=lambda pair: -pair[1].better)


def sure(change: Difference) -> bool:
    return change.p is not None and change.p < SURE


def column(found: Findings, *, plain: bool = False) -> str:
    """The headline column as the subject of a sentence, or as a noun."""
    name = found.headline or ""
    kind, label = name.partition(":")[0], brief(found.names.get(name, ""))
    noun = "average" if name == AVERAGE else f"perplexity on {label}" if kind == "perplexity" else f"score on {label}"
    return noun if plain else f"The {noun}"


def said(measure: Measure | None) -> str:
    if measure is None:
        return MISSING
    return shown(measure.value, measure.kind) + ("%" if measure.kind == "share" else "")


def _gap(found: Findings, gap: float, *, compared: bool = False) -> str:
    """A difference of the headline column; compared: in the units of comparing, of a perplexity nats."""
    if (found.headline or "").startswith("perplexity:"):
        return f"{gap:.2f} nats".replace("-", MINUS) if compared else f"{gap:.3g}".replace("-", MINUS)
    return points(gap)
