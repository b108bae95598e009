"""Which differences are more than chance: paired by document where outcomes were kept, else from standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from shortstack.evaluation import paired
from shortstack.report.results import Measure

LEVEL = 0.05
McNEMAR, PAIRED, UNPAIRED = "McNemar's exact test", "differences on the same documents", "standard errors alone"
SAME, UNKNOWN = "the same measurement", "no standard errors"


@dataclass(frozen=True)
class Difference:
    """One measure minus another, in the units that are compared (of perplexities the loss).

    p: two-sided, None where it is unknown; how: the test that it is from. freedom: degrees of freedom of the standard error.
    """

    value: float
    stderr: float | None
    p: float | None
    how: str
    freedom: float = math.inf

    @property
    def significant(self) -> bool:
        return self.p is not None and self.p < LEVEL

    @property
    def interval(self) -> tuple[float, float] | None:
        """95 % of where the difference may lie, by Student's law; None where nothing is known of how far it spreads."""
        if self.stderr is None or not math.isfinite(self.value):
            return None
        return paired.students_interval(self.value, self.stderr, self.freedom)

    @property
    def worse(self) -> bool:
        """Whether it is below 0, beyond chance."""
        return self.significant and self.value < 0


@dataclass(frozen=True)
class Judgement:
    """How a number stands in its column: its place among the rows (1 best, 2 second, 0 neither), and what sets it apart.

    base: its difference from the unpruned model, best: from the best row; p-values are Holm-corrected over the block.
    """

    place: int = 0
    base: Difference | None = None
    best: Difference | None = None


def difference(ours: Measure, theirs: Measure) -> Difference:
    """Return how much better `ours` is: above 0 where it is better, of a perplexity too."""
    if ours.steps == theirs.steps:
        return Difference(0.0, 0.0, 1.0, SAME)
    return _with_seeds(_on_documents(ours, theirs), ours, theirs)


def _on_documents(ours: Measure, theirs: Measure) -> Difference:
    """Take the difference, where the choice of documents alone is chance."""
    if ours.parts and len(ours.parts) == len(theirs.parts):
        return _between_averages([_on_documents(a, b) for a, b in zip(ours.parts, theirs.parts, strict=True)])
    if ours.steps == theirs.steps:
        return Difference(0.0, 0.0, 1.0, SAME)
    if ours.outcomes and theirs.outcomes and ours.outcomes.keys() == theirs.outcomes.keys() and len(ours.outcomes) > 1:
        return _paired(ours.documents, theirs.documents)
    (level, _), (other, _) = ours.compared, theirs.compared
    value = (level - other) * (1 if ours.higher else -1)
    spread, other_spread = ours.document_stderr, theirs.document_stderr
    alike = value and 0 in (spread, other_spread) and not (ours.seed_variance or theirs.seed_variance)
    if spread is None or other_spread is None or alike:  # equal values tell no spread
        return Difference(value, None, None, UNKNOWN)
    return _tested(value, math.hypot(spread, other_spread), math.inf, UNPAIRED)


def _with_seeds(unseeded: Difference, ours: Measure, theirs: Measure) -> Difference:
    """Count what a seed changes as chance, too: Welch's test, since few seeds say little of their spread."""
    several = [measure for measure in (ours, theirs) if measure.seed_variance]
    if not several or unseeded.stderr is None:
        return unseeded
    variances = [(unseeded.stderr**2, unseeded.freedom)]
    variances += [(measure.seed_variance, len(measure.by_seed) - 1.0) for measure in several]
    return _tested(unseeded.value, *_sum_of(variances), f"{unseeded.how}, with the spread of seeds")


def _sum_of(variances: Sequence[tuple[float, float]]) -> tuple[float, float]:
    """Return the standard error of a sum of independent numbers, and its degrees of freedom (Satterthwaite).

    variances: of each the variance, and the degrees of freedom that it was estimated with.
    """
    total = sum(variance for variance, _ in variances)
    few = sum(variance**2 / freedom for variance, freedom in variances)
    return math.sqrt(total), total**2 / few if few else math.inf


def _paired(ours: np.ndarray, theirs: np.ndarray) -> Difference:
    how = McNEMAR if paired.binary(ours, theirs) else PAIRED
    value, stderr = float((ours - theirs).mean()), paired.paired_stderr(ours, theirs)
    return Difference(value, stderr, paired.paired_p(ours, theirs), how, len(ours) - 1)


def _between_averages(parts: Sequence[Difference]) -> Difference:
    """Take the difference of two averages: tasks are independent of each other, so that variances add up."""
    value = sum(part.value for part in parts) / len(parts)
    if any(part.stderr is None or (part.value and not part.stderr) for part in parts):  # equal shifts tell no spread
        return Difference(value, None, None, UNKNOWN)
    stderr, freedom = _sum_of([(((part.stderr or 0.0) / len(parts)) ** 2, part.freedom) for part in parts])
    return _tested(value, stderr, freedom, UNPAIRED if any(part.how == UNPAIRED for part in parts) else PAIRED)


def _tested(value: float, stderr: float, freedom: float, how: str) -> Difference:
    """Test a difference under Student's law, two-sided; p is unknown where nothing is known of how far it would spread."""
    if not math.isfinite(value):
        return Difference(value, stderr, None, how)
    if stderr == 0:
        return Difference(value, stderr, None if value else 1.0, how)
    return Difference(value, stderr, paired.students_p(value / stderr, freedom), how, freedom)


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
    """Judge each number of a block against the unpruned model and the block's best row, column by column.

    The p-values of the comparisons with the unpruned model are corrected together, and so are those with the best.
    """
    cells: dict[tuple[int, str], Judgement] = {}
    for column in columns:
        measured = [row.get(column) for row in rows]
        ranks = places([measure.better if measure else math.nan for measure in measured])
        best = next((measure for measure, place in zip(measured, ranks, strict=True) if place == 1), None)
        for row, (measure, place) in enumerate(zip(measured, ranks, strict=True)):
            if measure:
                from_base = difference(measure, base[column]) if column in base else None
                from_best = difference(measure, best) if best and place != 1 else None
                cells[row, column] = Judgement(place, from_base, from_best)
    from_bases = corrected([judgement.base for judgement in cells.values()])
    from_bests = corrected([judgement.best for judgement in cells.values()])
    judged: list[dict[str, Judgement]] = [{} for _ in rows]
    for ((row, column), judgement), *changes in zip(cells.items(), from_bases, from_bests, strict=True):
        judged[row][column] = Judgement(judgement.place, *changes)
    return judged


def corrected(changes: Sequence[Difference | None]) -> list[Difference | None]:
    """Correct the p-values as Holm does; unknown ones stay unknown and do not count."""
    ps = paired.holm({str(place): change.p for place, change in enumerate(changes) if change and change.p is not None})
    return [change and replace(change, p=ps.get(str(place))) for place, change in enumerate(changes)]
