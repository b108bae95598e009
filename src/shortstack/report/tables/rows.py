"""Rows of tables: results under columns, each number judged against those of its block."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from shortstack.machine.tables import Column
from shortstack.report.columns import step_cell
from shortstack.report.judged import EMPTY, JudgedCell, ResultColumn, ResultRow
from shortstack.report.results import Result
from shortstack.report.significance import Judgement, judge
from shortstack.runs.records import StepRecord

UNPRUNED = "unpruned"


def row_of(
    label: str, values: Iterable[Any], columns: Sequence[Column], step: StepRecord | None = None, *, base: bool = False
) -> ResultRow:
    """A row of what is not judged, of values or cells; step: that they are from."""
    cells = [
        value if isinstance(value, JudgedCell) else step_cell(value, column.kind, step)
        for value, column in zip(values, columns, strict=True)
    ]
    return ResultRow((JudgedCell(label, "text"), *cells), base)


def judged_rows(
    results: Sequence[Result], base: Result | None, columns: Sequence[ResultColumn], label: Callable[[Result], str]
) -> list[ResultRow]:
    """The rows of a block, the unpruned model's first, each number judged against it and against the best."""
    names = [column.measure for column in columns if column.measure]
    judged = judge([each.measures for each in results], base.measures if base else {}, names)
    rows = [_result_row(label(each), each, columns, row) for each, row in zip(results, judged, strict=True)]
    return [*([base_row(UNPRUNED, base, columns)] if base else []), *rows]


def base_row(label: str, base: Result, columns: Sequence[ResultColumn]) -> ResultRow:
    """A row that others are compared with."""
    return row_of(label, (column.cell(base) for column in columns), columns, base=True)


def _result_row(
    label: str, result: Result, columns: Sequence[ResultColumn], judged: Mapping[str, Judgement]
) -> ResultRow:
    """The row of a result, its label saying how many seeds it is the mean of, if more than one."""
    cells = [_cell(column, result, judged.get(column.measure, Judgement())) for column in columns]
    seeds = f" ({result.seeds} seeds)" if result.seeds > 1 else ""
    return ResultRow((JudgedCell(label + seeds, "text"), *cells), trials=result.numbers)


def _cell(column: ResultColumn, result: Result, judgement: Judgement) -> JudgedCell:
    if column.compares is None:
        return replace(column.cell(result), judgement=judgement)
    if judgement.base is None:
        return EMPTY
    return replace(column.compares(judgement.base), steps=result.measures[column.measure].steps)
