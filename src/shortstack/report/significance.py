"""Which differences are more than chance: paired by document where outcomes were kept, else from standard errors."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from shortstack.evaluation.paired import holm
from shortstack.evaluation.paired import mcnemar as exact
from shortstack.report.results import Measure

LEVEL = 0.05
McNEMAR, PAIRED, UNPAIRED = "McNemar's exact test", "differences on the same documents", "standard errors alone"
mcnemar = lru_cache(maxsize=None)(exact)  # large counts take a while, and rows that share a checkpoint share them


@dataclass(frozen=True)
class Difference:
    """One measure minus another, in the units that are compared (of perplexities the loss); p: two-sided, None: unknown."""

    value: float
    stderr: float | None
    p: float | None
    how: str


@dataclass(frozen=True)
class Judgement:
    """Of a number in its column: its place among the rows (1 best, 2 second, 0 neither), and what sets it apart.

    base: its difference from the unpruned model, best: from the best row; p-values are Holm-corrected over the block.
    """

    place: int = 0
    base: Difference | None = None
    best: Difference | None = None

    @property
    def below_base(self) -> bool:
        return _significant(self.base) and self.base is not None and self.base.value < 0

    @property
    def above_base(self) -> bool:
        return _significant(self.base) and self.base is not None and self.base.value > 0

    @property
    def near_best(self) -> bool:
        """Not the best, and not told apart from it."""
        return self.best is not None and self.best.p is not None and self.best.p >= LEVEL


def _significant(difference: Difference | None) -> bool:
    return difference is not None and difference.p is not None and difference.p < LEVEL


def difference(ours: Measure, theirs: Measure) -> Difference:
    """How much better `ours` is: above 0 where it is better, of a perplexity too."""
    if ours.parts and len(ours.parts) == len(theirs.parts):
        return _of_averages([difference(a, b) for a, b in zip(ours.parts, theirs.parts, strict=True)])
    value = (ours.level - theirs.level) * (1 if ours.higher else -1)
    if ours.steps == theirs.steps:
        return Difference(0.0, 0.0, 1.0, "the same measurement")
    if ours.outcomes and theirs.outcomes and ours.outcomes.keys() == theirs.outcomes.keys() and ours.n != 1:
        return _paired(ours.documents - theirs.documents)
    if ours.spread is None or theirs.spread is None:
        return Difference(value, None, None, "no standard errors")
    stderr = math.hypot(ours.spread, theirs.spread)
    return Difference(value, stderr, _normal(value, stderr), UNPAIRED)


def _paired(differences: np.ndarray) -> Difference:
    n, value = len(differences), float(differences.mean())
    stderr = float(differences.std(ddof=1) / math.sqrt(n)) if n > 1 else None
    if np.isin(differences, (-1, 0, 1)).all():
        return Difference(value, stderr, mcnemar(int((differences > 0).sum()), int((differences < 0).sum())), McNEMAR)
    return Difference(value, stderr, _normal(value, stderr), PAIRED)


def _of_averages(parts: Sequence[Difference]) -> Difference:
    """Tasks are independent of each other, so that variances add up."""
    value = sum(part.value for part in parts) / len(parts)
    how = UNPAIRED if any(part.how == UNPAIRED for part in parts) else PAIRED
    known = [part.stderr for part in parts if part.stderr is not None]
    if len(known) < len(parts):
        return Difference(value, None, None, "no standard errors")
    stderr = math.sqrt(sum(error**2 for error in known)) / len(parts)
    return Difference(value, stderr, _normal(value, stderr), how)


def _normal(value: float, stderr: float | None) -> float | None:
    """Two-sided p of a difference under the normal law."""
    if stderr is None or not math.isfinite(value):
        return None
    if stderr == 0:
        return 1.0 if value == 0 else 0.0
    return math.erfc(abs(value) / stderr / math.sqrt(2))


def places(values: Sequence[float]) -> list[int]:
    """1 for the best of values (equal ones share it), 2 for the next where there are three or more, else 0.

    >>> places([0.5, 0.7, 0.7, 0.1]), places([1.0, 2.0]), places([3.0])
    ([2, 1, 1, 0], [0, 1], [0])
    """
    known = [value for value in values if not math.isnan(value)]
    if len(known) < 2:
        return [0] * len(values)
    ranked = sorted(set(known), reverse=True)[: 2 if len(known) > 2 else 1]
    return [0 if math.isnan(value) or value not in ranked else 1 + ranked.index(value) for value in values]


def judge(
    blocks: Sequence[Sequence[Mapping[str, Measure]]],
    bases: Sequence[Mapping[str, Measure] | None],
    columns: Sequence[str],
) -> list[list[dict[str, Judgement]]]:
    """Each number against the unpruned model of its block and against the best row of its block, column by column.

    The p-values of a block's comparisons with the unpruned model are corrected together, and so are those with its best.
    """
    return [_block(rows, base or {}, columns) for rows, base in zip(blocks, bases, strict=True)]


def _block(
    rows: Sequence[Mapping[str, Measure]], base: Mapping[str, Measure], columns: Sequence[str]
) -> list[dict[str, Judgement]]:
    found = {
        (row, column): judgement
        for column in columns
        for row, judgement in _column([each.get(column) for each in rows], base.get(column)).items()
    }
    against_base = _corrected({place: each.base for place, each in found.items() if each.base})
    against_best = _corrected({place: each.best for place, each in found.items() if each.best})
    return [
        {
            column: Judgement(
                found[row, column].place, against_base.get((row, column)), against_best.get((row, column))
            )
            for column in columns
            if (row, column) in found
        }
        for row in range(len(rows))
    ]


def _column(measured: Sequence[Measure | None], base: Measure | None) -> dict[int, Judgement]:
    ranks = places([each.better if each else math.nan for each in measured])
    best = next((each for each, place in zip(measured, ranks, strict=True) if place == 1), None)
    return {
        row: Judgement(
            place,
            difference(each, base) if base else None,
            difference(each, best) if best and place != 1 else None,
        )
        for row, (each, place) in enumerate(zip(measured, ranks, strict=True))
        if each
    }


def _corrected(known: Mapping[tuple[int, str], Difference]) -> dict[tuple[int, str], Difference]:
    """The same differences with Holm's p-values."""
    named = {f"{row}:{column}": (row, column) for row, column in known}
    ps = holm({name: p for name, place in named.items() if (p := known[place].p) is not None})
    return {place: replace(known[place], p=ps.get(name)) for name, place in named.items()}
