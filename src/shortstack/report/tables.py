"""The tables of a report: each is a function of the findings and an entry in TABLES."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from itertools import starmap
from typing import Any

from shortstack.machine.formats import brief, show_layers
from shortstack.machine.tables import Block, Cell, Column, Row, Table
from shortstack.report.findings import (
    AVERAGE,
    BASE,
    BEFORE,
    HEALED,
    HEALING,
    Findings,
    Result,
    before_healing,
    matched_groups,
)
from shortstack.report.labels import PLAIN
from shortstack.report.measures import UNITS, Change, Judgement, Measure, judge
from shortstack.runs.records import StepRecord

UNPRUNED = "base model"
EMPTY = Cell(None, "text")
MAKING = ("score", "plan", "prune", "heal")  # steps that make a model
SETTING = Column("setting", "text")
Judged = Mapping[str, Judgement]  # by measure
Heads = Sequence[tuple[Column, Callable[[Result, Judged], Cell]]]  # columns, and what makes the cells below them
Extra = tuple[Column, Callable[[Result], Cell]]
Maker = Callable[[Findings], Table | None]


# One setting compared with its base model


def kept(findings: Findings) -> Table | None:
    """Make a row for each measure of a single setting, for its weights and for its speed."""
    subject, pairs = findings.subject, findings.pairs
    if not subject or not pairs:
        return None
    rows = [_measured(findings.title(name), theirs, ours) for name, (theirs, ours) in pairs.items()]
    before, after = findings.stored_bytes(findings.bases[subject.model]), findings.stored_bytes(subject)
    if before and after:
        sizes = Cell(before, "bytes"), Cell(after, "bytes"), Cell(after / before - 1, "percent")
        rows.append(Row((Cell("weights", "text"), *sizes, EMPTY)))
    timed = subject.step("speed")
    if timed and (speed := timed.result.get("decode")):
        ends = Cell((speed["low"], speed["high"]), "ratio")
        rows.append(
            Row((Cell("decoding speed", "text"), EMPTY, EMPTY, Cell(speed["value"], "ratio", note="times"), ends))
        )
    columns = (
        Column("measure", "text"),
        Column(UNPRUNED),
        Column("pruned model"),
        Column("change"),
        Column("95% interval"),
    )
    caption = "The change of a perplexity is a factor; of all else, above 0 is better. ± is one standard error."
    return Table("What is kept", columns, (Block("", tuple(rows)),), caption, key="kept")


def _measured(title: str, theirs: Measure, ours: Measure) -> Row:
    change = Change.of(ours, theirs)
    label = Cell(title + (" (%)" if ours.kind == "share" else ""), "text")
    apart = Cell(change.value, change.form, note=change.unit), Cell(change.interval, change.form)
    return Row((label, theirs.cell, ours.cell, *apart))


# Columns of measures, judged against the base model and the best row


def _heads(findings: Findings, names: Sequence[str]) -> Iterator[tuple[Column, Callable[[Result, Judged], Cell]]]:
    """Yield a column for each measure; after the headline, how far it is from the base model's."""
    for name in names:
        measure = findings.example(name)
        yield _measure_column(findings, name, measure), partial(_measure_cell, name)
        if name == findings.headline and findings.bases:
            above = "difference from the base model: a factor for a perplexity, else above 0 is better"
            holm = "p-value of the difference from the base model, Holm-corrected over the comparisons of the block"
            unit = UNITS.get(measure.kind, "")
            yield Column("change", unit=unit, title=above), partial(_change_cell, name, lambda it: (it.value, it.form))
            yield Column("95% interval", title=above), partial(_change_cell, name, lambda it: (it.interval, it.form))
            yield Column("p, Holm", title=holm), partial(_change_cell, name, lambda it: (it.difference.p, "p"))


def _measure_column(findings: Findings, name: str, measure: Measure) -> Column:
    label, better = findings.names[name], f"{'higher' if measure.higher else 'lower'} is better"
    if name == AVERAGE:
        label, title = "average", f"plain mean of {len(findings.tasks)} tasks, in percent"
    elif measure.kind == "perplexity":
        title = f"perplexity on {label}, {measure.n or 0:,} tokens; {better}"
    else:
        on = f" on {measure.n:,} documents" if measure.n else ""
        title = f"{label}{on}{', in percent' if measure.kind == 'share' else ''}; {better}"
    return Column(label, measure.kind, f"%, {better}" if measure.kind == "share" else better, title)


def _measure_cell(name: str, result: Result, judged: Judged) -> Cell:
    measure = result.measures.get(name)
    return judged.get(name, Judgement()).judged(measure.cell) if measure else EMPTY


def _change_cell(name: str, show: Callable[[Change], tuple[Any, str]], result: Result, judged: Judged) -> Cell:
    change = judged[name].base if name in judged else None
    return Cell(*show(change), link=result.measures[name].link) if change else EMPTY


