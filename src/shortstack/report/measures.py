"""Measures of trials, read from the JSON of their evaluations, and how they stand beside the base model and the best."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from shortstack.errors import DataError
from shortstack.evaluation import paired
from shortstack.evaluation.paired import Difference, Estimate, Sample, difference, holm
from shortstack.evaluation.suites import PERPLEXITIES, SHARES
from shortstack.machine.formats import shown
from shortstack.machine.numbers import perplexity
from shortstack.machine.tables import ABOVE, BELOW, NEAR, Cell
from shortstack.runs.records import StepRecord

UNITS = {"share": "points", "perplexity": "times"}  # of differences, by kind


@dataclass(frozen=True)
class Measure:
    """A number as it is shown, and the sample by which it is compared with others.

    kind: share (0 to 1), perplexity, or number. unit: of outcomes, if it is not that of the value.
    """

    kind: str
    estimate: Estimate
    sample: Sample
    higher: bool = True
    n: int | None = None
    chance: float | None = None
    unit: str = ""

    @property
    def value(self) -> float:
        return self.estimate.value

    @property
    def better(self) -> float:
        """A number that is higher if the model is better."""
        return self.value if self.higher else -self.value

    @property
    def link(self) -> str:
        """The step that it comes from."""
        return next(iter(self.sample.sources), "")

    @property
    def cell(self) -> Cell:
        return Cell(self.value, self.kind, self.estimate.stderr, link=self.link)


def average(parts: Sequence[Measure]) -> Measure:
    """Return the plain mean of shares."""
    sample = paired.average([part.sample for part in parts])
    known = [part.chance for part in parts if part.chance is not None]
    chance = sum(known) / len(known) if len(known) == len(parts) else None
    return Measure("share", sample.estimate, sample, chance=chance)


def over_seeds(seeds: Sequence[Measure]) -> Measure:
    """Return the mean over seeds."""
    if len({measure.sample.sources for measure in seeds}) == 1:
        return seeds[0]
    estimate = paired.seeds_mean([measure.estimate for measure in seeds])
    return replace(seeds[0], estimate=estimate, sample=paired.over_seeds([measure.sample for measure in seeds]))


# Measures of an evaluation


def measures(step: StepRecord) -> dict[str, Measure]:
    """Read every number of an evaluation: `task:NAME`, `perplexity:NAME`, `probe:NAME`."""
    kinds = {"task": ("tasks", _task), "perplexity": ("perplexity", _perplexity), "probe": ("probes", _task)}
    return {
        f"{kind}:{name}": read(data, step)
        for kind, (key, read) in kinds.items()
        for name, data in (step.result.get(key) or {}).items()
    }


def _task(data: Mapping[str, Any], step: StepRecord) -> Measure:
    metric, higher = data.get("metric", "acc"), data.get("higher_is_better", True)
    value, stderr = _number(data.get("value")), _stderr(data.get("stderr"))
    estimate, sources = Estimate(value if higher else -value, stderr), (step.key,)
    outcomes, macro = _outcomes(data, step), bool(data.get("macro"))
    return Measure(
        "share" if metric in SHARES else "number",
        Estimate(value, stderr),
        Sample.of(estimate, outcomes, macro=macro, sources=sources) if outcomes else Sample(estimate, sources=sources),
        higher,
        data.get("n"),
        data.get("chance"),
        f"nats per {PERPLEXITIES[metric]}" if metric in PERPLEXITIES else "",
    )


def _outcomes(data: Mapping[str, Any], step: StepRecord) -> dict[str, float] | None:
    """Read the outcome on each document or item; None if they were not kept, or one is no number."""
    documents, values = data.get("documents") or [], [_number(value) for value in data.get("outcomes") or []]
    if len(documents) != len(values):
        raise DataError(f"step {step.key} has {len(values)} outcomes of {len(documents)} documents; run it again")
    if not values or not all(map(math.isfinite, values)):
        return None
    return dict(zip(map(str, documents), values, strict=True))


def _perplexity(data: Mapping[str, Any], step: StepRecord) -> Measure:
    """Read a perplexity. Infinities are null in JSON: with a finite loss it was too large for a float."""
    value, loss, spread = _number(data.get("value")), _number(data.get("loss")), _stderr(data.get("loss_stderr"))
    if math.isnan(value) and not math.isnan(loss):
        value = math.inf
    if math.isnan(loss) and value > 0:
        loss = math.log(value)
    digest, losses = (data.get("windows") or {}).get("sha256"), data.get("window_losses") or []
    windows = {f"{digest} {place}": -_number(window) for place, window in enumerate(losses)}
    kept = windows if windows and all(map(math.isfinite, windows.values())) else None
    stderr = value * spread if spread is not None and math.isfinite(value) else None
    sample = Sample(Estimate(-loss, spread), kept, sources=(step.key,))
    return Measure("perplexity", Estimate(value, stderr), sample, False, data.get("tokens"))


def _number(value: Any) -> float:
    return math.nan if value is None else float(value)


def _stderr(value: Any) -> float | None:
    return None if value is None or not math.isfinite(value) else float(value)


# Differences as they are shown


@dataclass(frozen=True)
class Change:
    """How far a measure is from another; of a perplexity it is a factor."""

    difference: Difference
    kind: str
    unit: str

    @classmethod
    def of(cls, ours: Measure, theirs: Measure) -> Change:
        found = difference(ours.sample, theirs.sample)
        own = ours.unit if found.test.startswith(paired.PAIRED) else ""
        return cls(found, ours.kind, own or UNITS.get(ours.kind, ""))

    @property
    def value(self) -> float:
        return perplexity(-self.difference.value) if self.kind == "perplexity" else self.difference.value

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % confidence interval; None if it is unknown."""
        ends = self.difference.interval
        return (perplexity(-ends[1]), perplexity(-ends[0])) if ends and self.kind == "perplexity" else ends

    @property
    def form(self) -> str:
        """The kind of the change, as formats.shown() has it."""
        if self.kind == "perplexity":
            return "ratio" if self.value < 100 else "number"
        return "points" if self.kind == "share" else "difference"

    @property
    def test(self) -> str:
        p = self.difference.p
        said = "" if p is None else f"p {'< 0.001' if p < 0.001 else f'= {p:.3f}'}, "
        return f"{shown(self.value, self.form)} {self.unit}".rstrip() + f" ({said}{self.difference.test})"


