"""Tables that are no comparison of one factor: repairs, probes, sizes, costs, and every setting."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from shortstack.report.columns import FREE_TEXT, MAKE_TIME, measured_columns, short_columns, step_cell, step_column
from shortstack.report.findings import Findings
from shortstack.report.labels import brief
from shortstack.report.results import BASE, Result
from shortstack.report.sentences import about_probes, about_refits, about_settings, about_sizes, regained
from shortstack.report.table import Block, Cell, Column, Table, TableRow
from shortstack.report.tables.rows import UNPRUNED, base_row, cells_of, judged_rows, result_row
from shortstack.runs.records import StepRecord


def refits(findings: Findings) -> Table | None:
    """What repair did to the held-out loss of its own text, a row for each repaired checkpoint."""
    repaired: dict[str, tuple[Result, StepRecord]] = {}
    for result in findings.results:
        step = result.step("prune")
        if step and step.result.get("repair"):
            repaired.setdefault(step.key, (result, step))
    if not repaired:
        return None
    rows = [
        TableRow(findings.name(result, {"heal", "data"}), cells_of(step, REFIT_COLUMNS), result.factors, result.numbers)
        for result, step in repaired.values()
    ]
    finding = about_refits([step.result["repair"] for _, step in repaired.values()])
    return Table("refits", "What repair regains", "setting", REFIT_COLUMNS, (Block("", tuple(rows)),), finding)


def _repair_column(label: str, kind: str, value: Callable[[Mapping[str, Any]], Any], title: str = "") -> Column:
    return step_column(label, kind, lambda step: value(step.result["repair"]), title)


def _perplexity_column(label: str, loss: str, title: str) -> Column:
    def perplexity(repair: Mapping[str, Any]) -> float | None:
        return None if repair.get(loss) is None else math.exp(min(repair[loss], 700))

    return replace(_repair_column(label, "perplexity", perplexity, title), unit="perplexity, lower is better")


def _fitted(repair: Mapping[str, Any]) -> int:
    """How many weights were refitted and kept."""
    return len(repair.get("fits") or ()) if repair.get("kept", True) else 0


REFIT_COLUMNS = (
    _perplexity_column("unpruned", "loss_unpruned", "held-out perplexity of the unpruned model on the repair's text"),
    _perplexity_column("cut", "loss_before", "after the cut"),
    _perplexity_column("repaired", "loss_after", "after the repair"),
    _repair_column("regained", "percent", regained, "share of the loss that the cut added and repair took away again"),
    _repair_column("weights refitted", "count", _fitted),
    _repair_column("time", "seconds", lambda repair: repair.get("seconds")),
)


def probes(findings: Findings) -> Table | None:
    """What the models write: small tasks whose answers a program knows, and whether they go round in circles."""
    columns = measured_columns(findings, findings.measured("probe"))
    if any(FREE_TEXT.cell(each).value for each in findings.results):
        columns.append(FREE_TEXT)
    if not columns:
        return None
    blocks = []
    for model, base in findings.bases.items():
        mine = findings.by_model.get(model, [])
        rows = judged_rows(mine, base, columns, lambda each: findings.name(each, {"model"}))
        blocks.append(Block(_model_title(findings, model), tuple(rows)))
    return Table("probes", "Can it still write", "setting", tuple(columns), tuple(blocks), about_probes(findings))


def _model_title(findings: Findings, model: str) -> str:
    """What a model's block is called, where there are several models."""
    return brief(model) if "model" in findings.levels else ""


def sizes(findings: Findings) -> Table | None:
    """Parameters, bytes and speed of each size of each model; one row per number of layers removed."""
    profiles = {model: steps for model, mine in findings.by_model.items() if (steps := _profiles(mine))}
    if not profiles:
        return None
    every = [step for steps in profiles.values() for step in steps.values()]
    batches = sorted({speed["batch"] for step in every for speed in step.result.get("speed") or ()})
    columns = (
        step_column("parameters", "parameters", "parameters"),
        step_column("weights", "bytes", "weight_bytes", "bytes of all weights"),
        step_column("MACs per token", "parameters", "macs_per_token", "multiply-accumulates to read one token"),
        step_column("cache per token", "bytes", "kv_bytes_per_token", "bytes that the keys and values of a token take"),
        step_column("peak memory", "bytes", "peak_bytes"),
        *(_speed_column(f"read, batch {n}", "prefill", n, "prompt tokens per second") for n in batches),
        *(_speed_column(f"write, batch {n}", "decode", n, "new tokens per second") for n in batches),
    )
    blocks = []
    for model, steps in profiles.items():
        rows = [
            TableRow(size, cells_of(step, columns), {"model": model}, base=size == UNPRUNED)
            for size, step in steps.items()
        ]
        blocks.append(Block(_model_title(findings, model), tuple(rows)))
    return Table("sizes", "What it saves", "layers removed", columns, tuple(blocks), about_sizes(profiles))


