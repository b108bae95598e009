"""The cells, rows and columns of a report: each number leads to its steps, and is judged against others."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shortstack.machine.formats import shown, uncertainty
from shortstack.machine.tables import ABOVE, BELOW, NEAR, Cell, Column, Row
from shortstack.report.results import Measure
from shortstack.report.significance import Difference, Judgement


@dataclass(frozen=True)
class JudgedCell(Cell):
    """One number or word, the steps it comes from, and how it stands in its column."""

    steps: tuple[str, ...] = ()
    judgement: Judgement = field(default_factory=Judgement)

    @classmethod
    def of(cls, measure: Measure | None) -> JudgedCell:
        """The cell of what was measured; an empty one where nothing was."""
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
        changes = [("the unpruned model", self.judgement.base), ("the best", self.judgement.best)]
        return "; ".join(f"{gap(change, self.kind)} ({change.how}) than {name}" for name, change in changes if change)


EMPTY = JudgedCell(None, "text")


def gap(change: Difference, kind: str) -> str:
    """How far two measures of a kind are apart, in words: by points, or by nats of a perplexity."""
    unit = {"share": " points", "perplexity": " nats"}.get(kind, "")
    form = {"share": "share", "perplexity": "loss"}.get(kind, "number")
    size, error = abs(change.value), uncertainty(change.value, change.stderr, form)
    p = "" if change.p is None else f", p {'< 0.001' if change.p < 0.001 else f'= {change.p:.3f}'}"
    return f"{shown(size, form)}{f' ± {error}' if error else ''}{unit} {'better' if change.value > 0 else 'worse'}{p}"


@dataclass(frozen=True)
class ResultColumn(Column):
    """A column that makes the cells below it from what the rows are about: results or steps.

    measure: the column of the measures that it shows, whose numbers are judged against each other. compares: where the cell
    is made from how that measure stands beside the unpruned model's.
    """

    cell: Callable[[Any], JudgedCell] = lambda _subject: EMPTY
    measure: str = ""
    compares: Callable[[Difference], Any] | None = None


@dataclass(frozen=True)
class ResultRow(Row):
    """A row of what trials measured; factors: what a filter goes by."""

    factors: Mapping[str, str] = field(default_factory=dict)
    trials: tuple[int, ...] = ()
