"""The columns of tables, and the cells of what stands beside the measures: layers, time, memory."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from shortstack.planning.layer_sets import show_layers
from shortstack.report.findings import Findings
from shortstack.report.format import listed
from shortstack.report.results import AVERAGE, Result
from shortstack.report.table import Cell, Column
from shortstack.runs.records import Step

UNPRUNED = "unpruned"
Extra = tuple[Column, Callable[[Result], Cell]]
MAKING = ("score", "plan", "prune", "heal")


def all_columns(found: Findings) -> list[str]:
    """The average, every task, every text."""
    return [*_average(found), *found.measured("task"), *found.measured("perplexity")]


def short_columns(found: Findings) -> list[str]:
    """The average, or the tasks where there is none, and every text."""
    return [*(_average(found) or found.measured("task")), *found.measured("perplexity")]


def _average(found: Findings) -> list[str]:
    return [AVERAGE] if AVERAGE in found.columns else []


def column_of(found: Findings, name: str) -> Column:
    """The heading of something measured."""
    kind, label = name.partition(":")[0], found.names[name]
    measure = next(each.measures[name] for each in (*found.results, *found.bases.values()) if name in each.measures)
    if name == AVERAGE:
        return Column(name, "average", "share", 1, f"plain mean of {len(found.tasks)} tasks, in percent")
    if kind == "perplexity":
        return Column(
            name, label, "perplexity", -1, f"perplexity on {label}, {measure.n or 0:,} tokens; lower is better"
        )
    on = f" on {measure.n:,} documents" if measure.n else ""
    unit = ", in percent" if measure.kind == "share" else ""
    better = 1 if measure.higher else -1
    return Column(
        name, label, measure.kind, better, f"{label}{on}{unit}; {'higher' if better > 0 else 'lower'} is better"
    )


# Beside what was measured


def step_cell(value: Any, kind: str, step: Step | None) -> Cell:
    """A cell that leads to the step it is of."""
    return Cell(value, kind, steps=(step.key,) if step and value is not None else ())


def _removed(result: Result) -> Cell:
    step = result.first("plan", "prune")
    plans = {tuple(sorted(plan["removed"])) for plan in result.plans if plan.get("removed")}
    if len(plans) > 1:
        return step_cell(f"differs over {len(plans)} plans", "text", step)
    return step_cell(show_layers(next(iter(plans))) if plans else None, "text", step)


def _of_healing(key: str, kind: str) -> Callable[[Result], Cell]:
    def cell(result: Result) -> Cell:
        step = result.first("heal")
        return step_cell(step.result.get(key) if step else None, kind, step)

    return cell


def _held_out(result: Result) -> Cell:
    step = result.first("heal")
    loss = (step.result.get("loss") or {}).get("held_out") if step else None
    return step_cell(loss, "loss", step)


def _heal_seconds(result: Result) -> Cell:
    return step_cell(result.seconds("heal"), "seconds", result.first("heal"))


def make_seconds(result: Result) -> Cell:
    """Time of all but evaluation."""
    return step_cell(result.seconds(*MAKING), "seconds", result.first("heal", "prune"))


def _collapse(result: Result) -> Cell:
    """What a free text says of the model: nothing where it was not looked at."""
    step = result.judged
    found = (step.result.get("collapse") or {}) if step else {}
    fallen = listed([str(name).replace("_", " ") for name in found.get("fallen") or ()])
    words = (f"collapsed: {fallen}" if fallen else "collapsed") if found.get("collapsed") else "not collapsed"
    return step_cell(words if found else None, "text", step)


def extra_cells(result: Result, extras: Sequence[Extra]) -> list[Cell]:
    """What stands beside a result's measures."""
    return [cell(result) for _, cell in extras]


def trial_numbers(result: Result) -> tuple[int, ...]:
    """The trials that a result is of."""
    return tuple(trial.number for trial in result.trials)


REMOVED: Extra = (Column("removed", "layers removed", "text", title="numbered from 0 in the unpruned model"), _removed)
TRAINABLE: Extra = (
    Column("trainable", "trained", "parameters", title="parameters that healing trains"),
    _of_healing("trainable_parameters", "parameters"),
)
HELD_OUT: Extra = (
    Column("held_out", "held-out loss", "loss", -1, "lowest loss on samples that were not trained on, nats per token"),
    _held_out,
)
HEAL_TIME: Extra = (Column("seconds", "time", "seconds", -1, "time that healing took"), _heal_seconds)
HEAL_MEMORY: Extra = (
    Column("memory", "memory", "bytes", -1, "most memory the process held while it healed"),
    _of_healing("peak_rss_bytes", "bytes"),
)
MAKE_TIME: Extra = (
    Column("seconds", "time to make", "seconds", -1, "scoring, pruning and healing; evaluation is not counted"),
    make_seconds,
)
COLLAPSE: Extra = (
    Column(
        "collapse",
        "free text",
        "text",
        title="collapsed: loops, few words or silence",
    ),
    _collapse,
)
