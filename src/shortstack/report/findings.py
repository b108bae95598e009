"""Fair comparisons: results that differ in one factor and in nothing else."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from shortstack.machine.formats import brief
from shortstack.report.labels import PLAIN, factors, said, short_paths, varying
from shortstack.report.results import (
    AVERAGE,
    HEALED,
    PRUNED,
    Measure,
    Result,
    before_healing,
    results,
    share_tasks,
    unpruned,
)
from shortstack.runs import Runs

HEALING = {"heal", "data"}
UNSAID = {PLAIN["calibration"], PLAIN["data"], PLAIN["strategy"], PLAIN["repair"]}  # what is plain needs no word
Setting = tuple[tuple[str, str], ...]  # factors and their levels


@dataclass(frozen=True)
class Findings:
    """Everything that was measured, and what varies in it.

    factors: of each trial, in words; bases: the unpruned models by name; levels: of the factors that vary;
    usual: the calibration and the healing data of most results, which labels leave out.
    """

    runs: Runs
    factors: tuple[Mapping[str, str], ...]
    results: tuple[Result, ...]
    bases: Mapping[str, Result]
    tasks: tuple[str, ...]
    columns: tuple[str, ...]
    levels: Mapping[str, Sequence[str]]
    usual: Mapping[str, str]

    @classmethod
    def of(cls, runs: Runs) -> Findings:
        """Collect the results of a study's trials."""
        described = factors([trial.settings for trial in runs.trials])
        trials = list(zip(runs.trials, described, strict=True))
        measured = results(trials)
        tasks = share_tasks(measured)
        bases = unpruned(trials, tasks)
        columns = dict.fromkeys(name for each in (*measured, *bases.values()) for name in each.measures)
        levels, usual = varying(each.factors for each in measured), _usual(measured)
        return cls(runs, tuple(described), tuple(measured), bases, tuple(tasks), tuple(columns), levels, usual)

    @cached_property
    def names(self) -> dict[str, str]:
        """The columns' names: task, text or probe, with paths shortened to their ends."""
        shorter = short_paths(name.partition(":")[2] for name in self.columns)
        return {name: shorter[name.partition(":")[2]] or name for name in self.columns}

    @cached_property
    def by_model(self) -> dict[str, list[Result]]:
        """The results of each model."""
        models = dict.fromkeys(each.model for each in self.results)
        return {model: [each for each in self.results if each.model == model] for model in models}

    @property
    def headline(self) -> str:
        """The column that a short comparison goes by: the average, else the only task, else the first perplexity."""
        average = [AVERAGE] if AVERAGE in self.columns else []
        return next(iter([*average, *self.tasks, *self.measured("perplexity")]), "")

    def measured(self, kind: str) -> list[str]:
        """The columns of a kind: task, perplexity, probe."""
        return [name for name in self.columns if name.startswith(f"{kind}:")]

    def score(self, result: Result | None) -> Measure | None:
        """A result's measure in the headline column."""
        return result.measures.get(self.headline) if result else None

    def base(self, result: Result) -> Measure | None:
        """The score of a result's unpruned model."""
        return self.score(self.bases.get(result.model))

    def ranked(self, some: Iterable[Result]) -> list[tuple[Result, Measure]]:
        """The results that have a score, with it, best first."""
        scored = [(each, score) for each in some if (score := self.score(each)) and not math.isnan(score.better)]
        return sorted(scored, key=lambda pair: -pair[1].better)

    def name(self, result: Result, without: Collection[str] = ()) -> str:
        """The label, or a word where nothing needs telling apart."""
        return self.label(result, without) or "pruned"

    def label(self, result: Result, without: Collection[str] = ()) -> str:
        """Describe how this result differs from others, in words."""
        left_out = {*UNSAID, *self.usual.values(), ""}
        names = [name for name in self.levels if name not in without and result.factors.get(name) not in left_out]
        return " · ".join(brief(word) for name in names if (word := said(result.factors, name)))


def _usual(measured: Sequence[Result]) -> dict[str, str]:
    usual: dict[str, str] = {}
    for name in ("calibration", "data"):
        counts = Counter(each.factors[name] for each in measured if each.factors[name] != PLAIN[name])
        if counts:
            usual[name] = counts.most_common(1)[0][0]
    return usual


@dataclass(frozen=True)
class MatchedGroup:
    """Results that differ in one factor alone, the unpruned model beside them; unhealed: the same before healing."""

    title: str
    factor: str
    results: tuple[Result, ...]
    base: Result | None
    unhealed: Result | None = None

    def level(self, result: Result) -> str:
        """The level of the factor that a result is at."""
        return result.factors[self.factor]


def matched_groups(findings: Findings, factor: str) -> list[MatchedGroup]:
    """The results in groups that differ in `factor` alone, where at least two levels of it were measured.

    A result without calibration (the tail, random layers) stands in every group that agrees with it otherwise. Groups of
    healing methods and of healing data hold healed results, with the one that was not healed beside them.
    """
    gathered: dict[Setting, list[Result]] = {}
    for result in findings.results:
        if factor not in HEALING or result.role == HEALED:
            gathered.setdefault(_setting(result, {factor}), []).append(result)
    if factor == "metric":
        _spread_uncalibrated(gathered)
    some = [members for members in gathered.values() if len({each.factors[factor] for each in members}) > 1]
    return [_matched_group(findings, factor, members) for members in some]


def _setting(result: Result, without: Collection[str]) -> Setting:
    return tuple((name, level) for name, level in result.factors.items() if name not in without)


def _spread_uncalibrated(gathered: dict[Setting, list[Result]]) -> None:
    """Move results that no calibration text is behind into the groups that are the same otherwise."""
    none = ("calibration", PLAIN["calibration"])
    calibrated = [key for key in gathered if none not in key]
    for key in [key for key in gathered if none in key]:
        rest = _without_calibration(key)
        others = [other for other in calibrated if _without_calibration(other) == rest]
        for other in others:
            gathered[other] = [*gathered[key], *gathered[other]]
        if others:
            del gathered[key]


def _without_calibration(setting: Setting) -> Setting:
    return tuple(pair for pair in setting if pair[0] != "calibration")


def _matched_group(findings: Findings, factor: str, members: Sequence[Result]) -> MatchedGroup:
    members = sorted(members, key=lambda each: findings.levels[factor].index(each.factors[factor]))
    first = next((each for each in members if each.factors["calibration"] != PLAIN["calibration"]), members[-1])
    unhealed = _unhealed(findings, members) if factor in HEALING else None
    constant = {"heal"} if factor == "data" and "heal" not in findings.levels else set()
    title = findings.label(first, {factor} | constant)
    return MatchedGroup(title, factor, tuple(members), findings.bases.get(first.model), unhealed)


def _unhealed(findings: Findings, members: Sequence[Result]) -> Result | None:
    """The trial without healing if there is one, else what was measured of a healed one before its healing."""
    rest = _setting(members[0], HEALING)
    plain = (each for each in findings.results if each.role == PRUNED and _setting(each, HEALING) == rest)
    derived = (result for each in members if (result := before_healing(each, findings.tasks)))
    return next(plain, None) or next(derived, None)
