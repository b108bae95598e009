"""The charts below the first one: the layers of one setting, and quality against layers removed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from shortstack.charts.chart import Axis, Chart, Point, Series, axis
from shortstack.charts.drawing import COLOURED, swatch
from shortstack.charts.rows import Layer, stack
from shortstack.machine.formats import brief, counted, in_thousands, show_layers, shown, uncertainty
from shortstack.report.findings import Findings, Result
from shortstack.report.measures import Measure

OURS, THEIRS = 0, 5  # colours of the shorter model and of the unpruned one
Legend = tuple[tuple[Markup, str], ...]  # markers of lines and their names


@dataclass(frozen=True)
class Figure:
    """A chart with its caption and legend. section: first, kept or depth."""

    section: str
    title: str
    caption: str
    svg: Markup
    legend: Legend = ()


def figures(findings: Findings) -> list[Figure]:
    texts = findings.measured("perplexity")[:1]
    shares = [findings.headline] if findings.headline not in ("", *findings.measured("perplexity")) else []
    every = [
        findings.subject and _stack(findings.subject),
        *(_depth(findings, model, name) for model in findings.by_model for name in (*shares, *texts)),
    ]
    return [figure for figure in every if figure]


# One setting: its layers


def _stack(result: Result) -> Figure | None:
    """Draw every layer of the unpruned model: gone, refitted, or as it was."""
    plan, prune = next(iter(result.plans), {}), result.step("prune")
    if "removed" not in plan:
        return None
    repair = (prune.result.get("repair") or {}) if prune else {}
    fits = repair.get("fits") or () if repair.get("kept", True) else ()
    states = dict.fromkeys(range(plan["layers"]), "kept") | {fit["layer"]: "refitted" for fit in fits}
    healed = (
        result.healing if result.healing and result.healing.result.get("best_step") != 0 else None
    )  # else as before
    trained = (healed.result.get("trained_layers") or ()) if healed else ()
    kept = sorted({*range(plan["layers"])} - {*plan["removed"]})
    states |= {kept[layer]: f"{states[kept[layer]]} trained" for layer in trained}
    states |= dict.fromkeys(plan["removed"], "removed")
    layers = [Layer(state, f"layer {number}: {state.replace(' ', ', ')}") for number, state in sorted(states.items())]
    title = f"{plan['layers']} layers without {show_layers(plan['removed'])}"
    how = str(healed.arguments.get("method") or healed.result.get("method") or "") if healed else ""
    after = f" Healed after that{f' by {how}' if how else ''}." if healed else ""
    drawn = f"{'; green: refitted' if fits else ''}; blue: kept{'; outlined: trained' if trained else ''}"
    said = f"Empty: removed{drawn}.{after}"
    return Figure("kept", title, said, stack(layers, title=title))


# Quality against layers removed


def _depth(findings: Findings, model: str, column: str) -> Figure | None:
    """Draw a line for each setting, over the number of layers that it removes."""
    members: dict[str, list[Result]] = {}
    for result in findings.by_model.get(model, []):
        if column in result.measures and result.removed is not None:
            members.setdefault(findings.name(result, {"model", "drop"}), []).append(result)
    lines = _coloured([_depth_line(label, group, column) for label, group in members.items()])
    points = [point for line in lines for point in line.points]
    if len({point.x for point in points}) < 2:
        return None
    base = findings.bases[model].measures.get(column) if model in findings.bases else None
    levels = [("unpruned", base.value)] if base and math.isfinite(base.value) else []
    levels += [("chance", base.chance)] if base and base.chance is not None else []
    x = axis("layers removed", [0, *(point.x for point in points)], "{:g}".format, whole=True)
    y = _quality_axis(findings, column, [*(point.y for point in points), *(value for _, value in levels)])
    of = f", {brief(model)}" if len(findings.by_model) > 1 else ""
    title = f"{y.label} against layers removed{of}"
    chart = Chart(title, x, y, lines, levels)
    infinite = " A triangle at the upper edge: infinite." if any(point.infinite for point in points) else ""
    return Figure("depth", title, f"Bars are one standard error.{infinite}", chart.svg(), _legend(lines))


def _depth_line(label: str, results: Sequence[Result], column: str) -> Series:
    points = []
    for result in sorted(results, key=lambda result: result.removed or 0):
        measure, removed = result.measures[column], result.removed or 0
        title = f"{label}, {counted(removed, 'layer')} removed: {score_text(measure)}"
        points.append(Point(removed, measure.value, title, measure.stderr))
    return Series(label, points)


def score_text(measure: Measure) -> str:
    """Write a score with its standard error and its unit."""
    spread = uncertainty(measure.value, measure.stderr, measure.kind)
    return shown(measure.value, measure.kind) + (f" ± {spread}" if spread else "") + "%" * (measure.kind == "share")


def _quality_axis(findings: Findings, column: str, values: Sequence[float]) -> Axis:
    name = findings.title(column)
    if column.startswith("perplexity:"):
        return axis(name, values, in_thousands, log=True)
    return axis(f"{name} (%)", values, lambda value: f"{100 * value:.3g}")


def _coloured(lines: Sequence[Series]) -> list[Series]:
    """Colour the longest lines, of those the first; the others are grey."""
    ranked = sorted(lines, key=lambda line: -len(line.drawn))
    return [replace(line, colour=place if place < COLOURED else None) for place, line in enumerate(ranked)]


def _legend(lines: Sequence[Series]) -> Legend:
    named = [(swatch(line.colour), line.name) for line in lines if line.coloured]
    grey = len(lines) - len(named)
    return (*named, *([(swatch(None), counted(grey, "other"))] if grey else []))
