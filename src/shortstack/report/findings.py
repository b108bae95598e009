"""Results (a setting each, its seeds taken together) and fair comparisons: those that differ in one factor alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from shortstack.machine.formats import brief
from shortstack.report.labels import PLAIN, factors, said, short_paths
from shortstack.report.measures import Measure, average, measures, over_seeds
from shortstack.runs import Runs
from shortstack.runs.records import StepRecord, TrialRecord

AVERAGE, PROBES = "average", "generation probes"
BASE, PRUNED, HEALED = "evaluate_base", "evaluate_pruned", "evaluate_healed"  # the roles of evaluations
HEALING = {"heal", "data"}
BEFORE = "pruned, not healed"
UNSAID = {PLAIN["calibration"], PLAIN["rounds"], PLAIN["repair"], ""}  # what is plain needs no word
Described = Sequence[tuple[TrialRecord, Mapping[str, str]]]  # trials with their factors in words


@dataclass(frozen=True)
class Result:
    """The trials that differ in nothing but the seed, and what they measured together, by column.

    role: of the evaluation that the measures are from.
    """

    factors: Mapping[str, str]
    trials: tuple[TrialRecord, ...]
    role: str
    measures: Mapping[str, Measure]

    @property
    def model(self) -> str:
        return self.factors["model"]

    @property
    def seeds(self) -> int:
        """How many seeds it is the mean of: one where nothing was drawn, so that all trials share every step."""
        drawn = {frozenset(step.key for step in trial.steps.values()) for trial in self.trials}
        return len(self.trials) if len(drawn) > 1 else 1

    @property
    def removed(self) -> int | None:
        """How many layers are gone, where a plan says so."""
        return next((len(plan["removed"]) for plan in self.plans if "removed" in plan), None)

    @property
    def plans(self) -> list[Mapping[str, Any]]:
        """The plan of each trial; where pruning and healing took turns, healing has the plan of all turns."""
        return [trial.result("heal").get("plan") or trial.result("plan", "prune") for trial in self.trials]

    def step(self, *roles: str) -> StepRecord | None:
        """Find the step of these roles in the first trial that has one done."""
        return next((step for trial in self.trials if (step := trial.step(*roles))), None)

    @property
    def healing(self) -> StepRecord | None:
        """The first trial's healing, where the measures are from after it."""
        return self.step("heal") if self.role == HEALED else None

    def seconds(self, *roles: str) -> float | None:
        """Average over the seeds the time that the steps of these roles took."""
        steps = [[step for role in roles if (step := trial.step(role))] for trial in self.trials]
        times = [sum(step.seconds or 0.0 for step in taken) for taken in steps if taken]
        return sum(times) / len(times) if times else None


def _results(trials: Described) -> list[Result]:
    """Return the result of each setting, after healing where it heals; settings without a measurement are left out."""
    grouped: dict[tuple[tuple[str, str], ...], list[TrialRecord]] = {}
    for trial, levels in trials:
        if trial.step(_role(levels)):
            grouped.setdefault(tuple(levels.items()), []).append(trial)
    return [_result(dict(key), members, _role(dict(key))) for key, members in grouped.items()]


def _role(levels: Mapping[str, str]) -> str:
    """Choose the evaluation that a setting is about: a trial that is yet to heal, or failed to, has nothing to show."""
    return PRUNED if levels["heal"] == PLAIN["heal"] else HEALED


def _result(levels: Mapping[str, str], trials: Sequence[TrialRecord], role: str) -> Result:
    columns: dict[str, list[Measure]] = {}
    for step in filter(None, (trial.step(role) for trial in trials)):
        for name, measure in measures(step).items():
            columns.setdefault(name, []).append(measure)
    return Result(levels, tuple(trials), role, {name: over_seeds(seeds) for name, seeds in columns.items()})


def _unpruned(trials: Described) -> dict[str, Result]:
    bases: dict[str, Result] = {}
    for trial, levels in trials:
        model = levels["model"]
        if model not in bases and trial.step(BASE):
            bases[model] = _result(dict.fromkeys(levels, "") | {"model": model}, [trial], BASE)
    return bases