@dataclass(frozen=True)
class Judgement:
    """How a measure stands in its column: its place among the rows (1 best, 2 second, 0 neither), and what sets it apart.

    base: its change from the base model, best: from the best row; p-values are Holm-corrected over the block.
    """

    place: int = 0
    base: Change | None = None
    best: Change | None = None

    def judged(self, cell: Cell) -> Cell:
        """Return the cell with its place, its marks and the tests behind them."""
        base, best = (each and each.difference for each in (self.base, self.best))
        marks = (BELOW if base.worse else ABOVE) if base and base.significant else ""
        marks += NEAR if best and best.p is not None and not best.significant else ""
        against = [("the base model", self.base), ("the best", self.best)]
        why = "; ".join(f"against {name}: {change.test}" for name, change in against if change)
        return replace(cell, place=self.place, marks=marks, why=why)


def places(values: Sequence[float]) -> list[int]:
    """Rank values: 1 is the best (equal ones share it), 2 the next where there are three or more, 0 any other.

    >>> places([0.5, 0.7, 0.7, 0.1]), places([1.0, 2.0]), places([3.0])
    ([2, 1, 1, 0], [0, 1], [0])
    """
    known = [value for value in values if not math.isnan(value)]
    if len(known) < 2:
        return [0] * len(values)
    ranked = sorted(set(known), reverse=True)[: 2 if len(known) > 2 else 1]
    return [0 if math.isnan(value) or value not in ranked else 1 + ranked.index(value) for value in values]


def judge(
    rows: Sequence[Mapping[str, Measure]], base: Mapping[str, Measure], columns: Sequence[str]
) -> list[dict[str, Judgement]]:
    """Judge each measure of a block against the base model and the block's best row, column by column.

    The p-values of the comparisons with the base model are corrected together, and so are those with the best.
    """
    cells: dict[tuple[int, str], Judgement] = {}
    for column in columns:
        measured = [row.get(column) for row in rows]
        ranks = places([measure.better if measure else math.nan for measure in measured])
        best = next((measure for measure, place in zip(measured, ranks, strict=True) if place == 1), None)
        for row, (measure, place) in enumerate(zip(measured, ranks, strict=True)):
            if measure:
                from_base = Change.of(measure, base[column]) if column in base else None
                from_best = Change.of(measure, best) if best and place != 1 else None
                cells[row, column] = Judgement(place, from_base, from_best)
    from_bases = _corrected([judgement.base for judgement in cells.values()])
    from_bests = _corrected([judgement.best for judgement in cells.values()])
    judged: list[dict[str, Judgement]] = [{} for _ in rows]
    for ((row, column), judgement), *changes in zip(cells.items(), from_bases, from_bests, strict=True):
        judged[row][column] = Judgement(judgement.place, *changes)
    return judged


def _corrected(changes: Sequence[Change | None]) -> list[Change | None]:
    """Correct the p-values as Holm does; unknown ones stay unknown and do not count."""
    known = {str(place): change.difference.p for place, change in enumerate(changes) if change}
    ps = holm({place: p for place, p in known.items() if p is not None})
    return [
        change and replace(change, difference=replace(change.difference, p=ps.get(str(place))))
        for place, change in enumerate(changes)
    ]