def _all(findings: Findings) -> list[str]:
    """List the average, every task and every text."""
    average = [AVERAGE] if AVERAGE in findings.names else []
    return [*average, *findings.measured("task"), *findings.measured("perplexity")]


def _short(findings: Findings) -> list[str]:
    """List the average, or the tasks where there is none, and every text."""
    first = [AVERAGE] if AVERAGE in findings.names else findings.measured("task")
    return [*first, *findings.measured("perplexity")]


# Columns of how it was made


def _removed(result: Result) -> Cell:
    plans = {tuple(sorted(plan["removed"])) for plan in result.plans if plan.get("removed")}
    if result.role == BASE or not plans:
        return EMPTY
    layers = show_layers(next(iter(plans))) if len(plans) == 1 else f"differs over {len(plans)} plans"
    return _step_cell(layers, "text", result.step("plan", "prune"))


def _time(result: Result, *roles: str) -> Cell:
    taken = [role for role in roles if role != "heal" or result.role == HEALED]
    step = result.step(*taken[::-1]) if result.role != BASE else None
    return _step_cell(result.seconds(*taken), "seconds", step) if step else EMPTY


def _healing(label: str, kind: str, title: str, value: Callable[[StepRecord], Any], unit: str = "") -> Extra:
    """Make a column of the first seed's healing."""

    def cell(result: Result) -> Cell:
        return _step_cell(value(result.healing), kind, result.healing) if result.healing else EMPTY

    return Column(label, kind, unit, f"{title}; of the first seed"), cell


def _held_out(objective: str, what: str) -> Extra:
    """Make the column of the lowest held-out loss of one objective: losses and divergences do not compare."""

    def value(step: StepRecord) -> Any:
        of_this = (step.result.get("objective") or step.arguments.get("loss") or "sft") == objective
        return (step.result.get("loss") or {}).get("held_out") if of_this else None

    title = f"lowest {what} on samples that were not trained on, nats per token"
    return _healing(f"held-out {what}", "loss", title, value, "nats, lower is better")


def _step_cell(value: Any, kind: str, step: StepRecord | None) -> Cell:
    return Cell(value, kind, link=step.key if step and value is not None else "")


REMOVED: Extra = Column("layers removed", "text", title="numbered from 0 in the base model"), _removed
MADE = "without evaluation; scoring as a whole, where metrics of one text share it"
MAKE_TIME: Extra = Column("time to make", "seconds", title=MADE), lambda result: _time(result, *MAKING)
HEALINGS: Sequence[Extra] = (
    _healing("trained", "parameters", "parameters that are trained", lambda it: it.result.get("trainable_parameters")),
    *starmap(_held_out, {"sft": "loss", "distill": "KL from the teacher"}.items()),
    (Column("time", "seconds", title="time that healing took"), lambda result: _time(result, "heal")),
    _healing("memory", "bytes", "peak memory of the process", lambda it: it.result.get("peak_rss_bytes")),
)


# Tables of results


def _block(
    title: str,
    rows: Sequence[tuple[str, Result]],
    bases: Sequence[tuple[str, Result]],
    heads: Heads,
    names: Sequence[str],
) -> Block:
    """Make the rows of a block, those of `bases` first; each number is judged against the first of them and the best."""
    against = bases[0][1].measures if bases and bases[0][1].role == BASE else {}
    judged = judge([result.measures for _, result in rows], against, names)
    first = [Row((Cell(label, "text"), *(cell(base, {}) for _, cell in heads)), base=True) for label, base in bases]
    made = []
    for (label, result), judgements in zip(rows, judged, strict=True):
        seeds = f" ({result.seeds} seeds)" if result.seeds > 1 else ""
        name = Cell(label + seeds, "text", link=f"t{result.trials[0].number}")
        made.append(Row((name, *(cell(result, judgements) for _, cell in heads))))
    return Block(title, (*first, *made))


def _without_judging(extras: Sequence[Extra], results: Sequence[Result]) -> Iterator[Any]:
    """Yield the columns that have a value in some row."""
    for column, cell in extras:
        if any(cell(result).value is not None for result in results):
            yield column, lambda result, _judged, cell=cell: cell(result)


def differing(
    findings: Findings,
    factor: str,
    key: str,
    title: str,
    measures: Callable[[Findings], list[str]],
    extras: Sequence[Extra],
) -> Table | None:
    """Make the table of results that differ in one factor alone; None where it does not vary."""
    groups = matched_groups(findings, factor)
    if not groups:
        return None
    names = measures(findings)
    heads = [*_heads(findings, names), *_without_judging(extras, [result for members in groups for result in members])]
    blocks = []
    for members in groups:
        first = next((it for it in members if it.factors["calibration"] != PLAIN["calibration"]), members[-1])
        bases = [(UNPRUNED, findings.bases[first.model])] if first.model in findings.bases else []
        if factor in HEALING and (before := before_healing(findings, members)):
            bases.append((BEFORE, before))
        rows = [(result.factors[factor], result) for result in members]
        blocks.append(_block(findings.label(first, {factor}), rows, bases, heads, names))
    heading = {"heal": "healing", "data": "healing data"}.get(factor, factor)
    columns = (Column(heading, "text"), *(column for column, _ in heads))
    return Table(title, columns, blocks, f"Rows of a block differ in the {heading} alone.", key=key)