def averaged(result: Result, tasks: Sequence[str]) -> Result:
    """Add the plain mean of the tasks, where every one of them was measured."""
    parts = tuple(result.measures[name] for name in tasks if name in result.measures)
    if len(parts) < 2 or len(parts) < len(tasks):
        return result
    return replace(result, measures={AVERAGE: average(parts), **result.measures})


@dataclass(frozen=True)
class Findings:
    """Everything that was measured.

    factors: of each trial, in words; bases: the base models by name; tasks: the columns that an average is over, tasks
    whose value is a share of documents.
    """

    runs: Runs
    factors: Sequence[Mapping[str, str]]
    results: Sequence[Result]
    bases: Mapping[str, Result]
    tasks: Sequence[str]

    @classmethod
    def of(cls, runs: Runs) -> Findings:
        described = factors([trial.settings for trial in runs.trials])
        trials = list(zip(runs.trials, described, strict=True))
        measured, bases = _results(trials), _unpruned(trials)
        columns = [pair for result in measured for pair in result.measures.items()]
        shares = [name for name, measure in columns if name.startswith("task:") and measure.kind == "share"]
        tasks = list(dict.fromkeys(shares))
        averages = {model: averaged(base, tasks) for model, base in bases.items()}
        return cls(runs, described, [averaged(result, tasks) for result in measured], averages, tasks)

    @cached_property
    def names(self) -> dict[str, str]:
        """Names of what was measured (task:NAME, perplexity:NAME, probe:NAME), with the name that a reader knows it by."""
        names = dict.fromkeys(name for result in (*self.results, *self.bases.values()) for name in result.measures)
        shorter = short_paths(name.partition(":")[2] for name in names)
        return {name: shorter[name.partition(":")[2]] or name for name in names}

    @cached_property
    def levels(self) -> dict[str, list[str]]:
        """The factors with more than one level, and their levels in the order in which they come."""
        levels: dict[str, dict[str, None]] = {}
        for name, level in (pair for result in self.results for pair in result.factors.items()):
            levels.setdefault(name, {})[level] = None
        return {name: list(known) for name, known in levels.items() if len(known) > 1}

    @cached_property
    def usual(self) -> dict[str, str]:
        """The calibration and the healing data of most results, which labels leave out."""
        counts = {
            name: Counter(result.factors[name] for result in self.results if result.factors[name] != PLAIN[name])
            for name in ("calibration", "data")
        }
        return {name: count.most_common(1)[0][0] for name, count in counts.items() if count}

    @cached_property
    def by_model(self) -> dict[str, list[Result]]:
        models = dict.fromkeys(result.model for result in self.results)
        return {model: [result for result in self.results if result.model == model] for model in models}

    @property
    def subject(self) -> Result | None:
        """The one setting that there is; None where there are several."""
        return self.results[0] if len(self.results) == 1 else None

    @property
    def pairs(self) -> dict[str, tuple[Measure, Measure]]:
        """The measures of the base model and of the one setting, by name; of the probes their mean."""
        if not self.subject or self.subject.model not in self.bases:
            return {}
        ours, theirs = self.subject.measures, self.bases[self.subject.model].measures
        pairs = {name: (theirs[name], ours[name]) for name in ours if name in theirs}
        shares = [name for name in self.measured("probe") if name in pairs and ours[name].kind == "share"]
        written = [pairs.pop(name) for name in shares]
        mean = (
            {PROBES: (average([base for base, _ in written]), average([own for _, own in written]))} if written else {}
        )
        return pairs | mean

    def example(self, name: str) -> Measure:
        """Return the measure of that name of some result."""
        return next(it.measures[name] for it in (*self.results, *self.bases.values()) if name in it.measures)

    @property
    def headline(self) -> str:
        """The column that a short comparison goes by: the average, else the only task, else the first perplexity."""
        average = [AVERAGE] if AVERAGE in self.names else []
        return next(iter([*average, *self.tasks, *self.measured("perplexity")]), "")

    def measured(self, kind: str) -> list[str]:
        """List the columns of a kind: task, perplexity, probe."""
        return [name for name in self.names if name.startswith(f"{kind}:")]

    def title(self, column: str) -> str:
        """Name a column where nothing else says what kind it is."""
        name = brief(self.names.get(column, column))
        return f"perplexity on {name}" if column.startswith("perplexity:") else name

    def stored_bytes(self, result: Result) -> float | None:
        """Count the bytes of the weights: measured, else as planned."""
        if result.role == BASE:
            plans = [plan for setting in self.by_model.get(result.model, []) for plan in setting.plans]
            return next((plan["bytes"]["before"] for plan in plans if plan.get("bytes")), None)
        profile = result.step("profile")
        if profile and profile.result.get("weight_bytes"):
            return float(profile.result["weight_bytes"])
        return next((plan["bytes"]["after"] for plan in result.plans if plan.get("bytes")), None)

    def ranked(self, results: Iterable[Result]) -> list[tuple[Result, Measure]]:
        """Return the results that have a score, with it, best first."""
        measured = [(result, result.measures[self.headline]) for result in results if self.headline in result.measures]
        scored = [(result, score) for result, score in measured if not math.isnan(score.better)]
        return sorted(scored, key=lambda pair: -pair[1].better)

    def name(self, result: Result, without: Collection[str] = ()) -> str:
        """Return the label, or a word where nothing needs telling apart."""
        label = self.label(result, without)
        return BEFORE if label == PLAIN["heal"] else label or "pruned"

    def label(self, result: Result, without: Collection[str] = ()) -> str:
        """Describe how this result differs from others, in words."""
        levels = {name: result.factors.get(name, "") for name in self.levels if name not in without}
        names = [name for name, level in levels.items() if level not in {*UNSAID, self.usual.get(name)}]
        return " · ".join(brief(word) for name in names if (word := said(result.factors, name)))


