"""Tables of one factor: results that differ in nothing else, each number judged against those of its block."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from shortstack.report.columns import HEAL_MEMORY, HEAL_TIME, HELD_OUT, MAKE_TIME, REMOVED, TRAINABLE, all_columns
from shortstack.report.columns import short_columns as short
from shortstack.report.findings import HEALING, Findings, MatchedGroup, matched_groups
from shortstack.report.sentences import (
    Sentences,
    against_plain,
    calibration_spans,
    healed_back,
    healing_times,
    kept_of_unpruned,
    slower,
    winners,
)
from shortstack.report.table import Block, Column, Table, TableRow
from shortstack.report.tables.rows import judged_rows, result_row

BEFORE = "pruned, not healed"


@dataclass(frozen=True)
class FactorTable:
    """A table over the levels of a factor; calling it makes the table, or None where the factor does not vary.

    measures: the columns of measures; extras: those beside them; sentences: what the table says of its groups.
    """

    factor: str
    key: str
    title: str
    heading: str
    measures: Callable[[Findings], list[Column]]
    extras: tuple[Column, ...]
    sentences: tuple[Sentences, ...] = ()

    def __call__(self, findings: Findings) -> Table | None:
        groups = matched_groups(findings, self.factor)
        if not groups:
            return None
        columns = (*self.measures(findings), *self.extras)
        blocks = tuple(Block(group.title, tuple(_rows(group, columns))) for group in groups)
        words = [text for sentences in self.sentences for text in sentences(findings, groups)]
        finding = " ".join(words or winners(findings, groups))
        return Table(self.key, self.title, self.heading, columns, blocks, finding)


def _rows(group: MatchedGroup, columns: Sequence[Column]) -> list[TableRow]:
    rows = judged_rows(group.results, group.base, columns, group.level)
    if group.unhealed:
        row = result_row(BEFORE, group.unhealed, columns)
        factors = {name: level for name, level in row.factors.items() if name not in HEALING}
        rows.insert(bool(group.base), replace(row, label=BEFORE, factors=factors, base=True))
    return rows


# The paper has these as its tables 1, 2 and 4, 5, 6 and 7; the last is not in it.
METRICS = FactorTable(
    "metric", "metrics", "Which layers to remove", "metric", all_columns, (REMOVED,), (winners, kept_of_unpruned)
)
HEALING_METHODS = FactorTable(
    "heal",
    "healing",
    "How to heal",
    "healing",
    short,
    (TRAINABLE, HELD_OUT, HEAL_TIME, HEAL_MEMORY),
    (winners, healed_back, healing_times),
)
STRATEGIES = FactorTable(
    "strategy",
    "strategies",
    "All at once or step by step",
    "strategy",
    short,
    (REMOVED, MAKE_TIME),
    (against_plain, slower),
)
CALIBRATIONS = FactorTable(
    "calibration",
    "calibration",
    "How much the calibration text matters",
    "calibration",
    short,
    (REMOVED,),
    (calibration_spans,),
)
HEALING_DATA = FactorTable(
    "data", "data", "How much the healing data matters", "healing data", all_columns, (HELD_OUT,), (winners,)
)
REPAIRS = FactorTable("repair", "repair", "Does repair help", "repair", short, (REMOVED,), (against_plain,))
