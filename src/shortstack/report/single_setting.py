"""Charts of a single setting, as shrink leaves it: the size and the abilities that it keeps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from shortstack.charts.chart import Chart, Point, Series, axis, in_thousands
from shortstack.charts.drawing import swatch
from shortstack.charts.rows import Dots, Layer, dots, stack
from shortstack.machine.formats import brief, counted, show_layers, shown
from shortstack.machine.numbers import perplexity
from shortstack.report.figure import Figure, wide
from shortstack.report.findings import Findings
from shortstack.report.results import HEALED, Result
from shortstack.runs.records import StepRecord, TailCurve

OURS, THEIRS = 0, 5  # colours of the shorter model and of the unpruned one


def single_setting(findings: Findings) -> list[Figure | None]:
    """The stack of layers, what is kept of each ability, and the curve of depths, of a study of one setting."""
    result = _subject(findings)
    if result is None or not result.plans:
        return []
    return [_stack(result), _kept(findings, result), _tail_curve(findings.runs.tail_curve)]


def _subject(findings: Findings) -> Result | None:
    """The one setting that there is, or that the page is about: its last form."""
    subject = findings.runs.subject
    if len(findings.results) == 1:
        return findings.results[0]
    return next((each for each in findings.results[::-1] if subject and subject.number in each.numbers), None)


def _stack(result: Result) -> Figure | None:
    """Every layer of the unpruned model: gone, refitted, or as it was."""
    plan, prune = result.plans[0], result.step("prune")
    if "removed" not in plan:
        return None
    repair = (prune.result.get("repair") or {}) if prune else {}
    fits = repair.get("fits") or () if repair.get("kept", True) else ()
    states = dict.fromkeys(range(plan["layers"]), "kept") | {fit["layer"]: "refitted" for fit in fits}
    healed = result.step("heal") if result.role == HEALED else None
    states |= {layer: f"{states[layer]} trained" for layer in _trained(plan, healed)}
    states |= dict.fromkeys(plan["removed"], "removed")
    layers = [Layer(state, f"layer {number}: {state.replace(' ', ', ')}") for number, state in sorted(states.items())]
    title = f"{plan['layers']} layers without {show_layers(plan['removed'])}"
    how = str(healed.arguments.get("method") or healed.result.get("method") or "") if healed else ""
    after = f" Healed after that{f' by {how}' if how else ''}." if healed else ""
    outlined = "; outlined: trained" if any("trained" in state for state in states.values()) else ""
    said = f"Empty: removed{'; green: refitted' if fits else ''}; blue: kept{outlined}.{after}"
    return Figure("stack", "kept", title, said, stack(layers, title=title))


def _trained(plan: Mapping[str, Any], healed: StepRecord | None) -> Sequence[int]:
    """The layers of the unpruned model that healing trained; where it did not name them, the last so many."""
    if healed is None:
        return ()
    kept = sorted({*range(plan["layers"])} - {*plan["removed"]})
    named, last = healed.result.get("trained_layers"), healed.arguments.get("last")
    if named is not None:
        return [kept[layer] for layer in named]
    return kept[-last:] if last else ()


def _kept(findings: Findings, result: Result) -> Figure | None:
    """Tasks and probes of both models, with their standard errors and chance."""
    base = findings.bases.get(result.model)
    names = [name for name in (*findings.measured("task"), *findings.measured("probe")) if name in result.measures]
    shares = [
        name for name in names if result.measures[name].kind == "share" and math.isfinite(result.measures[name].value)
    ]
    if not base or not shares:
        return None
    rows = []
    for name in shares:
        ours, theirs = result.measures[name], base.measures.get(name)
        values = [(THEIRS, theirs.value, theirs.stderr)] if theirs and math.isfinite(theirs.value) else []
        rows.append(Dots(brief(findings.names[name], 16), [*values, (OURS, ours.value, ours.stderr)], ours.chance))
    title = "Share right, by task and probe of writing"
    legend = ((swatch(THEIRS), "unpruned", ""), (swatch(OURS), "shorter", ""))
    return Figure("shares", "kept", title, "± one standard error; dotted: chance.", dots(rows, title=title), legend)


def _tail_curve(curve: TailCurve | None) -> Figure | None:
    """Perplexity without the last layers at some depths, with this cut as it was and as it was made."""
    if curve is None:
        return None
    ends = [
        _at(amount, loss, f"the last {counted(amount, 'layer')} cut" if amount else "unpruned")
        for amount, loss in zip(curve.removed, curve.losses, strict=True)
    ]
    cut, made = "this cut, nothing repaired", "this checkpoint"
    lines = [
        Series("the last layers cut, nothing repaired", ends, THEIRS),
        Series(cut, [_at(curve.cut_removed, curve.cut_loss, cut)], 1),
        Series(made, [_at(curve.cut_removed, curve.made_loss, made)], OURS),
    ]
    every = [point for line in lines for point in line.points]
    x = axis("layers removed", [point.x for point in every], "{:g}".format, whole=True)
    y = axis(f"perplexity on {brief(curve.text)}", [point.y for point in every], in_thousands, log=True)
    title = "This cut beside the last layers, by how many go"
    beyond = " A triangle at the upper edge: infinite." if any(point.infinite for point in every) else ""
    caption = f"On {counted(curve.samples, 'window')} of {curve.length} tokens.{beyond}"
    legend = tuple((swatch(line.colour), line.name, "") for line in lines)
    chart = Chart(title, x, y, lines)
    return Figure("tails", "depth", title, caption, chart.svg(), legend, wide=wide(chart))


def _at(removed: int, loss: float, said: str) -> Point:
    """A point at the perplexity of a loss."""
    return Point(removed, perplexity(loss), f"{said}: perplexity {shown(perplexity(loss), 'number')}")