def _speed_column(label: str, phase: str, batch: int, title: str) -> Column:
    def rate(step: StepRecord) -> Any:
        speeds = {speed["batch"]: speed for speed in step.result.get("speed") or ()}
        return speeds.get(batch, {}).get(f"{phase}_tokens_per_s")

    return step_column(label, "rate", rate, title)


def _profiles(mine: Sequence[Result]) -> dict[str, StepRecord]:
    """The step that profiled each size of a model, by the layers removed; the unpruned model first."""
    base = next((step for each in mine if (step := each.step("profile_base"))), None)
    by_size: dict[int, StepRecord] = {}
    for each in mine:
        step = each.step("profile")
        if step and each.removed is not None:
            by_size.setdefault(each.removed, step)
    return ({UNPRUNED: base} if base else {}) | {str(removed): by_size[removed] for removed in sorted(by_size)}


def costs(findings: Findings) -> Table | None:
    """What each kind of step took, and what sharing steps between trials saved."""
    uses = Counter(step.key for trial in findings.runs.trials for step in trial.steps.values())
    kinds: dict[str, list[StepRecord]] = {}
    for step in findings.runs.steps.values():
        kinds.setdefault(step.kind, []).append(step)
    if not kinds:
        return None

    def needed(steps: Sequence[StepRecord]) -> int:
        return sum(uses[step.key] for step in steps)

    def saved(steps: Sequence[StepRecord]) -> float:
        return max(0.0, sum((step.seconds or 0) * (uses.get(step.key, 1) - 1) for step in _done(steps)))

    columns = (
        _sum_column("steps", "count", lambda steps: len(_done(steps)), "steps that were done"),
        _sum_column("asked for", "count", needed, "how often trials needed one"),
        _sum_column("failed", "count", lambda steps: sum(step.state == "failed" for step in steps)),
        _sum_column("time", "seconds", _seconds, "time that the steps took together"),
        Column("longest", "seconds", _longest, "time of the longest step"),
        _sum_column(
            "saved", "seconds", saved, "time that the same steps would have taken again, had they not been shared"
        ),
        _sum_column(
            "peak memory",
            "bytes",
            lambda steps: max((step.peak_rss_bytes or 0 for step in _done(steps)), default=0) or None,
        ),
    )
    ordered = sorted(kinds, key=lambda kind: -_seconds(kinds[kind]))
    rows = tuple(TableRow(kind, cells_of(kinds[kind], columns)) for kind in ordered)
    return Table("costs", "What it took", "step", columns, (Block("", rows),))


def _sum_column(
    label: str, kind: str, value: Callable[[Sequence[StepRecord]], float | None], title: str = ""
) -> Column:
    """A column of rows that are about several steps."""
    return Column(label, kind, lambda steps: Cell(value(steps), kind), title)


def _done(steps: Sequence[StepRecord]) -> list[StepRecord]:
    return [step for step in steps if step.state == "done"]


def _seconds(steps: Sequence[StepRecord]) -> float:
    return sum(step.seconds or 0 for step in _done(steps))


def _longest(steps: Sequence[StepRecord]) -> Cell:
    longest = max(_done(steps), key=lambda step: step.seconds or 0, default=None)
    return step_cell(longest and longest.seconds, "seconds", longest)


def every_setting(findings: Findings) -> Table | None:
    """A row for each setting, to sort and filter; the unpruned models first."""
    if not findings.results:
        return None
    columns = (
        *short_columns(findings),
        Column("removed", "count", _removed_count, "number of layers removed"),
        Column("weights", "bytes", _stored_bytes),
        MAKE_TIME,
        *(_level_column(name) for name in findings.levels),
    )
    bases = [base_row(base, columns) for base in findings.bases.values()]
    rows = [result_row(findings.name(each), each, columns) for each in findings.results]
    block = Block("", (*bases, *rows))
    return Table("settings", "Every setting", "setting", columns, (block,), about_settings(findings))


def _removed_count(result: Result) -> Cell:
    return Cell(0 if result.role == BASE else result.removed, "count")


def _stored_bytes(result: Result) -> Cell:
    sizes = next((plan["bytes"] for plan in result.plans if plan.get("bytes")), None)
    stored = sizes and sizes["before" if result.role == BASE else "after"]
    return step_cell(stored, "bytes", result.step("plan", "prune"))


def _level_column(factor: str) -> Column:
    def cell(result: Result) -> Cell:
        level = result.factors.get(factor)
        return Cell(None if level in ("", "none") else level, "text")

    return Column(factor, "text", cell)