def matched_groups(findings: Findings, factor: str) -> list[list[Result]]:
    """Group the results that differ in `factor` alone, where at least two levels of it were measured, in their order.

    A result without calibration (the tail, random layers) stands in every group that agrees with it otherwise. Groups of
    healing methods and of healing data hold healed results.
    """
    results = [result for result in findings.results if factor not in HEALING or result.role == HEALED]
    groups = _alike(results, {factor})
    if factor == "metric":
        groups = [group for members in _alike(results, {factor, "calibration"}) for group in _by_text(members)]
    order = findings.levels.get(factor, [])
    several = [group for group in groups if len({result.factors[factor] for result in group}) > 1]
    return [sorted(group, key=lambda result: order.index(result.factors[factor])) for group in several]


def _alike(results: Iterable[Result], without: Collection[str]) -> list[list[Result]]:
    """Group the results that agree in all other factors."""
    gathered: dict[tuple[tuple[str, str], ...], list[Result]] = {}
    for result in results:
        gathered.setdefault(_others(result, without), []).append(result)
    return [*gathered.values()]


def _by_text(members: Sequence[Result]) -> list[list[Result]]:
    """Group by the text of calibration, with those that have none in each group; all of them where there is no text."""
    plain = PLAIN["calibration"]
    texts = dict.fromkeys(text for result in members if (text := result.factors["calibration"]) != plain) or (plain,)
    return [[result for result in members if result.factors["calibration"] in (text, plain)] for text in texts]


def _others(result: Result, without: Collection[str]) -> tuple[tuple[str, str], ...]:
    return tuple(pair for pair in result.factors.items() if pair[0] not in without)


def before_healing(findings: Findings, members: Sequence[Result]) -> Result | None:
    """Return what was measured of one of these before its healing."""
    for healed in members:
        if trials := [trial for trial in healed.trials if trial.step(PRUNED)]:
            levels = {**healed.factors, "heal": PLAIN["heal"], "data": PLAIN["data"]}
            return averaged(_result(levels, trials, PRUNED), findings.tasks)
    return None
