"""Tables that are no comparison of one factor: repairs, probes, sizes, costs, and every setting."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from shortstack.machine.formats import brief
from shortstack.machine.numbers import perplexity
from shortstack.machine.tables import Block, Column, Table
from shortstack.report.columns import FREE_TEXT, MAKE_TIME, measured_columns, short_columns, step_cell
from shortstack.report.findings import Findings
from shortstack.report.judged import JudgedCell, ResultColumn
from shortstack.report.results import BASE, Result
from shortstack.report.tables.rows import UNPRUNED, judged_rows, row_of
from shortstack.runs.records import StepRecord

SETTING, LOWER = Column("setting", "text"), "perplexity, lower is better"


def refits(findings: Findings) -> Table | None:
    """Return a table of repair's effect on the held-out loss of its own text, a row for each repaired checkpoint."""
    repaired: dict[str, tuple[Result, StepRecord]] = {}
    for result in findings.results:
        step = result.step("prune")
        if step and step.result.get("repair"):
            repaired.setdefault(step.key, (result, step))
    if not repaired:
        return None
    columns = (
        Column("unpruned", "perplexity", LOWER, "of the unpruned model, on windows that chose nothing of the repair"),
        Column("cut", "perplexity", LOWER),
        Column("repaired", "perplexity", LOWER),
        Column("regained", "percent", title="share of the loss that the cut added and repair took away again"),
        Column("weights refitted", "count"),
        Column("time", "seconds"),
    )
    rows = [
        row_of(findings.name(result, {"heal", "data"}), _refit(step.result["repair"]), columns, step)
        for result, step in repaired.values()
    ]
    caption = "Perplexity of windows that chose nothing of the repair."
    return Table("What repair regains", (SETTING, *columns), (Block("", tuple(rows)),), caption, key="refits")


def _refit(repair: Mapping[str, Any]) -> tuple[Any, ...]:
    """Perplexities, the share (before - after) / (before - unpruned), how many weights were refitted and kept, the time."""
    losses = [repair.get(f"loss_{name}") for name in ("unpruned", "before", "after")]
    known = [loss for loss in losses if loss is not None]
    added = known[1] - known[0] if len(known) == len(losses) else 0.0
    fits = len(repair.get("fits") or ()) if repair.get("kept", True) else 0
    perplexities = (None if loss is None else perplexity(loss) for loss in losses)
    return *perplexities, (known[1] - known[2]) / added if added > 0 else None, fits, repair.get("seconds")


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


def costs(findings: Findings) -> Table | None:
    """Return a table of the cost of each kind of step; trials share steps, and each was done once."""
    kinds: dict[str, list[StepRecord]] = {}
    for step in findings.runs.steps.values():
        kinds.setdefault(step.kind, []).append(step)
    if not any(step.seconds for steps in kinds.values() for step in steps):
        return None
    columns = (Column("done", "count"), Column("failed", "count"), Column("time", "seconds"), Column("memory", "bytes"))
    rows = [row_of(kind, _cost(steps), columns) for kind, steps in kinds.items()]
    rows.sort(key=lambda row: -row.cells[3].value)
    caption = "Trials share steps, and each was done once."
    return Table("What it took", (Column("step", "text"), *columns), (Block("", tuple(rows)),), caption, key="costs")


def _cost(steps: Sequence[StepRecord]) -> tuple[Any, ...]:
    """How many were done and failed, their time, and the most memory that one held."""
    done = [step for step in steps if step.state == "done"]
    memory = max((step.peak_rss_bytes or 0 for step in done), default=0)
    failed = sum(step.state == "failed" for step in steps)
    return len(done), failed, sum(step.seconds or 0.0 for step in done), memory or None


def every_setting(findings: Findings) -> Table | None:
    """A row for each setting, to sort and filter; the unpruned models first."""
    if not findings.results or (findings.subject and findings.bases):
        return None
    columns: tuple[ResultColumn, ...] = (
        *short_columns(findings),
        ResultColumn("removed", "count", title="number of layers removed", cell=_removed_count),
        ResultColumn("weights", "bytes", cell=_stored_bytes),
        MAKE_TIME,
        *(_level_column(name) for name in findings.levels),
    )
    caption = "A mean over seeds where a setting has several."
    rows = [row for block in _by_model(findings, columns, ()) for row in block.rows]
    block = Block("", tuple(sorted(rows, key=lambda row: not row.base)))
    return Table("Every setting", (SETTING, *columns), (block,), caption, key="settings")


def _removed_count(result: Result) -> JudgedCell:
    return JudgedCell(0 if result.role == BASE else result.removed, "count")


def _stored_bytes(result: Result) -> JudgedCell:
    sizes = next((plan["bytes"] for plan in result.plans if plan.get("bytes")), None)
    stored = sizes and sizes["before" if result.role == BASE else "after"]
    return step_cell(stored, "bytes", result.step("plan", "prune"))


def _level_column(factor: str) -> ResultColumn:
    def cell(result: Result) -> JudgedCell:
        level = result.factors.get(factor)
        return JudgedCell(None if level in ("", "none") else level, "text")

    return ResultColumn(factor, "text", cell=cell)
