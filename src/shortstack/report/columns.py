"""The columns of tables: what was measured, and what stands beside it (layers, time, memory)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from shortstack.machine.formats import show_layers
from shortstack.report.findings import Findings
from shortstack.report.format import listed
from shortstack.report.results import AVERAGE, BASE, HEALED, Result
from shortstack.report.table import Cell, Column
from shortstack.runs.records import StepRecord

EMPTY = Cell(None, "text")
# Of kinds whose cells have none.
UNITS = {"rate": "tokens/s", "loss": "nats, lower is better", "perplexity": "lower is better"}


def all_columns(findings: Findings) -> list[Column]:
    """The average, every task, every text."""
    average = [AVERAGE] if AVERAGE in findings.columns else []
    return measured_columns(findings, [*average, *findings.measured("task"), *findings.measured("perplexity")])


def short_columns(findings: Findings) -> list[Column]:
    """The average, or the tasks where there is none, and every text."""
    first = [AVERAGE] if AVERAGE in findings.columns else findings.measured("task")
    return measured_columns(findings, [*first, *findings.measured("perplexity")])


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
    unit = f"{'%, ' if measure.kind == 'share' else ''}{'higher' if measure.higher else 'lower'} is better"
    return Column(label, measure.kind, lambda result: Cell.of(result.measures.get(name)), title, name, unit)


def step_column(label: str, kind: str, value: str | Callable[[StepRecord], Any], title: str = "") -> Column:
    """A column of rows that are about steps. value: computes the number from a step, or is its key in the step's result."""

    def cell(step: StepRecord) -> Cell:
        return step_cell(step.result.get(value) if isinstance(value, str) else value(step), kind, step)

    return Column(label, kind, cell, title, unit=UNITS.get(kind, ""))


def _healing_column(label: str, kind: str, value: str | Callable[[StepRecord], Any], title: str) -> Column:
    """A column of rows that are about results, with what a healed one's healing gave."""
    column = step_column(label, kind, value, title)

    def cell(result: Result) -> Cell:
        step = result.step("heal") if result.role == HEALED else None
        return column.cell(step) if step else EMPTY

    return replace(column, cell=cell)


def step_cell(value: Any, kind: str, step: StepRecord | None) -> Cell:
    """A cell that leads to the step it is from."""
    return Cell(value, kind, steps=(step.key,) if step and value is not None else ())


def _removed(result: Result) -> Cell:
    plans = {tuple(sorted(plan["removed"])) for plan in result.plans if plan.get("removed")}
    if result.role == BASE or not plans:
        return EMPTY
    layers = show_layers(next(iter(plans))) if len(plans) == 1 else f"differs over {len(plans)} plans"
    return step_cell(layers, "text", result.step("plan", "prune"))


def _heal_time(result: Result) -> Cell:
    if result.role != HEALED:
        return EMPTY
    return step_cell(result.seconds("heal"), "seconds", result.step("heal"))


def _make_time(result: Result) -> Cell:
    if result.role == BASE:
        return EMPTY
    return step_cell(result.seconds("score", "plan", "prune", "heal"), "seconds", result.step("heal", "prune"))


def _free_text(result: Result) -> Cell:
    """What a free text says of the model: nothing where it was not looked at."""
    step = result.evaluation
    collapse = (step.result.get("collapse") or {}) if step else {}
    signs = listed([str(name).replace("_", " ") for name in collapse.get("fallen") or ()])
    words = (f"collapsed: {signs}" if signs else "collapsed") if collapse.get("collapsed") else "not collapsed"
    return step_cell(words if collapse else None, "text", step)


def _held_out(step: StepRecord) -> float | None:
    return (step.result.get("loss") or {}).get("held_out")


REMOVED = Column("layers removed", "text", _removed, "numbered from 0 in the unpruned model")
TRAINABLE = _healing_column("trained", "parameters", "trainable_parameters", "parameters that healing trains")
HELD_OUT = _healing_column(
    "held-out loss", "loss", _held_out, "lowest loss on samples that were not trained on, nats per token"
)
HEAL_TIME = Column("time", "seconds", _heal_time, "time that healing took")
HEAL_MEMORY = _healing_column("memory", "bytes", "peak_rss_bytes", "most memory the process held while it healed")
MAKE_TIME = Column("time to make", "seconds", _make_time, "scoring, pruning and healing; evaluation is not counted")
FREE_TEXT = Column("free text", "text", _free_text, "collapsed: loops, few words or silence")