def probes(findings: Findings) -> Table | None:
    """Make the table of generated text: small tasks whose answers a program knows, and repeated 4-grams."""
    names = findings.measured("probe")
    caption = "Small generation tasks that a program scores."
    return _by_model(findings, names, (), "Can it still write", caption, "probes") if names else None


def every_setting(findings: Findings) -> Table | None:
    if not findings.results or (findings.subject and findings.bases):
        return None
    weights = Column("weights", "bytes"), lambda result: Cell(findings.stored_bytes(result), "bytes")
    caption = "A mean over seeds where a setting has several."
    extras = (weights, REMOVED, MAKE_TIME)
    return _by_model(findings, _short(findings), extras, "Every setting", caption, "settings")


def _by_model(
    findings: Findings, names: Sequence[str], extras: Sequence[Extra], title: str, caption: str, key: str
) -> Table:
    heads = [*_heads(findings, names), *_without_judging(extras, findings.results)]
    blocks = []
    for model, results in findings.by_model.items():
        rows = [(findings.name(result, ("model",)), result) for result in results]
        bases = [(UNPRUNED, findings.bases[model])] if model in findings.bases else []
        blocks.append(_block(_model_title(findings, model), rows, bases, heads, names))
    return Table(title, (SETTING, *(column for column, _ in heads)), blocks, caption, key=key)


def _model_title(findings: Findings, model: str) -> str:
    return brief(model) if "model" in findings.levels else ""


# Sizes


def sizes(findings: Findings) -> Table | None:
    """Make the table of parameters, bytes and speed, with a row for each number of layers removed."""
    profiles = {model: steps for model, results in findings.by_model.items() if (steps := _profiles(results))}
    if not profiles:
        return None
    all_steps = [step for steps in profiles.values() for step in steps.values()]
    batches = sorted({speed["batch"] for step in all_steps for speed in step.result.get("speed") or ()})
    columns = (
        Column("layers removed", "text"),
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
    return Table("What it saves", columns, blocks, f"Speeds are medians{_where_timed(all_steps)}.", key="sizes")


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


def _size_row(size: str, step: StepRecord, columns: Sequence[Column], batches: Sequence[int]) -> Row:
    counts = ("parameters", "weight_bytes", "macs_per_token", "kv_bytes_per_token", "peak_bytes")
    speeds = {speed["batch"]: speed for speed in step.result.get("speed") or ()}
    rates = [speeds.get(n, {}).get(f"{name}_tokens_per_s") for name in ("prefill", "decode") for n in batches]
    values = zip([*map(step.result.get, counts), *rates], columns[1:], strict=True)
    cells = [_step_cell(value, column.kind, step) for value, column in values]
    return Row((Cell(size, "text"), *cells), size == UNPRUNED)


def _profiles(results: Sequence[Result]) -> dict[str, StepRecord]:
    """Find the step that profiled each size of a model, by the layers removed; the base model first."""
    base = next((step for result in results if (step := result.step("profile_base"))), None)
    by_size: dict[int, StepRecord] = {}
    for result in results:
        step = result.step("profile")
        if step and result.removed is not None:
            by_size.setdefault(result.removed, step)
    return ({UNPRUNED: base} if base else {}) | {str(removed): by_size[removed] for removed in sorted(by_size)}


def _by(
    factor: str,
    key: str,
    title: str,
    measures: Callable[[Findings], list[str]] = _short,
    extras: Sequence[Extra] = (REMOVED,),
) -> Maker:
    return partial(differing, factor=factor, key=key, title=title, measures=measures, extras=extras)


# Those that differ in one factor are as the tables 1, 2 and 4, 5, 6 and 7 of arXiv 2411.15558, which has none of repairs.
TABLES: Sequence[Maker] = (
    kept,
    _by("metric", "metrics", "Which layers to remove", _all),
    _by("heal", "healing", "How to heal", extras=HEALINGS),
    _by("rounds", "rounds", "All at once or in rounds", extras=(REMOVED, MAKE_TIME)),
    _by("calibration", "calibration", "How much the calibration text matters"),
    _by("data", "data", "How much the healing data matters", _all, ()),
    _by("repair", "repair", "Does repair help"),
    probes,
    sizes,
    every_setting,
)


def all_tables(findings: Findings) -> list[Table]:
    """Make every table that the runs have something for."""
    return [table for make in TABLES if (table := make(findings))]
