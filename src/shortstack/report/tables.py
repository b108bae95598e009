"""The tables of a report, each a pure function of what was measured; one whose factor does not vary is left out."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from shortstack.planning import show_layers
from shortstack.report import sentences
from shortstack.report.comparing import Judgement, judge
from shortstack.report.groups import Findings, Group, groups, with_seeds_said
from shortstack.report.numbers import listed
from shortstack.report.results import AVERAGE, FINAL, Result, results
from shortstack.report.runs import Runs, Step
from shortstack.report.settings import brief
from shortstack.report.table import Block, Cell, Column, Row, Table

UNPRUNED = "unpruned"
BEFORE = "pruned, not healed"
Extra = tuple[Column, Callable[[Result], Cell]]
MAKING = ("score", "plan", "prune", "heal")


def findings(runs: Runs) -> Findings:
    """What the trials measured, ready for tables and figures."""
    return Findings.of(runs, results(runs))


def all_tables(found: Findings) -> list[Table]:
    """Every table that the runs have something for, in the order of the report."""
    made = [
        metrics(found),
        healing(found),
        strategies(found),
        calibrations(found),
        healing_data(found),
        repairs(found),
        refits(found),
        probes(found),
        sizes(found),
        costs(found.runs),
        every_setting(found),
    ]
    return [table for table in made if table]


def metrics(found: Findings) -> Table | None:
    """Metric by task, as the paper's table 1: a block for each model, drop and healing."""
    return _contest(
        found,
        "metric",
        key="metrics",
        title="Which layers to remove",
        heading="metric",
        columns=_all_columns(found),
        extras=[REMOVED],
        finding=sentences.of_metrics,
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
        columns=_short_columns(found),
        extras=extras,
        finding=sentences.of_healing,
    )


def strategies(found: Findings) -> Table | None:
    """One cut against cutting and healing in turns, as the paper's table 5."""
    return _contest(
        found,
        "strategy",
        key="strategies",
        title="All at once or step by step",
        heading="strategy",
        columns=_short_columns(found),
        extras=[REMOVED, MAKE_TIME],
        finding=sentences.of_strategies,
    )


def calibrations(found: Findings) -> Table | None:
    """The same metric on other calibration text, as the paper's table 6."""
    return _contest(
        found,
        "calibration",
        key="calibration",
        title="How much the calibration text matters",
        heading="calibration",
        columns=_short_columns(found),
        extras=[REMOVED],
        finding=sentences.of_calibrations,
    )


def healing_data(found: Findings) -> Table | None:
    """The same healing on other data, as the paper's table 7."""
    return _contest(
        found,
        "data",
        key="data",
        title="How much the healing data matters",
        heading="healing data",
        columns=_all_columns(found),
        extras=[HELD_OUT],
        finding=sentences.of_data,
    )


def repairs(found: Findings) -> Table | None:
    """The same cut with and without repair."""
    return _contest(
        found,
        "repair",
        key="repair",
        title="Does repair help",
        heading="repair",
        columns=_short_columns(found),
        extras=[REMOVED],
        finding=sentences.of_repairs,
    )


# Comparisons: groups of results, each number judged against the unpruned model and the best of its block


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
                        (*(Cell.of(each.measures.get(name), row.get(name)) for name in columns), *_cells(each, extras)),
                        each.factors,
                        _numbers(each),
                    )
                    for each, row in zip(group.results, rows, strict=True)
                ),
            ),
        )
        for group, rows in zip(compared, judged, strict=True)
    ]
    heads = (*(_column(found, name) for name in columns), *(column for column, _ in extras))
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
        rows.append(Row(BEFORE, plain + (Cell(None, "text"),) * len(extras), known, _numbers(each), base=True))
    return rows


def _cells(result: Result, extras: Sequence[Extra]) -> list[Cell]:
    return [cell(result) for _, cell in extras]


def _numbers(result: Result) -> tuple[int, ...]:
    return tuple(trial.number for trial in result.trials)


def _all_columns(found: Findings) -> list[str]:
    return [*_average(found), *found.measured("task"), *found.measured("perplexity")]


def _short_columns(found: Findings) -> list[str]:
    return [*(_average(found) or found.measured("task")), *found.measured("perplexity")]


def _average(found: Findings) -> list[str]:
    return [AVERAGE] if AVERAGE in found.columns else []


def _column(found: Findings, name: str) -> Column:
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


# Columns beside what was measured


def _step_cell(value: Any, kind: str, step: Step | None) -> Cell:
    return Cell(value, kind, steps=(step.key,) if step and value is not None else ())


def _removed(result: Result) -> Cell:
    step = result.first("plan", "prune")
    plans = {tuple(sorted(plan["removed"])) for plan in result.plans if plan.get("removed")}
    if len(plans) > 1:
        return _step_cell(f"differs over {len(plans)} plans", "text", step)
    return _step_cell(show_layers(next(iter(plans))) if plans else None, "text", step)


def _of_healing(key: str, kind: str) -> Callable[[Result], Cell]:
    def cell(result: Result) -> Cell:
        step = result.first("heal")
        return _step_cell(step.result.get(key) if step else None, kind, step)

    return cell


def _held_out(result: Result) -> Cell:
    step = result.first("heal")
    loss = (step.result.get("loss") or {}).get("held_out") if step else None
    return _step_cell(loss, "loss", step)


