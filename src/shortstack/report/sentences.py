"""What tables say, in sentences; every word that could be otherwise is computed from the rows.

Each function gives the sentences of one kind: none where there is nothing to say.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import median
from typing import Any

from shortstack.report.findings import Findings, MatchedGroup
from shortstack.report.format import MINUS, MISSING, counted, listed, points, shown, uncertainty
from shortstack.report.labels import PLAIN, brief
from shortstack.report.results import AVERAGE, Measure, Result
from shortstack.report.significance import Difference, corrected, difference
from shortstack.runs.records import StepRecord

Sentences = Callable[[Findings, Sequence[MatchedGroup]], list[str]]
AGAINST_PLAIN = {"strategy": ("Step by step", "that of all at once"), "repair": ("With repair", "that without")}

# What the groups of a table of one factor say


def winners(findings: Findings, groups: Sequence[MatchedGroup]) -> list[str]:
    """Which level is best, how often, and how often that may be chance, or is not known."""
    leaders = [(group, ranked[0], ranked[1]) for group in groups if len(ranked := findings.ranked(group.results)) > 1]
    if not leaders:
        return []
    if len(leaders) == 1:
        return [_winner(*leaders[0])]
    changes = [difference(best, other) for _, (_, best), (_, other) in leaders]
    unknown, apart = sum(each.p is None for each in changes), sum(each.significant for each in changes)
    known, by = len(changes) - unknown, f"by the {headline(findings)}"
    rest = [f"Of {counted(unknown, 'comparison')} it is not known: there is no standard error."] if unknown else []
    if not apart:
        none = f"In none of {counted(known, 'comparison')} is the best told apart from the second best {by}."
        return [*([none] if known else []), *rest]
    pairs = zip(leaders, changes, strict=True)
    wins = Counter(group.level(first) for (group, (first, _), _), each in pairs if each.significant)
    order = listed([f"{name} in {count}" for name, count in wins.most_common(3)])
    told = f"Of {counted(known, 'comparison')} the best is told apart from the second best {by} in {apart}"
    return [f"{told}: {order}.", *rest]


def _winner(group: MatchedGroup, first: tuple[Result, Measure], second: tuple[Result, Measure]) -> str:
    """What one comparison says."""
    change, names = difference(first[1], second[1]), [group.level(result) for result, _ in (first, second)]
    best, other = score_text(first[1]), score_text(second[1])
    if change.significant:
        return f"{names[0]} is best, with {best} against {other} of {names[1]}."
    two = f"{names[0]} ({best}) and {names[1]} ({other})"
    if change.p is None:
        return f"Whether {two} differ by more than chance is not known: there is no standard error."
    return f"{two} cannot be told apart."


def healed_back(findings: Findings, groups: Sequence[MatchedGroup]) -> list[str]:
    """The share of what pruning lost that the best healing brings back."""
    shares = []
    for group in groups:
        base, cut, ranked = findings.score(group.base), findings.score(group.unhealed), findings.ranked(group.results)
        if base and cut and ranked and 0 < (lost := base.better - cut.better) < math.inf:
            shares.append((ranked[0][1].better - cut.better) / lost)
    if not shares:
        return []
    share = shown(median(shares), "percent")
    return [f"The best healing brings back {share} of what pruning lost{_in_the_median(shares)}."]


def against_plain(findings: Findings, groups: Sequence[MatchedGroup]) -> list[str]:
    """How often what a factor adds is told apart from its plain level, by how much, and in which direction."""
    pairs = [(findings.score(ours), findings.score(plain)) for ours, plain in _pairs(groups)]
    changes = [difference(ours, plain) for ours, plain in pairs if ours and plain]
    known = [change for change in changes if change.p is not None]
    if not changes:
        return []
    one, other = AGAINST_PLAIN[groups[0].factor]
    if not known:
        return [f"Whether the {headline(findings)} differs from {other} is not known: there is no standard error."]
    apart = [change for change in corrected(known) if change and change.significant]
    better = sum(change.better for change in apart)
    gaps = [change.value for change in known if math.isfinite(change.value)]
    by = f" (median difference {_gap(findings, median(gaps))})" if gaps else ""
    told = f"{one} the {headline(findings)} is told apart from {other} in {len(apart) or 'none'} of "
    told += counted(len(known), "comparison") + by
    sides = {"better": better, "worse": len(apart) - better}
    told += f": {listed([f'{side} in {count}' for side, count in sides.items() if count])}" if apart else ""
    return [f"{told}."]


def slower(_findings: Findings, groups: Sequence[MatchedGroup]) -> list[str]:
    """How much longer healing takes; scores are shared between settings, and their time says nothing of one."""
    times = [(ours.seconds("heal"), plain.seconds("heal")) for ours, plain in _pairs(groups)]
    ratios = [ours / plain for ours, plain in times if ours and plain]
    return [f"Healing takes {median(ratios):.1f} times as long in the median."] if ratios else []


def layers_changed(_findings: Findings, groups: Sequence[MatchedGroup]) -> list[str]:
    """Whether other calibration text takes other layers out."""
    plans = [[plan for each in group.results for plan in each.plans if "removed" in plan] for group in groups]
    moved = sum(len({tuple(plan["removed"]) for plan in some}) > 1 for some in plans)
    return [f"Other calibration text changes which layers go in {moved} of {counted(len(groups), 'comparison')}."]


# What the other tables say


def about_refits(repairs: Sequence[Mapping[str, Any]]) -> str:
    """In how many cuts repair helped, and how much it takes back."""
    shares = [share for repair in repairs if (share := regained(repair)) is not None]
    kept = sum(bool(repair.get("kept", True)) for repair in repairs)
    if not shares:
        return ""
    lowered = "Repair lowered the held-out loss"
    if len(repairs) > 1 or not kept:
        lowered += f" in {kept or 'none'} of {counted(len(repairs), 'cut')}"
    middle = f"{shown(median(shares), 'percent')}{_in_the_median(shares)}"
    return f"{lowered}: it takes back {middle} of what the cut added."


def regained(repair: Mapping[str, Any]) -> float | None:
    """The share of the loss that a cut added and its repair took away: (before - after) / (before - unpruned)."""
    whole, before, after = (repair.get(f"loss_{name}") for name in ("unpruned", "before", "after"))
    if whole is None or before is None or after is None or before <= whole:
        return None
    return float((before - after) / (before - whole))


def about_probes(findings: Findings) -> str:
    """How often a shorter model writes worse than the unpruned one does, and how many have collapsed."""
    changes = [change for model in findings.bases for change in _probe_changes(findings, model) if change.p is not None]
    worse = f"{sum(change.worse for change in changes) or 'none'} of {counted(len(changes), 'comparison')}"
    words = [f"In {worse} a shorter model answers worse than its unpruned one, beyond chance."] if changes else []
    return " ".join([*words, *about_collapse(findings)])


def about_collapse(findings: Findings) -> list[str]:
    """How many settings write loops, few words or nothing, and from which amount on."""
    looked = [
        (each.removed, bool(step.result["collapse"].get("collapsed")))
        for each in findings.results
        if (step := each.evaluation) and step.result.get("collapse")
    ]
    if not looked:
        return []
    fallen = [removed for removed, collapsed in looked if collapsed]
    known = [removed for removed in fallen if removed]
    first = f", the first with {counted(min(known), 'layer')} gone" if known else ""
    some = f"{len(fallen) or 'None'} of {counted(len(looked), 'setting')} {'has' if len(fallen) < 2 else 'have'}"
    return [f"{some} collapsed in free text{first}."]


def _probe_changes(findings: Findings, model: str) -> list[Difference]:
    """Each probe of each shorter form of a model beside the unpruned one's, Holm-corrected as in the table."""
    base, names = findings.bases[model], findings.measured("probe")
    mine = [each.measures for each in findings.by_model.get(model, [])]
    pairs = [
        (each[name], base.measures[name]) for each in mine for name in names if name in each and name in base.measures
    ]
    return [change for change in corrected([difference(*pair) for pair in pairs]) if change]


