"""Fair comparisons: results that differ in one factor and in nothing else."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from shortstack.report.labels import NONE, brief, tails, varying
from shortstack.report.results import AVERAGE, Measure, Result, before_healing, results, share_tasks, unpruned
from shortstack.runs import Runs

HEALING = {"heal", "data"}
UNSAID = {NONE["calibration"], NONE["data"], NONE["strategy"], NONE["repair"]}  # what is plain needs no word


@dataclass(frozen=True)
class Findings:
    """Everything that was measured, and what varies in it."""

    runs: Runs
    results: tuple[Result, ...]
    bases: Mapping[str, Result]
    tasks: tuple[str, ...]
    columns: tuple[str, ...]
    levels: Mapping[str, Sequence[str]]
    usual: Mapping[str, str]

    @classmethod
    def of(cls, runs: Runs, found: Sequence[Result]) -> Findings:
        tasks = share_tasks(found)
        bases = unpruned(runs, tasks)
        columns = dict.fromkeys(name for each in (*found, *bases.values()) for name in each.measures)
        levels, usual = varying(each.factors for each in found), _usual(found)
        return cls(runs, tuple(found), bases, tuple(tasks), tuple(columns), levels, usual)

    @cached_property
    def names(self) -> dict[str, str]:
        """What a column is called: the task, text or probe, paths by their ends."""
        shorter = tails(name.partition(":")[2] for name in self.columns)
        return {name: shorter[name.partition(":")[2]] or name for name in self.columns}

    @property
    def headline(self) -> str | None:
        """The column that a short comparison goes by: the average, else the only task, else the first perplexity."""
        if AVERAGE in self.columns:
            return AVERAGE
        texts = [name for name in self.columns if name.startswith("perplexity:")]
        return next(iter([*self.tasks, *texts]), None)

    def measured(self, kind: str) -> list[str]:
        """The columns of a kind: task, perplexity, probe."""
        return [name for name in self.columns if name.startswith(f"{kind}:")]

    def score(self, result: Result | None) -> Measure | None:
        return result.measures.get(self.headline) if result and self.headline else None

    def name(self, result: Result, without: frozenset[str] | set[str] = frozenset()) -> str:
        """The label, or a word where nothing needs telling apart."""
        return self.label(result, without) or "pruned"

    def label(self, result: Result, without: frozenset[str] | set[str] = frozenset()) -> str:
        """What sets this result apart from others, in words."""
        said = [result.factors[name] for name in self.levels if name not in without and result.factors.get(name)]
        return " · ".join(brief(word) for word in said if word not in UNSAID and word not in self.usual.values())


def _usual(found: Sequence[Result]) -> dict[str, str]:
    """The calibration and the healing data of most results: labels say only what is not usual."""
    usual: dict[str, str] = {}
    for name in ("calibration", "data"):
        counts = Counter(each.factors[name] for each in found if each.factors[name] != NONE[name])
        if counts:
            usual[name] = counts.most_common(1)[0][0]
    return usual


@dataclass(frozen=True)
class Group:
    """Results that differ in one factor alone, the unpruned model beside them; unhealed: the same before healing."""

    title: str
    factor: str
    results: tuple[Result, ...]
    base: Result | None
    unhealed: Result | None = None

    def named(self, result: Result) -> str:
        return result.factors[self.factor]


def groups(findings: Findings, factor: str) -> list[Group]:
    """The results in groups that differ in `factor` alone, where at least two levels of it were measured.

    A result without calibration (the tail, random layers) stands in every group that agrees with it otherwise. Groups of
    healing methods and of healing data hold healed results, with the one that was not healed beside them.
    """
    wanted = [each for each in findings.results if factor not in HEALING or each.factors["heal"] != NONE["heal"]]
    gathered: dict[tuple[tuple[str, str], ...], list[Result]] = {}
    for result in wanted:
        gathered.setdefault(_rest(result, {factor}), []).append(result)
    if factor == "metric":
        _spread_uncalibrated(gathered)
    compared = [members for members in gathered.values() if len({each.factors[factor] for each in members}) > 1]
    return [_group(findings, factor, members) for members in compared]


def _rest(result: Result, without: set[str]) -> tuple[tuple[str, str], ...]:
    return tuple((name, level) for name, level in result.factors.items() if name not in without)


def _spread_uncalibrated(gathered: dict[tuple[tuple[str, str], ...], list[Result]]) -> None:
    """Move results that no calibration text is behind into the groups that are the same otherwise."""
    none = ("calibration", NONE["calibration"])
    for key in [key for key in gathered if none in key]:
        others = [
            other
            for other in gathered
            if other != key and _without_calibration(other) == _without_calibration(key) and none not in other
        ]
        for other in others:
            gathered[other] = [*gathered[key], *gathered[other]]
        if others:
            del gathered[key]


def _without_calibration(key: tuple[tuple[str, str], ...]) -> tuple[tuple[str, str], ...]:
    return tuple(pair for pair in key if pair[0] != "calibration")


def _group(findings: Findings, factor: str, members: list[Result]) -> Group:
    members = sorted(members, key=lambda each: findings.levels[factor].index(each.factors[factor]))
    first = next((each for each in members if each.factors["calibration"] != NONE["calibration"]), members[-1])
    unhealed = _unhealed(findings, members) if factor in HEALING else None
    constant = {"heal"} if factor == "data" and "heal" not in findings.levels else set()
    return Group(
        findings.label(first, {factor} | constant),
        factor,
        tuple(members),
        findings.bases.get(first.model),
        unhealed,
    )


def _unhealed(findings: Findings, members: Sequence[Result]) -> Result | None:
    """The trial without healing if there is one, else what was measured of a healed one before its healing."""
    rest = _rest(members[0], HEALING)
    plain = (each for each in findings.results if each.factors["heal"] == NONE["heal"] and _rest(each, HEALING) == rest)
    derived = (row for each in members if (row := before_healing(each, findings.tasks)))
    return next(plain, None) or next(derived, None)


def with_seeds_said(result: Result) -> str:
    """How many seeds a row is the mean of, if more than one."""
    return f" ({len(result.trials)} seeds)" if len(result.trials) > 1 else ""


def findings(runs: Runs) -> Findings:
    """What the trials measured, ready for tables and figures."""
    return Findings.of(runs, results(runs))
