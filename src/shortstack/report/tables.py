"""The tables of a report: cells that lead to their steps, columns, rows, and a function or an entry for each table."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from shortstack.machine.formats import brief, show_layers
from shortstack.machine.tables import ABOVE, BELOW, NEAR, Block, Cell, Column, Row, Table
from shortstack.report.findings import (
    AVERAGE,
    BASE,
    BEFORE,
    HEALED,
    HEALING,
    Findings,
    Result,
    matched_groups,
    unhealed,
)
from shortstack.report.labels import PLAIN
from shortstack.report.measures import UNITS, Difference, Judgement, Measure, judge
from shortstack.runs.records import StepRecord

UNPRUNED = "unpruned"


@dataclass(frozen=True)
class JudgedCell(Cell):
    """One number or word, the steps it comes from, and how it stands in its column."""

    steps: tuple[str, ...] = ()
    judgement: Judgement = field(default_factory=Judgement)

    @classmethod
    def of(cls, measure: Measure | None) -> JudgedCell:
        """Make the cell of what was measured; an empty one where nothing was."""
        return cls(measure.value, measure.kind, measure.stderr, steps=measure.steps) if measure else EMPTY

    @property
    def sort(self) -> Any:
        """The sort key; None is last in either direction."""
        if isinstance(self.value, tuple):
            return self.value[0]
        return None if isinstance(self.value, float) and math.isnan(self.value) else self.value

    @property
    def place(self) -> int:
        return self.judgement.place

    @property
    def marks(self) -> str:
        base, best = self.judgement.base, self.judgement.best
        apart = "" if base is None or not base.significant else BELOW if base.worse else ABOVE
        return apart + (NEAR if best and best.p is not None and not best.significant else "")

    @property
    def why(self) -> str:
        comparisons = [("the unpruned model", self.judgement.base), ("the best", self.judgement.best)]
        return "; ".join(f"against {name}: {_tested(difference)}" for name, difference in comparisons if difference)


def _tested(difference: Difference) -> str:
    p = "" if difference.p is None else f"p {'< 0.001' if difference.p < 0.001 else f'= {difference.p:.3f}'}, "
    return f"{difference.text} ({p}{difference.how})"


EMPTY = JudgedCell(None, "text")


@dataclass(frozen=True)
class ResultColumn(Column):
    """A column that makes the cells below it from results.

    measure: the column of the measures that it shows, whose numbers are judged against each other. compares: where the cell
    is made from how that measure stands beside the unpruned model's.
    """

    cell: Callable[[Result], JudgedCell] = lambda _result: EMPTY
    measure: str = ""
    compares: Callable[[Difference], JudgedCell] | None = None


@dataclass(frozen=True)
class ResultRow(Row):
    """A row of what trials measured."""

    trials: tuple[int, ...] = ()


# Columns of what was measured


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
    unit = f"%, {better}" if measure.kind == "share" else better
    return ResultColumn(
        label, measure.kind, unit, title, cell=lambda result: JudgedCell.of(result.measures.get(name)), measure=name
    )


def _compared_columns(name: str, measure: Measure) -> list[ResultColumn]:
    """Make columns of how far a measure is from the unpruned model's, with its interval and p."""

    def column(label: str, title: str, cell: Callable[[Difference], JudgedCell], unit: str = "") -> ResultColumn:
        return ResultColumn(label, unit=unit, title=title, measure=name, compares=cell)

    above = "difference from the unpruned model: a factor for a perplexity, else above 0 is better"
    chance = "p-value of the difference from the unpruned model, Holm-corrected over the comparisons of the block"
    return [
        column("change", above, lambda difference: change_cells(difference)[0], UNITS.get(measure.kind, "")),
        column("95% interval", above, lambda difference: change_cells(difference)[1]),
        column("p, Holm", chance, lambda difference: JudgedCell(difference.p, "p")),
    ]


def change_cells(difference: Difference) -> tuple[JudgedCell, JudgedCell]:
    return JudgedCell(difference.change, difference.form), JudgedCell(difference.interval, difference.form)


# Columns of how it was made


def _healing_column(
    label: str, kind: str, value: Callable[[StepRecord], Any], title: str, unit: str = ""
) -> ResultColumn:

    def cell(result: Result) -> JudgedCell:
        return _step_cell(value(result.healing), kind, result.healing) if result.healing else EMPTY

    return ResultColumn(label, kind, unit, title, cell=cell)


