"""A table as data: what the page, Markdown, LaTeX and CSV are written from."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from shortstack.report.format import shown, uncertainty
from shortstack.report.results import Measure
from shortstack.report.significance import Difference, Judgement

BELOW, ABOVE, NEAR = "↓", "↑", "≈"
LEGEND = {
    BELOW: "worse than unpruned",
    ABOVE: "better than unpruned",
    NEAR: "within noise of the best",
}


@dataclass(frozen=True)
class Column:
    """kind: as numbers.shown() has it; unit: said in the heading; better: 1 where more is better, -1 less, 0 neither."""

    key: str
    label: str
    kind: str
    better: int = 0
    title: str = ""


@dataclass(frozen=True)
class Cell:
    """One number or word, the steps it comes from, and how it stands in its column."""

    value: float | str | None
    kind: str
    stderr: float | None = None
    steps: tuple[str, ...] = ()
    judgement: Judgement = field(default_factory=Judgement)

    @classmethod
    def of(cls, measure: Measure | None, judgement: Judgement | None = None) -> Cell:
        if measure is None:
            return cls(None, "text")
        return cls(measure.value, measure.kind, measure.stderr, measure.steps, judgement or Judgement())

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
        judged = self.judgement
        return BELOW * judged.below_base + ABOVE * judged.above_base + NEAR * judged.near_best

    @property
    def why(self) -> str:
        """How it compares, in words."""
        parts = [("the unpruned model", self.judgement.base), ("the best", self.judgement.best)]
        return "; ".join(f"{_said(found, self.kind)} {name}" for name, found in parts if found)


def _said(found: Difference, kind: str) -> str:
    unit = {"share": " points", "perplexity": " nats"}.get(kind, "")
    value = 100 * found.value if kind == "share" else found.value
    error = found.stderr if found.stderr is None or kind != "share" else 100 * found.stderr
    spread = "" if error is None else f" ± {error:.2g}"
    p = "" if found.p is None else f", p {'< 0.001' if found.p < 0.001 else f'= {found.p:.3f}'}"
    return f"{abs(value):.3g}{spread}{unit} {'better' if value > 0 else 'worse'} ({found.how}{p}) than"


@dataclass(frozen=True)
class Row:
    """Cells in the order of the columns; factors: what a filter goes by; base: the unpruned model."""

    label: str
    cells: tuple[Cell, ...]
    factors: Mapping[str, str] = field(default_factory=dict)
    trials: tuple[int, ...] = ()
    base: bool = False


@dataclass(frozen=True)
class Block:
    """Rows that are compared with each other, the unpruned model's first."""

    title: str
    rows: tuple[Row, ...]


@dataclass(frozen=True)
class Table:
    """finding: what the numbers say, in sentences computed from them."""

    key: str
    title: str
    heading: str
    columns: tuple[Column, ...]
    blocks: tuple[Block, ...]
    finding: str = ""

    @property
    def rows(self) -> list[Row]:
        return [row for block in self.blocks for row in block.rows]

    @property
    def ranked(self) -> bool:
        """Whether rows are compared with each other in it."""
        return any(cell.judgement.place for row in self.rows for cell in row.cells)

    @property
    def marks(self) -> dict[str, str]:
        """The marks that occur, and what they say."""
        seen = {mark for row in self.rows for cell in row.cells for mark in cell.marks}
        return {mark: said for mark, said in LEGEND.items() if mark in seen}

    def legend(self, best: str, second: str) -> str:
        """What the marks mean; empty where nothing is ranked. best, second: how those two are shown."""
        if not self.ranked:
            return ""
        marks = "".join(f"; {mark} {said}" for mark, said in self.marks.items())
        return f"{best}: best of its block; {second}: second{marks}; ± one standard error."

    @property
    def tests(self) -> list[str]:
        """How differences were judged, for the note."""
        judged = [cell.judgement for row in self.rows for cell in row.cells]
        found = [each.how for one in judged for each in (one.base, one.best) if each and each.p is not None]
        return sorted(set(found) - {"the same measurement"})
