"""What tables say, in sentences; every word that could be otherwise is computed from the rows.

Each function gives the sentences of one kind: none where there is nothing to say.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from shortstack.machine.numbers import perplexity
from shortstack.report.findings import Findings, MatchedGroup
from shortstack.report.format import MINUS, MISSING, counted, listed, points, shown, uncertainty
from shortstack.report.labels import PLAIN, brief
from shortstack.report.results import AVERAGE, Measure, Result
from shortstack.report.significance import Difference, corrected, difference
from shortstack.runs import Runs
from shortstack.runs.records import StepRecord

Sentences = Callable[[Findings, Sequence[MatchedGroup]], list[str]]
AGAINST_PLAIN = {"strategy": ("Step by step", "that of all at once"), "repair": ("With repair", "that without")}
DOING = {
    "score": "scoring",
    "plan": "planning",
    "prune": "pruning",
    "heal": "healing",
    "turns": "pruning and healing in turns",
    "evaluate": "evaluation",
    "profile": "profiling",
}

# What the groups of a table of one factor say


def winners(findings: Findings, groups: Sequence[MatchedGroup]) -> list[str]:
    """Which level is best, how often, by how much, and how often that may be chance."""
    leaders = [(group, ranked[0], ranked[1]) for group in groups if len(ranked := findings.ranked(group.results)) > 1]
    if not leaders:
        return []
    unsure = sum(not difference(best, other).significant for _, (_, best), (_, other) in leaders)
    if len(leaders) == 1:
        group, (first, best), (second, other) = leaders[0]
        if unsure:
            two = [f"{group.level(each)} ({score_text(score)})" for each, score in ((first, best), (second, other))]
            return [f"{listed(two)} cannot be told apart."]
        against = f"{score_text(best)} against {score_text(other)} of {group.level(second)}"
        return [f"{group.level(first)} is best, with {against}."]
    if unsure == len(leaders):
        none = f"In none of {counted(len(leaders), 'comparison')} is the best told apart from the second best"
        return [f"{none} by the {headline(findings)}."]
    wins = Counter(group.level(first) for group, (first, _), _ in leaders)
    order = listed([f"{name} in {count}" for name, count in wins.most_common(3)])
    by = _median_gap(findings, [best.better - other.better for _, (_, best), (_, other) in leaders])
    return [
        f"The {headline(findings)} is best with {order} of {counted(len(leaders), 'comparison')}{by}.",
        f"In {unsure or 'none'} of them the second best is within noise of it.",
    ]


def kept_of_unpruned(findings: Findings, groups: Sequence[MatchedGroup]) -> list[str]:
    """How much of the unpruned model's score the best setting of all keeps."""
    kept: list[tuple[float, str]] = []
    for group in groups:
        base, ranked = findings.score(group.base), findings.ranked(group.results)
        if base and base.kind == "share" and base.value > 0 and ranked:
            kept.append((ranked[0][1].value / base.value, group.title))
    if not kept:
        return []
    share, title = max(kept, key=lambda pair: pair[0])
    where = f" ({title})" if title else ""
    return [f"At most {shown(share, 'percent')} of the unpruned model's {headline(findings)} is kept{where}."]


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


def healing_times(_findings: Findings, groups: Sequence[MatchedGroup]) -> list[str]:
    """The fastest and the slowest way to heal."""
    times: dict[str, list[float]] = {}
    for group in groups:
        for each in group.results:
            if seconds := each.seconds("heal"):
                times.setdefault(group.level(each), []).append(seconds)
    if len(times) < 2:
        return []
    middle = {name: median(seconds) for name, seconds in times.items()}
    fast, slow = min(middle, key=middle.__getitem__), max(middle, key=middle.__getitem__)
    shortest, longest = (shown(middle[name], "seconds") for name in (fast, slow))
    return [f"{fast} is quickest ({shortest} in the median), {slow} slowest ({longest})."]


def against_plain(findings: Findings, groups: Sequence[MatchedGroup]) -> list[str]:
    """How often what a factor adds is told apart from its plain level, by how much, and in which direction."""
    pairs = [(findings.score(ours), findings.score(plain)) for ours, plain in _pairs(groups)]
    changes = [difference(ours, plain) for ours, plain in pairs if ours and plain]
    if not changes:
        return []
    one, other = AGAINST_PLAIN[groups[0].factor]
    apart = [change for change in corrected(changes) if change and change.significant]
    better = sum(change.better for change in apart)
    gaps = [change.value for change in changes if math.isfinite(change.value)]
    by = f" (median difference {_gap(findings, median(gaps), nats=True)})" if gaps else ""
    told = f"the {headline(findings)} is told apart from {other} in {len(apart) or 'none'} of "
    told += counted(len(changes), "comparison") + by
    sides = {"better": better, "worse": len(apart) - better}
    told += f": {listed([f'{side} in {count}' for side, count in sides.items() if count])}" if apart else ""
    moved = _perplexities(findings, _pairs(groups))
    if moved and moved.falls:  # where answers are all wrong still it says more than the score
        return [f"{one} {moved}; {told}."]
    return [f"{one} {told}.", *([f"{str(moved)[0].upper()}{str(moved)[1:]}."] if moved else [])]


@dataclass(frozen=True)
class _Moved:
    """A perplexity, from its median at one level to that at another."""

    text: str
    before: float
    after: float

    @property
    def falls(self) -> bool:
        return self.after < self.before

    def __str__(self) -> str:
        before, after = (shown(value, "perplexity") for value in (self.before, self.after))
        return f"the perplexity on {self.text} goes from {before} to {after} in the median"