def _step_cell(value: Any, kind: str, step: StepRecord | None) -> JudgedCell:
    return JudgedCell(value, kind, steps=(step.key,) if step and value is not None else ())


def _removed(result: Result) -> JudgedCell:
    plans = {tuple(sorted(plan["removed"])) for plan in result.plans if plan.get("removed")}
    if result.role == BASE or not plans:
        return EMPTY
    layers = show_layers(next(iter(plans))) if len(plans) == 1 else f"differs over {len(plans)} plans"
    return _step_cell(layers, "text", result.step("plan", "prune"))


def _time_column(label: str, title: str, *roles: str) -> ResultColumn:

    def cell(result: Result) -> JudgedCell:
        taken = [role for role in roles if role != "heal" or result.role == HEALED]
        step = result.step(*taken[::-1]) if result.role != BASE else None
        return _step_cell(result.seconds(*taken), "seconds", step) if step else EMPTY

    return ResultColumn(label, "seconds", title=title, cell=cell)


REMOVED = ResultColumn("layers removed", "text", title="numbered from 0 in the unpruned model", cell=_removed)
TRAINABLE = _healing_column(
    "trained",
    "parameters",
    lambda step: step.result.get("trainable_parameters"),
    "parameters that healing trains; of the first seed",
)
OBJECTIVES = {"sft": "loss", "distill": "KL from the teacher"}  # what healing lowers, by its option `loss`


def _held_out_column(objective: str) -> ResultColumn:
    """Make the column of the lowest held-out loss of one objective: losses and divergences do not compare."""

    def value(step: StepRecord) -> Any:
        of_this = (step.result.get("objective") or step.arguments.get("loss") or "sft") == objective
        return (step.result.get("loss") or {}).get("held_out") if of_this else None

    title = f"lowest {OBJECTIVES[objective]} on samples that were not trained on, nats per token; of the first seed"
    return _healing_column(f"held-out {OBJECTIVES[objective]}", "loss", value, title, "nats, lower is better")


HELD_OUT = tuple(map(_held_out_column, OBJECTIVES))
HEAL_TIME = _time_column("time", "time that healing took", "heal")
HEAL_MEMORY = _healing_column(
    "memory",
    "bytes",
    lambda step: step.result.get("peak_rss_bytes"),
    "peak memory of the process that healed; of the first seed",
)
MADE = "without evaluation; scoring as a whole, where metrics of one text share it"
MAKE_TIME = _time_column("time to make", MADE, "score", "plan", "prune", "heal")


# Rows of results under columns


def judged_rows(
    results: Sequence[Result], base: Result | None, columns: Sequence[ResultColumn], label: Callable[[Result], str]
) -> list[ResultRow]:
    """Make the rows of a block, the unpruned model's first; each number is judged against it and against the best."""
    names = [column.measure for column in columns if column.measure]
    judged = judge([result.measures for result in results], base.measures if base else {}, names)
    rows = [] if base is None else [_base_row(UNPRUNED, base, columns)]
    for result, judgements in zip(results, judged, strict=True):
        cells = [_cell(column, result, judgements.get(column.measure, Judgement())) for column in columns]
        seeds = f" ({result.seeds} seeds)" if result.seeds > 1 else ""
        rows.append(ResultRow((JudgedCell(label(result) + seeds, "text"), *cells), trials=result.numbers))
    return rows


def _base_row(label: str, base: Result, columns: Sequence[ResultColumn]) -> ResultRow:
    return ResultRow((JudgedCell(label, "text"), *(column.cell(base) for column in columns)), base=True)


def _cell(column: ResultColumn, result: Result, judgement: Judgement) -> JudgedCell:
    if column.compares is None:
        return replace(column.cell(result), judgement=judgement)
    if judgement.base is None:
        return EMPTY
    return replace(column.compares(judgement.base), steps=result.measures[column.measure].steps)


# Tables of results that differ in one factor alone


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
    results = [result for members in groups for result in members]
    told = (extra for extra in extras if any(extra.cell(result).value is not None for result in results))
    columns = (*measures(findings), *told)
    blocks = tuple(_block(findings, factor, members, columns) for members in groups)
    heading = HEADINGS.get(factor, factor)
    caption = f"Rows of a block differ in the {heading} alone."
    return Table(title, (Column(heading, "text"), *columns), blocks, caption, key=key)


