"""The cells, rows and columns of a report: each number leads to its steps, and is judged against others."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from shortstack.machine.formats import shown
from shortstack.machine.numbers import perplexity
from shortstack.machine.tables import ABOVE, BELOW, NEAR, Cell, Column, Row
from shortstack.report.results import Measure
from shortstack.report.significance import Difference, Judgement


@dataclass(frozen=True)
class MeasuredChange:
    """A difference as people read it, with its 95 % interval: in points of a share, as a factor of a perplexity."""

    value: float
    interval: tuple[float, float] | None
    kind: str
    unit: str

    @classmethod
    def of(cls, difference: Difference, kind: str) -> MeasuredChange:
        """Take the difference of two measures of a kind."""
        if kind == "perplexity":
            ends = difference.interval and (perplexity(-difference.interval[1]), perplexity(-difference.interval[0]))
            factor = perplexity(-difference.value)
            return cls(factor, ends, "ratio" if factor < 100 else "number", "times")
        form, unit = ("points", "points") if kind == "share" else ("difference", "")
        return cls(difference.value, difference.interval, form, unit)

    @property
    def text(self) -> str:
        return f"{shown(self.value, self.kind)} {self.unit}".rstrip()

    @property
    def within(self) -> str:
        """The interval in words; empty where it is unknown."""
        return f"95% interval {shown(self.interval, self.kind)}" if self.interval else ""

    def said(self, where: str = "", *, than: str = "") -> str:
        """Say it as a verb: is 5.0 points worse than the unpruned model, has 1.2 times its perplexity."""
        within = f" ({self.within})" if self.within else ""
        if self.unit == "times":
            return f"has {self.text} the perplexity{f' of {than}' if than else ''}{within}"
        size = shown(abs(self.value), self.kind).lstrip("+")
        how = "better" if self.value > 0 else "worse" if self.value < 0 else "apart"
        better = f"{size} {self.unit}".rstrip()
        return f"is {better} {how}{f' on {where}' if where else ''}{f' than {than}' if than else ''}{within}"

    @property
    def cells(self) -> tuple[JudgedCell, JudgedCell]:
        """A cell of the change, and one of its interval."""
        return JudgedCell(self.value, self.kind, note=self.unit), JudgedCell(self.interval, self.kind)


@dataclass(frozen=True)
class JudgedCell(Cell):
    """One number or word, the steps it comes from, and how it stands in its column."""

    steps: tuple[str, ...] = ()
    judgement: Judgement = field(default_factory=Judgement)

    @classmethod
    def of(cls, measure: Measure | None) -> JudgedCell:
        """Make the cell of what was measured; an empty one where nothing was."""
        return cls(measure.value, measure.kind, measure.stderr, steps=measure.steps) if measure else EMPTY

    @property
    def sort(self) -> Any:
        """The sort key; None is last in either direction."""
        if isinstance(self.value, tuple):
            return self.value[0]
        return None if isinstance(self.value, float) and math.isnan(self.value) else self.value

    @property
    def place(self) -> int:
        return self.judgement.place

    @property
    def marks(self) -> str:
        base, best = self.judgement.base, self.judgement.best
        apart = "" if base is None or not base.significant else BELOW if base.worse else ABOVE
        return apart + (NEAR if best and best.p is not None and not best.significant else "")

    @property
    def why(self) -> str:
        """How it compares, in words."""
        comparisons = [("the unpruned model", self.judgement.base), ("the best", self.judgement.best)]
        return "; ".join(
            f"against {name}: {_tested(difference, self.kind)}" for name, difference in comparisons if difference
        )


def _tested(difference: Difference, kind: str) -> str:
    p = "" if difference.p is None else f"p {'< 0.001' if difference.p < 0.001 else f'= {difference.p:.3f}'}, "
    return f"{MeasuredChange.of(difference, kind).text} ({p}{difference.how})"


EMPTY = JudgedCell(None, "text")


@dataclass(frozen=True)
class ResultColumn(Column):
    """A column that makes the cells below it from what the rows are about: results or steps.

    measure: the column of the measures that it shows, whose numbers are judged against each other. compares: where the cell
    is made from how that measure stands beside the unpruned model's.
    """

    cell: Callable[[Any], JudgedCell] = lambda _subject: EMPTY
    measure: str = ""
    compares: Callable[[Difference], JudgedCell] | None = None


@dataclass(frozen=True)
class ResultRow(Row):
    """A row of what trials measured."""

    trials: tuple[int, ...] = ()