def _perplexities(findings: Findings, pairs: Sequence[tuple[Result, Result]]) -> _Moved | None:
    """What becomes of the first text's perplexity, which moves where answers are all wrong still."""
    text = next((name for name in findings.measured("perplexity") if name != findings.headline), "")
    known = [(ours.measures[text].loss, plain.measures[text].loss) for ours, plain in pairs if _both(ours, plain, text)]
    if not known:
        return None
    after, before = (perplexity(median(losses)) for losses in zip(*known, strict=True))
    same = shown(before, "perplexity") == shown(after, "perplexity")
    return None if same else _Moved(brief(findings.names[text]), before, after)


def _both(ours: Result, plain: Result, name: str) -> bool:
    """Whether both were measured, with a finite loss."""
    return all(name in each.measures and math.isfinite(each.measures[name].loss) for each in (ours, plain))


def slower(_findings: Findings, groups: Sequence[MatchedGroup]) -> list[str]:
    """How much longer healing takes; scores are shared between settings, and their time says nothing of one."""
    times = [(ours.seconds("heal"), plain.seconds("heal")) for ours, plain in _pairs(groups)]
    ratios = [ours / plain for ours, plain in times if ours and plain]
    return [f"Healing takes {median(ratios):.1f} times as long in the median."] if ratios else []


def calibration_spans(findings: Findings, groups: Sequence[MatchedGroup]) -> list[str]:
    """How far each metric moves over the calibrations, and whether its layers do."""
    spans: list[tuple[float, str]] = []
    moved = 0
    for group in groups:
        values = [score.better for _, score in findings.ranked(group.results) if math.isfinite(score.better)]
        if len(values) > 1:
            spans.append((max(values) - min(values), group.results[0].factors["metric"]))
        plans = [plan for each in group.results for plan in each.plans if "removed" in plan]
        moved += len({tuple(plan["removed"]) for plan in plans}) > 1
    words = [f"Other calibration text changes which layers go in {moved} of {counted(len(groups), 'comparison')}."]
    if spans:
        middle, (most, metric) = median(span for span, _ in spans), max(spans, key=lambda pair: pair[0])
        words.append(
            f"The {headline(findings)} moves by {_gap(findings, middle)} in the median, "
            f"at most by {_gap(findings, most)}, with {metric}."
        )
    return words


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
    changes = [change for model in findings.bases for change in _probe_changes(findings, model)]
    words = []
    if changes:
        worse = f"{sum(change.worse for change in changes) or 'none'} of {counted(len(changes), 'comparison')}"
        words.append(f"In {worse} a shorter model answers worse than its unpruned one, beyond chance.")
    steps = [step for each in findings.results if (step := each.evaluation) and step.result.get("collapse")]
    if steps:
        collapsed = sum(bool(step.result["collapse"].get("collapsed")) for step in steps)
        some = f"{collapsed or 'None'} of {counted(len(steps), 'setting')}"
        words.append(f"{some} {'has' if collapsed < 2 else 'have'} collapsed in free text.")
    return " ".join(words)


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


def about_costs(runs: Runs, uses: Mapping[str, int]) -> str:
    """How long everything took, on what, and what sharing saved. uses: how many trials need each step."""
    done = [step for step in runs.steps.values() if step.state == "done" and step.seconds]
    if not done:
        return ""
    kinds: dict[str, float] = {}
    for step in done:
        kinds[step.kind] = kinds.get(step.kind, 0) + (step.seconds or 0)
    total, most = sum(kinds.values()), max(kinds, key=kinds.__getitem__)
    hosts = {step.host for step in done if step.host}
    on = f" on {counted(len(hosts), 'machine')}" if hosts else ""
    saved = sum((step.seconds or 0) * max(0, uses.get(step.key, 0) - 1) for step in done)
    sharing = f" Sharing them between trials saved {shown(saved, 'seconds')}." if saved >= 0.01 * total else ""
    took = f"{counted(len(done), 'step')} took {shown(total, 'seconds')}{on}"
    return f"{took}, {shown(kinds[most] / total, 'percent')} of it for {DOING.get(most, most)}.{sharing}"


def about_settings(findings: Findings) -> str:
    """How many settings cannot be told apart from their unpruned model, and how many are better."""
    scored = findings.ranked(findings.results)
    if not scored:
        return "No setting was measured yet."
    if not findings.bases:
        return ""
    found = [difference(score, base) for each, score in scored if (base := findings.base(each))]
    better, same = sum(each.better for each in found), sum(not each.significant for each in found)
    settings, by = counted(len(scored), "setting"), f"by {headline(findings)}, each on its own"
    if not same and not better:
        none = f"None of {settings} reaches" if len(scored) > 1 else "The setting does not reach"
        return f"{none} the unpruned model ({by})."
    some = f"All {settings}" if same == len(scored) > 1 else f"{same} of {settings}"
    told = [f"{some} cannot be told apart from the unpruned model"] if same else []
    told += (
        [f"{better} of {settings} {'is' if better == 1 else 'are'} better than the unpruned model"] if better else []
    )
    return f"{', '.join(told)} ({by})."


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


def _median_gap(findings: Findings, gaps: Iterable[float]) -> str:
    finite = [gap for gap in gaps if math.isfinite(gap)]
    return f", by {_gap(findings, median(finite))} in the median" if finite else ""


def _gap(findings: Findings, gap: float, *, nats: bool = False) -> str:
    """A difference of the headline column; nats: of a perplexity, its loss was compared."""
    if findings.headline.startswith("perplexity:"):
        return (f"{gap:.2f} nats" if nats else shown(gap, "perplexity")).replace("-", MINUS)
    return points(gap)
