"""Tables that are no comparison of one factor: probes, sizes, and every setting."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

from shortstack.machine.formats import brief
from shortstack.machine.tables import Block, Column, Table
from shortstack.report.columns import (
    FREE_TEXT,
    MAKE_TIME,
    REMOVED,
    UNPRUNED,
    judged_rows,
    measured_columns,
    row_of,
    short_columns,
)
from shortstack.report.findings import Findings
from shortstack.report.judged import JudgedCell, ResultColumn
from shortstack.report.results import Result
from shortstack.runs.records import StepRecord

SETTING, LOWER = Column("setting", "text"), "perplexity, lower is better"


def probes(findings: Findings) -> Table | None:
    """Return the table of generated text: small tasks whose answers a program knows, and the collapse check."""
    columns = measured_columns(findings, findings.measured("probe"))
    if any(FREE_TEXT.cell(each).value for each in findings.results):
        columns.append(FREE_TEXT)
    if not columns:
        return None
    caption = "Small tasks of writing whose answers a program knows."
    return Table("Can it still write", (SETTING, *columns), _by_model(findings, columns), caption, key="probes")


def _by_model(
    findings: Findings, columns: Sequence[ResultColumn], without: Collection[str] = ("model",)
) -> tuple[Block, ...]:
    """A block for each model, its settings beside the unpruned one."""
    blocks = []
    for model, mine in findings.by_model.items():
        rows = judged_rows(mine, findings.bases.get(model), columns, lambda each: findings.name(each, without))
        blocks.append(Block(_model_title(findings, model), tuple(rows)))
    return tuple(blocks)


def _model_title(findings: Findings, model: str) -> str:
    """Return the title of a model's block; empty if there is only one model."""
    return brief(model) if "model" in findings.levels else ""


def sizes(findings: Findings) -> Table | None:
    """Parameters, bytes and speed of each size of each model; one row per number of layers removed."""
    profiles = {model: steps for model, mine in findings.by_model.items() if (steps := _profiles(mine))}
    if not profiles:
        return None
    every = [step for steps in profiles.values() for step in steps.values()]
    batches = sorted({speed["batch"] for step in every for speed in step.result.get("speed") or ()})
    columns = (
        Column("parameters", "parameters"),
        Column("weights", "bytes", title="bytes of all weights"),
        Column("MACs per token", "parameters", title="multiply-accumulates to read one token"),
        Column("cache per token", "bytes", title="bytes that the keys and values of a token take"),
        Column("peak memory", "bytes"),
        *(Column(f"{verb}, batch {n}", "rate", "tokens/s") for verb in ("read", "write") for n in batches),
    )
    blocks = []
    for model, steps in profiles.items():
        rows = [
            row_of(size, _sizes(step, batches), columns, step, base=size == UNPRUNED) for size, step in steps.items()
        ]
        blocks.append(Block(_model_title(findings, model), tuple(rows)))
    caption = "Speeds are medians, of one machine."
    heading = Column("layers removed", "text")
    return Table("What it saves", (heading, *columns), tuple(blocks), caption, key="sizes")


def _sizes(step: StepRecord, batches: Sequence[int]) -> list[Any]:
    counts = ("parameters", "weight_bytes", "macs_per_token", "kv_bytes_per_token", "peak_bytes")
    speeds = {speed["batch"]: speed for speed in step.result.get("speed") or ()}
    rates = [speeds.get(n, {}).get(f"{name}_tokens_per_s") for name in ("prefill", "decode") for n in batches]
    return [*map(step.result.get, counts), *rates]


def _profiles(mine: Sequence[Result]) -> dict[str, StepRecord]:
    """The step that profiled each size of a model, by the layers removed; the unpruned model first."""
    base = next((step for each in mine if (step := each.step("profile_base"))), None)
    by_size: dict[int, StepRecord] = {}
    for each in mine:
        step = each.step("profile")
        if step and each.removed is not None:
            by_size.setdefault(each.removed, step)
    return ({UNPRUNED: base} if base else {}) | {str(removed): by_size[removed] for removed in sorted(by_size)}


def every_setting(findings: Findings) -> Table | None:
    """A row for each setting, to sort and filter; the unpruned models first."""
    if not findings.results or (findings.subject and findings.bases):
        return None
    columns: tuple[ResultColumn, ...] = (
        *short_columns(findings),
        ResultColumn("weights", "bytes", cell=lambda result: JudgedCell(findings.stored_bytes(result), "bytes")),
        REMOVED,
        MAKE_TIME,
    )
    caption = "A mean over seeds where a setting has several."
    rows = [row for block in _by_model(findings, columns, ()) for row in block.rows]
    block = Block("", tuple(sorted(rows, key=lambda row: not row.base)))
    return Table("Every setting", (SETTING, *columns), (block,), caption, key="settings")
