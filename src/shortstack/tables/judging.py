"""What models are worth, as tables: evaluate and compare."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, TypeVar

from shortstack import console
from shortstack.suites import PERPLEXITIES

if TYPE_CHECKING:
    from shortstack.collapse import Collapse
    from shortstack.comparing import Comparison, Row
    from shortstack.evaluation import Evaluation, TaskResult
    from shortstack.pairs import Paired
    from shortstack.probes import Probed
    from shortstack.timing import Ratio

Measured = TypeVar("Measured")


def show_evaluation(title: str, evaluation: Evaluation) -> None:
    """What was measured, beside the unpruned model where that is known."""
    base = evaluation.base
    texts = _beside(evaluation.perplexity, base.perplexity if base else None)
    rows = [
        (
            name,
            console.number(found.value),
            f"{found.tokens:,}",
            f"{found.loss:.4f} +- {found.loss_stderr:.4f}" if found.windows["samples"] > 1 else f"{found.loss:.4f}",
            "yes" if found.windows["bos"] else "no",
            found.dtype,
        )
        for name, found in texts.items()
    ]
    if rows:
        console.show_table(title, ("text", "perplexity", "tokens", "loss +- s.e.", "BOS", "computed in"), rows)
    if evaluation.tasks:
        _show_tasks("tasks" if rows else title, evaluation)
    if base and evaluation.against:
        values = {name: (base.tasks[name].value, evaluation.tasks[name].value) for name in evaluation.against}
        _show_against(f"against {base.model}, document by document", evaluation.against, values)
        for name in evaluation.against:
            _show_unit(name, evaluation.tasks[name])
    if evaluation.probes:
        _show_probes(evaluation.probes, base)
    if base and evaluation.probes_against:
        paired = evaluation.probes_against
        values = {name: (found.base, found.value) for name, found in paired.items()}
        _show_against(f"probes against {base.model}, item by item", paired, values)
    if evaluation.collapse:
        _show_collapse(evaluation.collapse)


def _beside(found: Mapping[str, Measured], base: Mapping[str, Measured] | None) -> dict[str, Measured]:
    """What was measured by name, each with the base's after it where there is one."""
    named = ((name, each) for name in found for each in ((name, found), (f"{name}, base", base)))
    return {label: values[name] for name, (label, values) in named if values is not None}


def _show_tasks(title: str, evaluation: Evaluation) -> None:
    """Each task's value, the number of documents and what guessing gets, and averages of what are shares."""
    base = evaluation.base
    results = _beside(evaluation.tasks, base.tasks if base else None)
    rows = [
        (
            name,
            found.metric,
            f"{found.value:.4f} +- {found.stderr:.4f}" if math.isfinite(found.stderr) else console.number(found.value),
            f"{found.n:,}",
            "-" if found.chance is None else f"{found.chance:.2f}",
            "yes" if found.bos else "no",
        )
        for name, found in results.items()
    ]
    console.show_table(title, ("task", "metric", "value +- s.e.", "documents", "chance", "BOS"), rows)
    _show_averages(evaluation)


def _show_averages(evaluation: Evaluation) -> None:
    """Of each suite that was asked whole; where there is none, of all tasks."""
    base = evaluation.base
    if evaluation.averages:
        for suite, value in evaluation.averages.items():
            _show_average(f"Average, {suite}", value, base.averages.get(suite) if base else None)
    elif evaluation.average is not None and len(evaluation.tasks) > 1:
        _show_average("Average", evaluation.average, base.average if base else None)


def _show_average(name: str, value: float, base: float | None) -> None:
    beside = "" if base is None else f", base {base:.4f}"
    console.show(f"{name}: {value:.4f}{beside}")


def _show_against(title: str, paired: Mapping[str, Paired], values: Mapping[str, tuple[float, float]]) -> None:
    """What the same documents, asked of both models, say; values: by name the base's, and that of the model here."""
    found = paired.values()
    columns = {
        "base": [f"{values[name][0]:.4f}" for name in paired],
        "here": [f"{values[name][1]:.4f}" for name in paired],
        "difference +- s.e.": [f"{each.difference:+.4f} +- {each.stderr:.4f}" for each in found],
        "95 % interval": [f"{each.interval[0]:+.4f} to {each.interval[1]:+.4f}" for each in found],
        "p, Holm": [f"{each.p_holm:.2g}" for each in found],
        "kept": [_share_kept(each.retention) for each in found],
        "above chance": [
            "base at chance" if each.base_at_chance else _share_kept(each.retention_above_chance) for each in found
        ],
    }
    console.show_columns(title, ("asked", [*paired]), columns)


