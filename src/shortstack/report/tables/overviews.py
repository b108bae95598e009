"""Tables that are no comparison of one factor: repairs, probes, sizes, costs, and every setting."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from shortstack.report.columns import (
    COLLAPSE,
    UNPRUNED,
    Extra,
    column_of,
    extra_cells,
    make_seconds,
    short_columns,
    step_cell,
    trial_numbers,
)
from shortstack.report.findings import Findings, with_seeds_said
from shortstack.report.labels import brief
from shortstack.report.results import Result
from shortstack.report.sentences import of_costs, of_probes, of_refits, of_settings, of_sizes, regained
from shortstack.report.significance import Judgement, judge
from shortstack.report.table import Block, Cell, Column, Row, Table
from shortstack.runs import Runs
from shortstack.runs.records import Step


def refits(found: Findings) -> Table | None:
    """What repair did to the held-out loss of its own text, a row for each repaired checkpoint."""
    columns = (
        Column(
            "unpruned", "unpruned", "perplexity", -1, "held-out perplexity of the unpruned model on the repair's text"
        ),
        Column("cut", "cut", "perplexity", -1, "after the cut"),
        Column("repaired", "repaired", "perplexity", -1, "after the repair"),
        Column("regained", "regained", "percent", 1, "share of the loss that the cut added and repair took away again"),
        Column("weights", "weights refitted", "count"),
        Column("seconds", "time", "seconds", -1),
    )
    rows: list[Row] = []
    told = []
    for result in found.results:
        step = result.first("prune")
        repair = step.result.get("repair") if step else None
        if not step or not repair or step.key in {key for row in rows for cell in row.cells for key in cell.steps}:
            continue
        rows.append(
            Row(found.name(result, {"heal", "data"}), _refit_cells(repair, step), result.factors, trial_numbers(result))
        )
        told.append(repair)
    if not rows:
        return None
    block = Block("", tuple(rows))
    return Table("refits", "What repair regains", "setting", columns, (block,), of_refits(told))


def _refit_cells(repair: Mapping[str, Any], step: Step) -> tuple[Cell, ...]:
    losses = [repair.get(key) for key in ("loss_unpruned", "loss_before", "loss_after")]
    values = [None if loss is None else math.exp(min(loss, 700)) for loss in losses]
    return (
        *(step_cell(value, "perplexity", step) for value in values),
        step_cell(regained(repair), "percent", step),
        step_cell(len(repair.get("fits") or ()) if repair.get("kept", True) else 0, "count", step),
        step_cell(repair.get("seconds"), "seconds", step),
    )


def probes(found: Findings) -> Table | None:
    """What the models write: small tasks whose answers a program knows, and whether they go round in circles."""
    columns = found.measured("probe")
    _, free_text = COLLAPSE
    extras = [COLLAPSE] if any(free_text(each).value for each in found.results) else []
    if not columns and not extras:
        return None
    varying = {"model"} if "model" in found.levels else set()
    members = {base: [each for each in found.results if each.model == base] for base in found.bases}
    judged = judge(
        [[each.measures for each in some] for some in members.values()],
        [found.bases[model].measures for model in members],
        columns,
    )
    blocks = []
    for (model, some), rows in zip(members.items(), judged, strict=True):
        base = Row(UNPRUNED, _probe_cells(found.bases[model], columns, extras), {"model": model}, base=True)
        others = [
            Row(
                found.name(each, varying) + with_seeds_said(each),
                _probe_cells(each, columns, extras, row),
                each.factors,
                trial_numbers(each),
            )
            for each, row in zip(some, rows, strict=True)
        ]
        blocks.append(Block(brief(model) if varying else "", (base, *others)))
    heads = (*(column_of(found, name) for name in columns), *(column for column, _ in extras))
    return Table("probes", "Can it still write", "setting", heads, tuple(blocks), of_probes(found, columns))


def _probe_cells(
    result: Result, columns: Sequence[str], extras: Sequence[Extra], judged: Mapping[str, Judgement] | None = None
) -> tuple[Cell, ...]:
    plain = [Cell.of(result.measures.get(name), (judged or {}).get(name)) for name in columns]
    return (*plain, *extra_cells(result, extras))


def sizes(found: Findings) -> Table | None:
    """Parameters, bytes and speed of each size of each model; one row per number of layers removed."""
    profiles = list(_profiles(found))
    if not profiles:
        return None
    batches = sorted({speed["batch"] for _, _, step in profiles for speed in step.result.get("speed") or ()})
    columns = (
        Column("parameters", "parameters", "parameters", -1),
        Column("weight_bytes", "weights", "bytes", -1, "bytes of all weights"),
        Column("macs_per_token", "MACs per token", "parameters", -1, "multiply-accumulates to read one token"),
        Column("kv_bytes_per_token", "cache per token", "bytes", -1, "bytes that the keys and values of a token take"),
        Column("peak_bytes", "peak memory", "bytes", -1),
        *(Column(f"prefill{n}", f"read, batch {n}", "rate", 1, "prompt tokens per second") for n in batches),
        *(Column(f"decode{n}", f"write, batch {n}", "rate", 1, "new tokens per second") for n in batches),
    )
    blocks = []
    for model in dict.fromkeys(model for model, _, _ in profiles):
        rows = [_size_row(name, step, batches, model) for known, name, step in profiles if known == model]
        blocks.append(Block(brief(model) if "model" in found.levels else "", tuple(rows)))
    return Table("sizes", "What it saves", "layers removed", columns, tuple(blocks), of_sizes(profiles))


def _profiles(found: Findings) -> Iterable[tuple[str, str, Step]]:
    """(model, layers removed, step) of each size once, the unpruned model first."""
    for model in dict.fromkeys(each.model for each in found.results):
        members = [each for each in found.results if each.model == model]
        base = next((step for each in members if (step := each.first("profile_base"))), None)
        if base:
            yield model, UNPRUNED, base
        by_size: dict[int, Step] = {}
        for each in members:
            step = each.first("profile")
            if step and each.removed is not None:
                by_size.setdefault(each.removed, step)
        for removed in sorted(by_size):
            yield model, str(removed), by_size[removed]


def _size_row(name: str, step: Step, batches: Sequence[int], model: str) -> Row:
    speeds = {speed["batch"]: speed for speed in step.result.get("speed") or ()}
    plain = [
        step_cell(step.result.get(key), kind, step)
        for key, kind in (
            ("parameters", "parameters"),
            ("weight_bytes", "bytes"),
            ("macs_per_token", "parameters"),
            ("kv_bytes_per_token", "bytes"),
            ("peak_bytes", "bytes"),
        )
    ]
    rates = [
        step_cell(speeds.get(n, {}).get(f"{what}_tokens_per_s"), "rate", step)
        for what in ("prefill", "decode")
        for n in batches
    ]
    return Row(name, (*plain, *rates), {"model": model}, base=name == UNPRUNED)


def costs(runs: Runs) -> Table | None:
    """What each kind of step took, and what sharing steps between trials saved."""
    uses: dict[str, int] = {}
    for trial in runs.trials:
        for step in trial.steps.values():
            uses[step.key] = uses.get(step.key, 0) + 1
    kinds: dict[str, list[Step]] = {}
    for step in runs.steps.values():
        kinds.setdefault(step.kind, []).append(step)
    if not kinds:
        return None
    columns = (
        Column("steps", "steps", "count", title="steps that were done"),
        Column("uses", "asked for", "count", title="how often trials needed one"),
        Column("failed", "failed", "count", -1),
        Column("seconds", "time", "seconds", -1, "time that the steps took together"),
        Column("longest", "longest", "seconds", -1, "time of the longest step"),
        Column(
            "saved", "saved", "seconds", 1, "time that the same steps would have taken again, had they not been shared"
        ),
        Column("memory", "peak memory", "bytes", -1),
    )
    rows = [_cost_row(kind, steps, uses) for kind, steps in kinds.items()]
    rows.sort(key=lambda row: -float(row.cells[3].value or 0))
    return Table("costs", "What it took", "step", columns, (Block("", tuple(rows)),), of_costs(runs, uses))


def _cost_row(kind: str, steps: Sequence[Step], uses: Mapping[str, int]) -> Row:
    done = [step for step in steps if step.state == "done"]
    longest = max(done, key=lambda step: step.seconds or 0, default=None)
    memory = max((step.peak_rss_bytes or 0 for step in done), default=0)
    total = sum(step.seconds or 0 for step in done)
    saved = sum((step.seconds or 0) * (uses.get(step.key, 1) - 1) for step in done)
    return Row(
        kind,
        (
            Cell(len(done), "count"),
            Cell(sum(uses.get(step.key, 0) for step in steps), "count"),
            Cell(sum(step.state == "failed" for step in steps), "count"),
            Cell(total, "seconds"),
            step_cell(longest.seconds if longest else None, "seconds", longest),
            Cell(max(0.0, saved), "seconds"),
            Cell(memory or None, "bytes"),
        ),
    )


def every_setting(found: Findings) -> Table | None:
    """A row for each setting, to sort and filter; the unpruned models first."""
    if not found.results:
        return None
    columns = short_columns(found)
    heads = (
        *(column_of(found, name) for name in columns),
        Column("count", "removed", "count", title="number of layers removed"),
        Column("bytes", "weights", "bytes", -1),
        Column("seconds", "time to make", "seconds", -1, "scoring, pruning and healing; evaluation is not counted"),
        *(Column(name, name, "text") for name in found.levels),
    )
    rows = [_setting_row(found, each, columns, base=True) for each in found.bases.values()]
    rows += [_setting_row(found, each, columns) for each in found.results]
    title, block = "Every setting", Block("", tuple(rows))
    return Table("settings", title, "setting", heads, (block,), of_settings(found))


def _setting_row(found: Findings, result: Result, columns: Sequence[str], *, base: bool = False) -> Row:
    sizes = [plan["bytes"] for plan in result.plans if plan.get("bytes")]
    stored = (sizes[0]["before"] if base else sizes[0]["after"]) if sizes else None
    cells = (
        *(Cell.of(result.measures.get(name)) for name in columns),
        Cell(0 if base else result.removed, "count"),
        step_cell(stored, "bytes", result.first("plan", "prune")),
        Cell(None, "seconds") if base else make_seconds(result),
        *(Cell(_level(result.factors.get(name)), "text") for name in found.levels),
    )
    if base:
        return Row(UNPRUNED, cells, {"model": result.model}, base=True)
    return Row(found.name(result) + with_seeds_said(result), cells, result.factors, trial_numbers(result))


def _level(level: str | None) -> str | None:
    return None if level in ("", "none") else level
