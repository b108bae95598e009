"""The columns of tables: what was measured, and what stands beside it (layers, time, memory)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from shortstack.planning.layer_sets import show_layers
from shortstack.report.findings import Findings
from shortstack.report.format import listed
from shortstack.report.results import AVERAGE, BASE, HEALED, Result
from shortstack.report.table import Cell, Column
from shortstack.runs.records import StepRecord

EMPTY = Cell(None, "text")


def all_columns(findings: Findings) -> list[Column]:
    """The average, every task, every text."""
    return measured_columns(
        findings, [*_average(findings), *findings.measured("task"), *findings.measured("perplexity")]
    )


def short_columns(findings: Findings) -> list[Column]:
    """The average, or the tasks where there is none, and every text."""
    names = [*(_average(findings) or findings.measured("task")), *findings.measured("perplexity")]
    return measured_columns(findings, names)


def _average(findings: Findings) -> list[str]:
    return [AVERAGE] if AVERAGE in findings.columns else []


def measured_columns(findings: Findings, names: list[str]) -> list[Column]:
    """Columns of measures, by their names."""
    return [_measured_column(findings, name) for name in names]


def _measured_column(findings: Findings, name: str) -> Column:
    results = (*findings.results, *findings.bases.values())
    measure, label = next(each.measures[name] for each in results if name in each.measures), findings.names[name]
    better = f"{'higher' if measure.higher else 'lower'} is better"
    if name == AVERAGE:
        label, title = "average", f"plain mean of {len(findings.tasks)} tasks, in percent"
    elif measure.kind == "perplexity":
        title = f"perplexity on {label}, {measure.n or 0:,} tokens; {better}"
    else:
        on = f" on {measure.n:,} documents" if measure.n else ""
        title = f"{label}{on}{', in percent' if measure.kind == 'share' else ''}; {better}"
    return Column(label, measure.kind, lambda result: Cell.of(result.measures.get(name)), title, name)


def step_column(
    label: str, kind: str, value: str | Callable[[StepRecord], Any], title: str = "", *, role: str = ""
) -> Column:
    """A column of numbers that steps gave, whose cells lead to them.

    value: computes the number from a step, or is its key in the step's result.
    role: rows are about results, and the step is their step of this role; healing's only where the result is healed.
    """

    def cell(row: Any) -> Cell:
        if role == "heal" and row.role != HEALED:
            return EMPTY
        step = row.step(role) if role else row
        return step_cell(step and (step.result.get(value) if isinstance(value, str) else value(step)), kind, step)

    return Column(label, kind, cell, title)


def step_cell(value: Any, kind: str, step: StepRecord | None) -> Cell:
    """A cell that leads to the step it is from."""
    return Cell(value, kind, steps=(step.key,) if step and value is not None else ())


def _removed(result: Result) -> Cell:
    if result.role == BASE:
        return EMPTY
    plans = {tuple(sorted(plan["removed"])) for plan in result.plans if plan.get("removed")}
    layers = (
        show_layers(next(iter(plans))) if len(plans) == 1 else f"differs over {len(plans)} plans" if plans else None
    )
    return step_cell(layers, "text", result.step("plan", "prune"))


def _seconds(result: Result, *, roles: tuple[str, ...], shown: tuple[str, ...]) -> Cell:
    """The time that the steps of some roles took; the cell leads to the first of those shown."""
    if result.role == BASE or (roles == ("heal",) and result.role != HEALED):
        return EMPTY
    return step_cell(result.seconds(*roles), "seconds", result.step(*shown))


def _degeneration(result: Result) -> Cell:
    """What a free text says of the model: nothing where it was not looked at."""
    step = result.evaluation
    collapse = (step.result.get("collapse") or {}) if step else {}
    signs = listed([str(name).replace("_", " ") for name in collapse.get("fallen") or ()])
    words = (f"collapsed: {signs}" if signs else "collapsed") if collapse.get("collapsed") else "not collapsed"
    return step_cell(words if collapse else None, "text", step)


REMOVED = Column("layers removed", "text", _removed, "numbered from 0 in the unpruned model")
TRAINABLE = step_column("trained", "parameters", "trainable_parameters", "parameters that healing trains", role="heal")
HELD_OUT = step_column(
    "held-out loss",
    "loss",
    lambda step: (step.result.get("loss") or {}).get("held_out"),
    "lowest loss on samples that were not trained on, nats per token",
    role="heal",
)
HEAL_TIME = Column("time", "seconds", partial(_seconds, roles=("heal",), shown=("heal",)), "time that healing took")
HEAL_MEMORY = step_column(
    "memory", "bytes", "peak_rss_bytes", "most memory the process held while it healed", role="heal"
)
MAKE_TIME = Column(
    "time to make",
    "seconds",
    partial(_seconds, roles=("score", "plan", "prune", "heal"), shown=("heal", "prune")),
    "scoring, pruning and healing; evaluation is not counted",
)
FREE_TEXT = Column("free text", "text", _degeneration, "collapsed: loops, few words or silence")
