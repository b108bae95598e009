"""Tables of one factor: results that differ in nothing else, each number judged against those of its block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shortstack.machine.tables import Block, Column, Table
from shortstack.report.columns import (
    HEAL_MEMORY,
    HEAL_TIME,
    HELD_OUT,
    MAKE_TIME,
    REMOVED,
    TRAINABLE,
    base_row,
    judged_rows,
)
from shortstack.report.columns import all_columns as every
from shortstack.report.columns import short_columns as short
from shortstack.report.findings import Findings, MatchedGroup, matched_groups
from shortstack.report.judged import ResultColumn, ResultRow

BEFORE = "pruned, not healed"
HEADINGS = {"heal": "healing", "data": "healing data"}  # of factors whose name says too little


@dataclass(frozen=True)
class FactorTable:
    """A table over the levels of a factor; calling it makes the table, or None where the factor does not vary.

    measures: the columns of measures; extras: those beside them.
    """

    factor: str
    key: str
    title: str
    measures: Callable[[Findings], list[ResultColumn]]
    extras: tuple[ResultColumn, ...]

    def __call__(self, findings: Findings) -> Table | None:
        groups = matched_groups(findings, self.factor)
        if not groups:
            return None
        columns = (*self.measures(findings), *self.extras)
        blocks = tuple(Block(group.title, tuple(_rows(self.factor, group, columns))) for group in groups)
        heading = HEADINGS.get(self.factor, self.factor)
        caption = f"Rows of a block differ in the {heading} alone."
        return Table(self.title, (Column(heading, "text"), *columns), blocks, caption, key=self.key)


def _rows(factor: str, group: MatchedGroup, columns: Sequence[ResultColumn]) -> list[ResultRow]:
    rows = judged_rows(group.results, group.base, columns, lambda result: result.factors[factor])
    if group.unhealed:
        rows.insert(bool(group.base), base_row(BEFORE, group.unhealed, columns))
    return rows


HEALING_EXTRAS = (TRAINABLE, HELD_OUT, HEAL_TIME, HEAL_MEMORY)
FACTOR_TABLES = (  # as the tables 1, 2 and 4, 5, 6 and 7 of the paper, which has none of repairs
    FactorTable("metric", "metrics", "Which layers to remove", every, (REMOVED,)),
    FactorTable("heal", "healing", "How to heal", short, HEALING_EXTRAS),
    FactorTable("strategy", "strategies", "All at once or step by step", short, (REMOVED, MAKE_TIME)),
    FactorTable("calibration", "calibration", "How much the calibration text matters", short, (REMOVED,)),
    FactorTable("data", "data", "How much the healing data matters", every, (HELD_OUT,)),
    FactorTable("repair", "repair", "Does repair help", short, (REMOVED,)),
)
