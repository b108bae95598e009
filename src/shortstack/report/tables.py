"""The tables of a report: a function or an entry each, and the catalogue that lists them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import Any

from shortstack.machine.formats import brief
from shortstack.machine.tables import Block, Column, Table
from shortstack.report.columns import (
    FREE_TEXT,
    HEAL_MEMORY,
    HEAL_TIME,
    HELD_OUT,
    MAKE_TIME,
    REMOVED,
    TRAINABLE,
    UNPRUNED,
    all_columns,
    base_row,
    judged_rows,
    measured_columns,
    row_of,
    short_columns,
)
from shortstack.report.findings import BEFORE, Findings, MatchedGroup, matched_groups
from shortstack.report.judged import JudgedCell, ResultColumn, ResultRow
from shortstack.report.results import Result
from shortstack.runs.records import StepRecord

HEADINGS = {"heal": "healing", "data": "healing data"}  # of factors whose name says too little


def factor_table(
    findings: Findings,
    factor: str,
    key: str,
    title: str,
    measures: Callable[[Findings], list[ResultColumn]],
    extras: Sequence[ResultColumn],
) -> Table | None:
    """Make the table of results that differ in one factor alone; None where it does not vary."""
    groups = matched_groups(findings, factor)
    if not groups:
        return None
    columns = (*measures(findings), *extras)
    blocks = tuple(Block(group.title, tuple(_rows(factor, group, columns))) for group in groups)
    heading = HEADINGS.get(factor, factor)
    caption = f"Rows of a block differ in the {heading} alone."
    return Table(title, (Column(heading, "text"), *columns), blocks, caption, key=key)


def _rows(factor: str, group: MatchedGroup, columns: Sequence[ResultColumn]) -> list[ResultRow]:
    rows = judged_rows(group.results, group.base, columns, lambda result: result.factors[factor])
    if group.unhealed:
        rows.insert(bool(group.base), base_row(BEFORE, group.unhealed, columns))
    return rows


HEALING_EXTRAS = (TRAINABLE, HELD_OUT, HEAL_TIME, HEAL_MEMORY)
FACTORS = (  # as the tables 1, 2 and 4, 5, 6 and 7 of the paper, which has none of repairs
    ("metric", "metrics", "Which layers to remove", all_columns, (REMOVED,)),
    ("heal", "healing", "How to heal", short_columns, HEALING_EXTRAS),
    ("strategy", "strategies", "All at once or step by step", short_columns, (REMOVED, MAKE_TIME)),
    ("calibration", "calibration", "How much the calibration text matters", short_columns, (REMOVED,)),
    ("data", "data", "How much the healing data matters", all_columns, (HELD_OUT,)),
    ("repair", "repair", "Does repair help", short_columns, (REMOVED,)),
)
SETTING = Column("setting", "text")


def probes(findings: Findings) -> Table | None:
    """Make the table of generated text: small tasks whose answers a program knows, and the collapse check."""
    columns = measured_columns(findings, findings.measured("probe"))
    if any(FREE_TEXT.cell(result).value for result in findings.results):
        columns.append(FREE_TEXT)
    if not columns:
        return None
    caption = "Small generation tasks that a program scores."
    return Table("Can it still write", (SETTING, *columns), _by_model(findings, columns), caption, key="probes")


def _by_model(
    findings: Findings, columns: Sequence[ResultColumn], without: Collection[str] = ("model",)
) -> tuple[Block, ...]:
    blocks = []
    for model, results in findings.by_model.items():
        rows = judged_rows(results, findings.bases.get(model), columns, lambda result: findings.name(result, without))
        blocks.append(Block(_model_title(findings, model), tuple(rows)))
    return tuple(blocks)


def _model_title(findings: Findings, model: str) -> str:
    return brief(model) if "model" in findings.levels else ""


def sizes(findings: Findings) -> Table | None:
    """Make the table of parameters, bytes and speed, with a row for each number of layers removed."""
    profiles = {model: steps for model, results in findings.by_model.items() if (steps := _profiles(results))}
    if not profiles:
        return None
    all_steps = [step for steps in profiles.values() for step in steps.values()]
    batches = sorted({speed["batch"] for step in all_steps for speed in step.result.get("speed") or ()})
    columns = (
        Column("parameters", "parameters"),
        Column("weights", "bytes", title="bytes of all weights"),
        Column("MACs per token", "parameters", title="multiply-accumulates to read one token"),
        Column("cache per token", "bytes", title="bytes that the keys and values of a token take"),
        Column("peak memory", "bytes"),
        *(Column(f"{verb}, batch {n}", "rate", "tokens/s") for verb in ("prefill", "decode") for n in batches),
    )
    blocks = []
    for model, steps in profiles.items():
        sized = [(size, step, _sizes(step, batches)) for size, step in steps.items()]
        rows = [row_of(size, values, columns, step, base=size == UNPRUNED) for size, step, values in sized]
        blocks.append(Block(_model_title(findings, model), tuple(rows)))
    caption = "Speeds are medians on one machine."
    heading = Column("layers removed", "text")
    return Table("What it saves", (heading, *columns), tuple(blocks), caption, key="sizes")


def _sizes(step: StepRecord, batches: Sequence[int]) -> list[Any]:
    counts = ("parameters", "weight_bytes", "macs_per_token", "kv_bytes_per_token", "peak_bytes")
    speeds = {speed["batch"]: speed for speed in step.result.get("speed") or ()}
    rates = [speeds.get(n, {}).get(f"{name}_tokens_per_s") for name in ("prefill", "decode") for n in batches]
    return [*map(step.result.get, counts), *rates]


def _profiles(results: Sequence[Result]) -> dict[str, StepRecord]:
    """Find the step that profiled each size of a model, by the layers removed; the unpruned model first."""
    base = next((step for result in results if (step := result.step("profile_base"))), None)
    by_size: dict[int, StepRecord] = {}
    for result in results:
        step = result.step("profile")
        if step and result.removed is not None:
            by_size.setdefault(result.removed, step)
    return ({UNPRUNED: base} if base else {}) | {str(removed): by_size[removed] for removed in sorted(by_size)}


def every_setting(findings: Findings) -> Table | None:
    """Make a row for each setting, the unpruned models first."""
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


OVERVIEWS = (probes, sizes, every_setting)


def all_tables(findings: Findings) -> list[Table]:
    """Make every table that the runs have something for; one whose factor does not vary is left out."""
    tables = [*(factor_table(findings, *factor) for factor in FACTORS), *(make(findings) for make in OVERVIEWS)]
    return [table for table in tables if table]
