"""A table as data: what the page, Markdown, LaTeX and CSV are written from."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shortstack.report.format import shown, uncertainty
from shortstack.report.results import Measure
from shortstack.report.significance import SAME, Difference, Judgement

BELOW, ABOVE, NEAR = "↓", "↑", "≈"
LEGEND = {
    BELOW: "worse than unpruned",
    ABOVE: "better than unpruned",
    NEAR: "within noise of the best",
}


@dataclass(frozen=True)
class Cell:
    """One number or word, the steps it comes from, and how it stands in its column."""

    value: float | str | None
    kind: str
    stderr: float | None = None
    steps: tuple[str, ...] = ()
    judgement: Judgement = field(default_factory=Judgement)

    @classmethod
    def of(cls, measure: Measure | None) -> Cell:
        """The cell of what was measured; an empty one where nothing was."""
        return cls(measure.value, measure.kind, measure.stderr, measure.steps) if measure else cls(None, "text")

    @property
    def text(self) -> str:
        return shown(self.value, self.kind)

    @property
    def error(self) -> str:
        return uncertainty(self.value, self.stderr, self.kind) if isinstance(self.value, float) else ""

    @property
    def sort(self) -> float | str | None:
        """What sorting goes by; None is last in either direction."""
        return None if isinstance(self.value, float) and math.isnan(self.value) else self.value

    @property
    def marks(self) -> str:
        """How it stands, in signs: those of LEGEND."""
        base, best = self.judgement.base, self.judgement.best
        apart = "" if base is None or not base.significant else BELOW if base.worse else ABOVE
        return apart + (NEAR if best and best.p is not None and not best.significant else "")

    @property
    def why(self) -> str:
        """How it compares, in words."""
        changes = [("the unpruned model", self.judgement.base), ("the best", self.judgement.best)]
        return "; ".join(f"{_comparison(change, self.kind)} {name}" for name, change in changes if change)


def _comparison(change: Difference, kind: str) -> str:
    scale, unit = {"share": (100, " points"), "perplexity": (1, " nats")}.get(kind, (1, ""))
    spread = "" if change.stderr is None else f" ± {scale * change.stderr:.2g}"
    p = "" if change.p is None else f", p {'< 0.001' if change.p < 0.001 else f'= {change.p:.3f}'}"
    direction = "better" if change.value > 0 else "worse"
    return f"{abs(scale * change.value):.3g}{spread}{unit} {direction} ({change.how}{p}) than"


@dataclass(frozen=True)
class Column:
    """A heading, and how to make the cells below it from what the rows are about: results or steps.

    kind: of its values, as format.shown() has it; unit: of them, and where better values lie; title: what the heading
    means; measure: the column of the measures that
    it shows, whose numbers are judged against each other.
    """

    label: str
    kind: str
    cell: Callable[[Any], Cell]
    title: str = ""
    measure: str = ""
    unit: str = ""


@dataclass(frozen=True)
class TableRow:
    """Cells in the order of the columns; factors: what a filter goes by; base: whether others are compared with it."""

    label: str
    cells: tuple[Cell, ...]
    factors: Mapping[str, str] = field(default_factory=dict)
    trials: tuple[int, ...] = ()
    base: bool = False


@dataclass(frozen=True)
class Block:
    """Rows that are compared with each other, the unpruned model's first."""

    title: str
    rows: tuple[TableRow, ...]


@dataclass(frozen=True)
class Table:
    """Blocks of rows under the same columns. finding: what the numbers say, in sentences computed from them."""

    key: str
    title: str
    heading: str
    columns: tuple[Column, ...]
    blocks: tuple[Block, ...]
    finding: str = ""

    @property
    def rows(self) -> list[TableRow]:
        return [row for block in self.blocks for row in block.rows]

    @property
    def headings(self) -> list[str]:
        return [self.heading, *(column.label for column in self.columns)]

    @property
    def judgements(self) -> list[Judgement]:
        return [cell.judgement for row in self.rows for cell in row.cells]

    @property
    def ranked(self) -> bool:
        """Whether rows are compared with each other in it."""
        return any(judgement.place for judgement in self.judgements)

    @property
    def marks(self) -> dict[str, str]:
        """The marks that occur, and what they say."""
        seen = {mark for row in self.rows for cell in row.cells for mark in cell.marks}
        return {mark: meaning for mark, meaning in LEGEND.items() if mark in seen}

    def legend(self, best: str, second: str) -> str:
        """What the marks mean; empty where nothing is ranked. best, second: how those two are shown."""
        if not self.ranked:
            return ""
        marks = "".join(f"; {mark} {meaning}" for mark, meaning in self.marks.items())
        return f"{best}: best of its block; {second}: second{marks}; ± one standard error."

    @property
    def tests(self) -> set[str]:
        """How differences were judged."""
        changes = [change for each in self.judgements for change in (each.base, each.best)]
        return {change.how for change in changes if change and change.p is not None} - {SAME}