def _heal_seconds(result: Result) -> Cell:
    return _step_cell(result.seconds("heal"), "seconds", result.first("heal"))


def _make_seconds(result: Result) -> Cell:
    return _step_cell(result.seconds(*MAKING), "seconds", result.first("heal", "prune"))


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
    _make_seconds,
)


# Tables that are no comparison of one factor


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
            Row(found.name(result, {"heal", "data"}), _refit_cells(repair, step), result.factors, _numbers(result))
        )
        told.append(repair)
    if not rows:
        return None
    block = Block("", tuple(rows))
    return Table("refits", "What repair regains", "setting", columns, (block,), sentences.of_refits(told))


def _refit_cells(repair: Mapping[str, Any], step: Step) -> tuple[Cell, ...]:
    losses = [repair.get(key) for key in ("loss_unpruned", "loss_before", "loss_after")]
    values = [None if loss is None else math.exp(min(loss, 700)) for loss in losses]
    return (
        *(_step_cell(value, "perplexity", step) for value in values),
        _step_cell(sentences.regained(repair), "percent", step),
        _step_cell(len(repair.get("fits") or ()) if repair.get("kept", True) else 0, "count", step),
        _step_cell(repair.get("seconds"), "seconds", step),
    )


def probes(found: Findings) -> Table | None:
    """What the models write: small tasks whose answers a program knows, and whether they go round in circles."""
    columns = found.measured("probe")
    extras = [COLLAPSE] if any(_collapse(each).value for each in found.results) else []
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
                _numbers(each),
            )
            for each, row in zip(some, rows, strict=True)
        ]
        blocks.append(Block(brief(model) if varying else "", (base, *others)))
    heads = (*(_column(found, name) for name in columns), *(column for column, _ in extras))
    return Table("probes", "Can it still write", "setting", heads, tuple(blocks), sentences.of_probes(found, columns))


def _probe_cells(
    result: Result, columns: Sequence[str], extras: Sequence[Extra], judged: Mapping[str, Judgement] | None = None
) -> tuple[Cell, ...]:
    plain = [Cell.of(result.measures.get(name), (judged or {}).get(name)) for name in columns]
    return (*plain, *_cells(result, extras))


def _collapse(result: Result) -> Cell:
    """What a free text says of the model: nothing where it was not looked at."""
    step = result.first(*FINAL, "evaluate_base")
    found = (step.result.get("collapse") or {}) if step else {}
    fallen = listed([str(name).replace("_", " ") for name in found.get("fallen") or ()])
    words = (f"collapsed: {fallen}" if fallen else "collapsed") if found.get("collapsed") else "fluent"
    return _step_cell(words if found else None, "text", step)


COLLAPSE: Extra = (
    Column(
        "collapse",
        "free text",
        "text",
        title="collapsed: loops, few words or silence",
    ),
    _collapse,
)


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
    return Table("sizes", "What it saves", "layers removed", columns, tuple(blocks), sentences.of_sizes(profiles))


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
        _step_cell(step.result.get(key), kind, step)
        for key, kind in (
            ("parameters", "parameters"),
            ("weight_bytes", "bytes"),
            ("macs_per_token", "parameters"),
            ("kv_bytes_per_token", "bytes"),
            ("peak_bytes", "bytes"),
        )
    ]
    rates = [
        _step_cell(speeds.get(n, {}).get(f"{what}_tokens_per_s"), "rate", step)
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
    return Table("costs", "What it took", "step", columns, (Block("", tuple(rows)),), sentences.of_costs(runs, uses))


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
            _step_cell(longest.seconds if longest else None, "seconds", longest),
            Cell(max(0.0, saved), "seconds"),
            Cell(memory or None, "bytes"),
        ),
    )


def every_setting(found: Findings) -> Table | None:
    """A row for each setting, to sort and filter; the unpruned models first."""
    if not found.results:
        return None
    columns = _short_columns(found)
    heads = (
        *(_column(found, name) for name in columns),
        Column("count", "removed", "count", title="number of layers removed"),
        Column("bytes", "weights", "bytes", -1),
        Column("seconds", "time to make", "seconds", -1, "scoring, pruning and healing; evaluation is not counted"),
        *(Column(name, name, "text") for name in found.levels),
    )
    rows = [_setting_row(found, each, columns, base=True) for each in found.bases.values()]
    rows += [_setting_row(found, each, columns) for each in found.results]
    title, block = "Every setting", Block("", tuple(rows))
    return Table("settings", title, "setting", heads, (block,), sentences.of_settings(found))


def _setting_row(found: Findings, result: Result, columns: Sequence[str], *, base: bool = False) -> Row:
    sizes = [plan["bytes"] for plan in result.plans if plan.get("bytes")]
    stored = (sizes[0]["before"] if base else sizes[0]["after"]) if sizes else None
    cells = (
        *(Cell.of(result.measures.get(name)) for name in columns),
        Cell(0 if base else result.removed, "count"),
        _step_cell(stored, "bytes", result.first("plan", "prune")),
        Cell(None, "seconds") if base else _make_seconds(result),
        *(Cell(_level(result.factors.get(name)), "text") for name in found.levels),
    )
    if base:
        return Row(UNPRUNED, cells, {"model": result.model}, base=True)
    return Row(found.name(result) + with_seeds_said(result), cells, result.factors, _numbers(result))


def _level(level: str | None) -> str | None:
    return None if level in ("", "none") else level