def about_sizes(profiles: Mapping[str, Mapping[str, StepRecord]]) -> str:
    """How much smaller and faster the shortest size of each model is. profiles: by model and layers removed."""
    words: list[str] = []
    for model, sizes in profiles.items():
        (_, base), (removed, short) = next(iter(sizes.items())), list(sizes.items())[-1]
        if len(sizes) < 2 or not base.result.get("weight_bytes"):
            continue
        less = 1 - short.result.get("weight_bytes", math.nan) / base.result["weight_bytes"]
        faster = _speedups(base.result, short.result)
        speed = f" and it writes {listed(faster)}" if faster else ""
        without = f"Without {counted(int(removed), 'layer')} the weights of {brief(model)}"
        words.append(f"{without} are {shown(less, 'percent')} smaller{speed}.")
    return " ".join(words)


def _speedups(base: Mapping[str, Any], short: Mapping[str, Any]) -> list[str]:
    before, after = (
        {each["batch"]: each.get("decode_tokens_per_s") for each in result.get("speed") or ()}
        for result in (base, short)
    )
    return [
        f"{rate / before[batch]:.2f} times as fast at batch {batch}"
        for batch, rate in after.items()
        if rate and before.get(batch)
    ]


def about_settings(findings: Findings) -> str:
    """How many settings are worse than their unpruned model, better, and not told apart from it."""
    scored = findings.ranked(findings.results)
    if not scored:
        return "No setting was measured yet."
    found = [difference(score, base) for each, score in scored if (base := findings.base(each))]
    known = [each for each in found if each.p is not None]
    worse, better = sum(each.worse for each in known), sum(each.better for each in known)
    counts = {
        "worse": worse,
        "better": better,
        "not told apart": len(known) - worse - better,
        "not known to differ, without a standard error": len(found) - len(known),
    }
    told = listed([f"{count} {'is' if count == 1 else 'are'} {what}" for what, count in counts.items() if count])
    beside = f"Of {counted(len(found), 'setting')} beside the unpruned model, by {headline(findings)}, each on its own"
    return f"{beside}: {told}." if found else ""


# Words that several sentences use


def headline(findings: Findings) -> str:
    """The headline column as a noun."""
    name = findings.headline
    kind, label = name.partition(":")[0], brief(findings.names.get(name, ""))
    return "average" if name == AVERAGE else f"perplexity on {label}" if kind == "perplexity" else f"score on {label}"


def score_text(measure: Measure | None, *, error: bool = False) -> str:
    """A score with its unit, and on request its standard error."""
    if measure is None:
        return MISSING
    spread = uncertainty(measure.value, measure.stderr, measure.kind) if error else ""
    return shown(measure.value, measure.kind) + (f" ± {spread}" if spread else "") + "%" * (measure.kind == "share")


def _pairs(groups: Iterable[MatchedGroup]) -> list[tuple[Result, Result]]:
    """Each result of a group beside the one at which the factor is at its plain level."""
    plain = [(group, each) for group in groups for each in group.results if group.level(each) == PLAIN[group.factor]]
    return [(each, one) for group, one in plain for each in group.results if each is not one]


def _in_the_median(values: Sequence[float]) -> str:
    return " in the median" if len(values) > 1 else ""


def _gap(findings: Findings, gap: float) -> str:
    """A difference of the headline column; of a perplexity that of its loss."""
    return f"{gap:.2f} nats".replace("-", MINUS) if findings.headline.startswith("perplexity:") else points(gap)