def _block(findings: Findings, factor: str, members: Sequence[Result], columns: Sequence[ResultColumn]) -> Block:
    first = next((result for result in members if result.factors["calibration"] != PLAIN["calibration"]), members[-1])
    base = findings.bases.get(first.model)
    rows = judged_rows(members, base, columns, lambda result: result.factors[factor])
    if factor in HEALING and (before := unhealed(findings, members)):
        rows.insert(bool(base), _base_row(BEFORE, before, columns))
    return Block(findings.label(first, {factor}), tuple(rows))


HEADINGS = {"heal": "healing", "data": "healing data"}  # of factors whose name says too little
HEALING_EXTRAS = (TRAINABLE, *HELD_OUT, HEAL_TIME, HEAL_MEMORY)
FACTORS = (  # as the tables 1, 2 and 4, 5, 6 and 7 of the paper, which has none of repairs
    ("metric", "metrics", "Which layers to remove", all_columns, (REMOVED,)),
    ("heal", "healing", "How to heal", short_columns, HEALING_EXTRAS),
    ("rounds", "rounds", "All at once or in rounds", short_columns, (REMOVED, MAKE_TIME)),
    ("calibration", "calibration", "How much the calibration text matters", short_columns, (REMOVED,)),
    ("data", "data", "How much the healing data matters", all_columns, ()),
    ("repair", "repair", "Does repair help", short_columns, (REMOVED,)),
)
SETTING = Column("setting", "text")


def probes(findings: Findings) -> Table | None:
    """Make the table of generated text: small tasks whose answers a program knows, and repeated 4-grams."""
    columns = measured_columns(findings, findings.measured("probe"))
    if not columns:
        return None
    caption = "Small generation tasks that a program scores."
    return Table("Can it still write", (SETTING, *columns), _by_model(findings, columns), caption, key="probes")


def _by_model(findings: Findings, columns: Sequence[ResultColumn]) -> tuple[Block, ...]:
    blocks = []
    for model, results in findings.by_model.items():
        rows = judged_rows(
            results, findings.bases.get(model), columns, lambda result: findings.name(result, ("model",))
        )
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
        rows = tuple(_size_row(size, step, columns, batches) for size, step in steps.items())
        blocks.append(Block(_model_title(findings, model), rows))
    caption = f"Speeds are medians{_where_timed(all_steps)}."
    heading = Column("layers removed", "text")
    return Table("What it saves", (heading, *columns), tuple(blocks), caption, key="sizes")


def _where_timed(steps: Sequence[StepRecord]) -> str:
    """Say whether speeds were measured alike: on one machine and device, with as many threads."""
    timed = [step for step in steps if step.result.get("speed")]
    known = {
        "machines": {step.host for step in timed},
        "devices": {step.result.get("device") for step in timed},
        "numbers of threads": {step.result.get("threads") for step in timed},
    }
    differing = [name for name, values in known.items() if len(values - {None}) > 1]
    return f", taken with different {' and '.join(differing)}: they do not compare" if differing else " on one machine"


def _size_row(size: str, step: StepRecord, columns: Sequence[Column], batches: Sequence[int]) -> ResultRow:
    counts = ("parameters", "weight_bytes", "macs_per_token", "kv_bytes_per_token", "peak_bytes")
    speeds = {speed["batch"]: speed for speed in step.result.get("speed") or ()}
    rates = [speeds.get(n, {}).get(f"{name}_tokens_per_s") for name in ("prefill", "decode") for n in batches]
    values = zip([*map(step.result.get, counts), *rates], columns, strict=True)
    cells = [_step_cell(value, column.kind, step) for value, column in values]
    return ResultRow((JudgedCell(size, "text"), *cells), size == UNPRUNED)


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
    if not findings.results or (findings.subject and findings.bases):
        return None
    columns: tuple[ResultColumn, ...] = (
        *short_columns(findings),
        ResultColumn("weights", "bytes", cell=lambda result: JudgedCell(findings.stored_bytes(result), "bytes")),
        REMOVED,
        MAKE_TIME,
    )
    caption = "A mean over seeds where a setting has several."
    return Table("Every setting", (SETTING, *columns), _by_model(findings, columns), caption, key="settings")


OVERVIEWS = (probes, sizes, every_setting)


def all_tables(findings: Findings) -> list[Table]:
    """Make every table that the runs have something for; one whose factor does not vary is left out."""
    tables = [*(factor_table(findings, *factor) for factor in FACTORS), *(make(findings) for make in OVERVIEWS)]
    return [table for table in tables if table]
