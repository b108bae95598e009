"""Rows of tables: results under columns, each number judged against those of its block."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from shortstack.report.results import Result
from shortstack.report.significance import Judgement, judge
from shortstack.report.table import Column, TableRow

UNPRUNED = "unpruned"


def cells_of(subject: Any, columns: Sequence[Column]) -> tuple[Any, ...]:
    """The cells of what a row is about."""
    return tuple(column.cell(subject) for column in columns)


def result_row(
    label: str, result: Result, columns: Sequence[Column], judged: Mapping[str, Judgement] | None = None
) -> TableRow:
    """The row of a result, its label saying how many seeds it is the mean of, if more than one."""
    cells = [replace(c.cell(result), judgement=(judged or {}).get(c.measure, Judgement())) for c in columns]
    seeds = f" ({result.seeds} seeds)" if result.seeds > 1 else ""
    return TableRow(label + seeds, tuple(cells), result.factors, result.numbers)


def judged_rows(
    results: Sequence[Result], base: Result | None, columns: Sequence[Column], label: Callable[[Result], str]
) -> list[TableRow]:
    """The rows of a block, the unpruned model's first, each number judged against it and against the best."""
    names = [column.measure for column in columns if column.measure]
    judged = judge([each.measures for each in results], base.measures if base else {}, names)
    rows = [result_row(label(each), each, columns, row) for each, row in zip(results, judged, strict=True)]
    return [*([base_row(base, columns)] if base else []), *rows]


def base_row(base: Result, columns: Sequence[Column]) -> TableRow:
    """The row of an unpruned model, which is no trial's own."""
    return TableRow(UNPRUNED, cells_of(base, columns), {"model": base.model}, base=True)
