"""Columns of tables (what was measured; layers, time, memory) and the rows of results below them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from shortstack.machine.formats import listed, show_layers
from shortstack.machine.tables import Column
from shortstack.report.findings import Findings
from shortstack.report.judged import EMPTY, JudgedCell, MeasuredChange, ResultColumn, ResultRow
from shortstack.report.results import AVERAGE, BASE, HEALED, Measure, Result
from shortstack.report.significance import Difference, Judgement, judge
from shortstack.runs.records import StepRecord


def all_columns(findings: Findings) -> list[ResultColumn]:
    """Make columns of the average, every task and every text."""
    average = [AVERAGE] if AVERAGE in findings.names else []
    return measured_columns(findings, [*average, *findings.measured("task"), *findings.measured("perplexity")])


def short_columns(findings: Findings) -> list[ResultColumn]:
    """Make columns of the average, or the tasks where there is none, and of every text."""
    first = [AVERAGE] if AVERAGE in findings.names else findings.measured("task")
    return measured_columns(findings, [*first, *findings.measured("perplexity")])


def measured_columns(findings: Findings, names: list[str]) -> list[ResultColumn]:
    """Make columns of measures, by name; behind that of the headline, how far it is from the unpruned model's."""
    results = (*findings.results, *findings.bases.values())
    columns: list[ResultColumn] = []
    for name in names:
        measure = next(result.measures[name] for result in results if name in result.measures)
        columns.append(_measured_column(findings, name, measure))
        if name == findings.headline and findings.bases:
            columns += _compared_columns(name, measure)
    return columns


def _compared_columns(name: str, measure: Measure) -> list[ResultColumn]:
    """Make columns of how far a measure is from the unpruned model's, with its interval and p."""

    def column(label: str, title: str, cell: Callable[[Difference], JudgedCell], unit: str = "") -> ResultColumn:
        return ResultColumn(label, unit=unit, title=title, measure=name, compares=cell)

    def change(difference: Difference) -> tuple[JudgedCell, JudgedCell]:
        return MeasuredChange.of(difference, measure.kind).cells

    above = "difference from the unpruned model: a factor for a perplexity, else above 0 is better"
    chance = "p-value of the difference from the unpruned model, Holm-corrected over the comparisons of the block"
    unit = {"share": "points", "perplexity": "times"}.get(measure.kind, "")
    return [
        column("change", above, lambda difference: replace(change(difference)[0], note=""), unit),
        column("95% interval", above, lambda difference: change(difference)[1]),
        column("p, Holm", chance, lambda difference: JudgedCell(difference.p, "p")),
    ]


def _measured_column(findings: Findings, name: str, measure: Measure) -> ResultColumn:
    label = findings.names[name]
    better = f"{'higher' if measure.higher else 'lower'} is better"
    if name == AVERAGE:
        label, title = "average", f"plain mean of {len(findings.tasks)} tasks, in percent"
    elif measure.kind == "perplexity":
        title = f"perplexity on {label}, {measure.n or 0:,} tokens; {better}"
    else:
        on = f" on {measure.n:,} documents" if measure.n else ""
        title = f"{label}{on}{', in percent' if measure.kind == 'share' else ''}; {better}"
    unit = f"{'%, ' if measure.kind == 'share' else ''}{'higher' if measure.higher else 'lower'} is better"
    return ResultColumn(
        label, measure.kind, unit, title, cell=lambda result: JudgedCell.of(result.measures.get(name)), measure=name
    )


def _healing_column(
    label: str, kind: str, value: Callable[[StepRecord], Any], title: str, unit: str = ""
) -> ResultColumn:

    def cell(result: Result) -> JudgedCell:
        step = result.step("heal") if result.role == HEALED else None
        return step_cell(value(step), kind, step) if step else EMPTY

    return ResultColumn(label, kind, unit, title, cell=cell)


def step_cell(value: Any, kind: str, step: StepRecord | None) -> JudgedCell:
    """Make a cell that leads to the step it is from."""
    return JudgedCell(value, kind, steps=(step.key,) if step and value is not None else ())


