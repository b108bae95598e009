"""Tables of one factor: results that differ in nothing else, each number judged against those of its block."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shortstack.report.columns import (
    HEAL_MEMORY,
    HEAL_TIME,
    HELD_OUT,
    MAKE_TIME,
    REMOVED,
    TRAINABLE,
    UNPRUNED,
    Extra,
    all_columns,
    column_of,
    extra_cells,
    short_columns,
    trial_numbers,
)
from shortstack.report.findings import Findings, Group, groups, with_seeds_said
from shortstack.report.sentences import of_calibrations, of_data, of_healing, of_metrics, of_repairs, of_strategies
from shortstack.report.significance import judge
from shortstack.report.table import Block, Cell, Row, Table

BEFORE = "pruned, not healed"


def metrics(found: Findings) -> Table | None:
    """Metric by task, as the paper's table 1: a block for each model, drop and healing."""
    return _contest(
        found,
        "metric",
        key="metrics",
        title="Which layers to remove",
        heading="metric",
        columns=all_columns(found),
        extras=[REMOVED],
        finding=of_metrics,
    )


def healing(found: Findings) -> Table | None:
    """The ways to heal one cut, with what they train and take, as the paper's tables 2 and 4."""
    extras = [TRAINABLE, HELD_OUT, HEAL_TIME, HEAL_MEMORY]
    return _contest(
        found,
        "heal",
        key="healing",
        title="How to heal",
        heading="healing",
        columns=short_columns(found),
        extras=extras,
        finding=of_healing,
    )


def strategies(found: Findings) -> Table | None:
    """One cut against cutting and healing in turns, as the paper's table 5."""
    return _contest(
        found,
        "strategy",
        key="strategies",
        title="All at once or step by step",
        heading="strategy",
        columns=short_columns(found),
        extras=[REMOVED, MAKE_TIME],
        finding=of_strategies,
    )


def calibrations(found: Findings) -> Table | None:
    """The same metric on other calibration text, as the paper's table 6."""
    return _contest(
        found,
        "calibration",
        key="calibration",
        title="How much the calibration text matters",
        heading="calibration",
        columns=short_columns(found),
        extras=[REMOVED],
        finding=of_calibrations,
    )


def healing_data(found: Findings) -> Table | None:
    """The same healing on other data, as the paper's table 7."""
    return _contest(
        found,
        "data",
        key="data",
        title="How much the healing data matters",
        heading="healing data",
        columns=all_columns(found),
        extras=[HELD_OUT],
        finding=of_data,
    )


def repairs(found: Findings) -> Table | None:
    """The same cut with and without repair."""
    return _contest(
        found,
        "repair",
        key="repair",
        title="Does repair help",
        heading="repair",
        columns=short_columns(found),
        extras=[REMOVED],
        finding=of_repairs,
    )


def _contest(
    found: Findings,
    factor: str,
    *,
    key: str,
    title: str,
    heading: str,
    columns: Sequence[str],
    extras: Sequence[Extra],
    finding: Callable[[Findings, Sequence[Group]], str],
) -> Table | None:
    compared = groups(found, factor)
    if not compared:
        return None
    judged = judge(
        [[each.measures for each in group.results] for group in compared],
        [group.base.measures if group.base else None for group in compared],
        columns,
    )
    blocks = [
        Block(
            group.title,
            (
                *_reference_rows(found, group, columns, extras),
                *(
                    Row(
                        group.named(each) + with_seeds_said(each),
                        (
                            *(Cell.of(each.measures.get(name), row.get(name)) for name in columns),
                            *extra_cells(each, extras),
                        ),
                        each.factors,
                        trial_numbers(each),
                    )
                    for each, row in zip(group.results, rows, strict=True)
                ),
            ),
        )
        for group, rows in zip(compared, judged, strict=True)
    ]
    heads = (*(column_of(found, name) for name in columns), *(column for column, _ in extras))
    return Table(key, title, heading, heads, tuple(blocks), finding(found, compared))


def _reference_rows(found: Findings, group: Group, columns: Sequence[str], extras: Sequence[Extra]) -> list[Row]:
    rows = []
    if group.base:
        plain = tuple(Cell.of(group.base.measures.get(name)) for name in columns)
        rows.append(Row(UNPRUNED, plain + (Cell(None, "text"),) * len(extras), {"model": group.base.model}, base=True))
    if group.unhealed:
        each = group.unhealed
        plain = tuple(Cell.of(each.measures.get(name)) for name in columns)
        known = {name: level for name, level in each.factors.items() if name not in ("heal", "data")}
        rows.append(Row(BEFORE, plain + (Cell(None, "text"),) * len(extras), known, trial_numbers(each), base=True))
    return rows