def _show_unit(name: str, found: TaskResult) -> None:
    """What a difference is of, where it is not of the two values beside it."""
    if found.metric in PERPLEXITIES:
        unit = f"log-likelihood in nats per {PERPLEXITIES[found.metric]}, higher is better"
        console.show(f"{name}: base and here are {found.metric}; the difference and its interval are of the {unit}.")
    elif not found.higher_is_better:
        console.show(f"{name}: of {found.metric} less is better; the difference and its interval have the sign turned.")


def _share_kept(retention: float | None) -> str:
    return "-" if retention is None else f"{round(retention)} %"  # an int: no minus before a 0


def _show_probes(probes: Mapping[str, Probed], base: Evaluation | None) -> None:
    """The share of each probe's items that were answered rightly, beside the base's."""

    def right(found: Probed) -> str:
        return f"{found.accuracy.value:.3f} +- {found.accuracy.stderr:.3f}"

    rows = [
        (name, right(found), *([right(base.probes[name])] if base else []), f"{found.chance:.3f}", str(found.n))
        for name, found in probes.items()
    ]
    heading = ("probe", "right +- s.e.", *(["base"] if base else []), "chance", "items")
    console.show_table("probes, answered greedily", heading, rows)


def _show_collapse(found: Collapse) -> None:
    """A line where all is well; else what has fallen, and the text that shows it."""
    base = "its base" if found.against_base else "a small model that works"
    if not found.fallen:
        least = min(found.shares.values())
        console.show(f"No loop and no silence: what it writes keeps {least:.0%} or more of each measure of {base}.")
        return
    values, wanted = asdict(found.fluency), asdict(found.base)
    rows = [
        (
            name,
            console.number(values[name]),
            console.number(wanted[name]),
            f"{share:.0%}",
            "yes" * (name in found.fallen),
        )
        for name, share in found.shares.items()
    ]
    console.show_table("collapsed: what it writes freely", ("measure", "model", base, "share kept", "fallen"), rows)
    console.show(f"It writes: {found.sample}")


def show_comparison(found: Comparison) -> None:
    """A row for each contender, best first; what each is, and why some are not there; and what that says."""
    rows = [row for row in found.rows if not row.reason]
    title = f"{found.model} in {found.memory} of its bytes, {console.size(found.budget)}; by perplexity, best first"
    console.show_columns(title, ("", [row.name for row in rows]), _compared(rows))
    console.show("decode and prefill: times the unpruned model's speed, from runs in turns.")
    notes = [(row.name, row.note or row.reason) for row in found.rows if row.note or row.reason]
    console.show_table("what they are", ("", ""), notes)
    for warning in found.warnings:
        console.show(warning)
    console.show(found.advice)


def _compared(rows: Sequence[Row]) -> dict[str, list[str]]:
    """A cell of each row, column by column."""
    return {
        "bytes": [console.size(row.bytes or 0) for row in rows],
        "fits": ["yes" if row.within else "no" for row in rows],
        **{text: [console.number(row.perplexity[text].value) for row in rows] for text in rows[0].perplexity},
        **{task: [_of_task(row.tasks[task]) for row in rows] for task in rows[0].tasks},
        "collapsed": ["yes" if row.collapsed else "no" for row in rows],
        "decode": [_times_unpruned(row, row.ratio.decode if row.ratio else None) for row in rows],
        "prefill": [_times_unpruned(row, row.ratio.prefill if row.ratio else None) for row in rows],
    }


def _of_task(found: Mapping[str, Any]) -> str:
    value, stderr = found["value"], found["stderr"]
    return f"{value:.3f} ± {stderr:.3f}" if stderr is not None and math.isfinite(stderr) else f"{value:.3f}"


def _times_unpruned(row: Row, ratio: Ratio | None) -> str:
    return f"{ratio.value:.2f}" if ratio else "1" if row.speed else "-"