def _removed(result: Result) -> JudgedCell:
    plans = {tuple(sorted(plan["removed"])) for plan in result.plans if plan.get("removed")}
    if result.role == BASE or not plans:
        return EMPTY
    layers = show_layers(next(iter(plans))) if len(plans) == 1 else f"differs over {len(plans)} plans"
    return step_cell(layers, "text", result.step("plan", "prune"))


def _time_column(label: str, title: str, *roles: str) -> ResultColumn:

    def cell(result: Result) -> JudgedCell:
        taken = [role for role in roles if role != "heal" or result.role == HEALED]
        step = result.step(*taken[::-1]) if result.role != BASE else None
        return step_cell(result.seconds(*taken), "seconds", step) if step else EMPTY

    return ResultColumn(label, "seconds", title=title, cell=cell)


def _free_text(result: Result) -> JudgedCell:
    step = result.evaluation
    collapse = (step.result.get("collapse") or {}) if step else {}
    signs = listed([str(name).replace("_", " ") for name in collapse.get("fallen") or ()])
    words = (f"collapsed: {signs}" if signs else "collapsed") if collapse.get("collapsed") else "not collapsed"
    return step_cell(words if collapse else None, "text", step)


REMOVED = ResultColumn("layers removed", "text", title="numbered from 0 in the unpruned model", cell=_removed)
TRAINABLE = _healing_column(
    "trained", "parameters", lambda step: step.result.get("trainable_parameters"), "parameters that healing trains"
)
HELD_OUT = _healing_column(
    "held-out loss",
    "loss",
    lambda step: (step.result.get("loss") or {}).get("held_out"),
    "lowest loss on samples that were not trained on, nats per token",
    "nats, lower is better",
)
HEAL_TIME = _time_column("time", "time that healing took", "heal")
HEAL_MEMORY = _healing_column(
    "memory", "bytes", lambda step: step.result.get("peak_rss_bytes"), "peak memory of the process that healed"
)
MAKE_TIME = _time_column("time to make", "without evaluation", "score", "plan", "prune", "heal")
FREE_TEXT = ResultColumn("free text", "text", title="collapsed: loops, few words or silence", cell=_free_text)


# Rows of results under columns

UNPRUNED = "unpruned"


def row_of(
    label: str, values: Iterable[Any], columns: Sequence[Column], step: StepRecord | None = None, *, base: bool = False
) -> ResultRow:
    """Make a row of what is not judged, of values or cells; step: that they are from."""
    cells = [
        value if isinstance(value, JudgedCell) else step_cell(value, column.kind, step)
        for value, column in zip(values, columns, strict=True)
    ]
    return ResultRow((JudgedCell(label, "text"), *cells), base)


def judged_rows(
    results: Sequence[Result], base: Result | None, columns: Sequence[ResultColumn], label: Callable[[Result], str]
) -> list[ResultRow]:
    """Make the rows of a block, the unpruned model's first; each number is judged against it and against the best."""
    names = [column.measure for column in columns if column.measure]
    judged = judge([result.measures for result in results], base.measures if base else {}, names)
    rows = [_result_row(label(result), result, columns, row) for result, row in zip(results, judged, strict=True)]
    return [*([base_row(UNPRUNED, base, columns)] if base else []), *rows]


def base_row(label: str, base: Result, columns: Sequence[ResultColumn]) -> ResultRow:
    return row_of(label, (column.cell(base) for column in columns), columns, base=True)


def _result_row(
    label: str, result: Result, columns: Sequence[ResultColumn], judged: Mapping[str, Judgement]
) -> ResultRow:
    cells = [_cell(column, result, judged.get(column.measure, Judgement())) for column in columns]
    seeds = f" ({result.seeds} seeds)" if result.seeds > 1 else ""
    return ResultRow((JudgedCell(label + seeds, "text"), *cells), trials=result.numbers)


def _cell(column: ResultColumn, result: Result, judgement: Judgement) -> JudgedCell:
    if column.compares is None:
        return replace(column.cell(result), judgement=judgement)
    if judgement.base is None:
        return EMPTY
    return replace(column.compares(judgement.base), steps=result.measures[column.measure].steps)
