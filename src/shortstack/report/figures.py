"""The figures of a report: each is a function of the findings and an entry in FIGURES."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from shortstack.charts.chart import Axis, Chart, Point, Series, axis
from shortstack.charts.drawing import COLOURED, macro
from shortstack.charts.rows import Dot, Layer, dots, stack
from shortstack.machine.formats import brief, counted, in_thousands, show_layers
from shortstack.report.findings import Findings, Result
from shortstack.report.measures import Change, Measure

MOST = 8  # settings of which it is drawn what they keep
Legend = tuple[tuple[Markup, str], ...]  # markers of lines and their names


@dataclass(frozen=True)
class Figure:
    """A chart with its caption and legend."""

    title: str
    caption: str
    svg: Markup
    legend: Legend = ()


def kept(findings: Findings) -> Iterator[Figure]:
    """Draw the share of the base model's quality that is kept: by each measure, or by the best settings."""
    if findings.subject:
        title = "What is kept, in % of the base model"
        pairs = [(findings.title(name), *pair) for name, pair in findings.pairs.items()]
    else:
        title = f"What is kept of {findings.title(findings.headline)}, in % of the base model: the best settings"
        pairs = [
            (brief(_setting(findings, result), 84), base.measures[findings.headline], score)
            for model, base in findings.bases.items()
            if findings.headline in base.measures
            for result, score in findings.ranked(findings.by_model.get(model, []))[:MOST]
        ]
    rows = [row for pair in pairs if (row := _row(*pair))]
    if rows:
        caption = "Accuracy on tasks and generation probes, and likelihood per token. Lines are 95% intervals."
        scale = axis("", [0.0, 1.0, *(row.value for row in rows)], "{:.0%}".format)
        yield Figure(title, caption, dots(rows, title=title, scale=scale))


def _setting(findings: Findings, result: Result) -> str:
    model = f"{brief(result.model, 16)}, " if len(findings.bases) > 1 else ""
    removed = f"{counted(result.removed, 'layer')}: " if result.removed else ""
    return f"{model}{removed}{findings.name(result, {'model', 'drop'})}"


def _row(title: str, theirs: Measure, ours: Measure) -> Dot | None:
    change = Change.of(ours, theirs)
    low, high = change.interval or (change.value, change.value)
    if ours.kind == "perplexity" and low > 0:
        value, low, high = 1 / change.value, 1 / high, 1 / low
        title = title.replace("perplexity on", "likelihood of")
    elif ours.kind == "share" and theirs.value:
        value, low, high = (1 + end / theirs.value for end in (change.value, low, high))
    else:
        return None
    return Dot(title, value, low, high, f"{value:.0%} kept") if math.isfinite(value) else None


def layers(findings: Findings) -> Iterator[Figure]:
    """Draw every layer of the base model of one setting: removed, refitted, or as it was."""
    result = findings.subject
    plan = next(iter(result.plans), {}) if result else {}
    if not result or "removed" not in plan:
        return
    prune = result.step("prune")
    repair = (prune.result.get("repair") or {}) if prune else {}
    fits = repair.get("fits") or () if repair.get("kept", True) else ()
    states = dict.fromkeys(range(plan["layers"]), "kept") | {fit["layer"]: "refitted" for fit in fits}
    healing = result.healing
    healed = healing if healing and healing.result.get("best_step") != 0 else None  # else as before
    trained = (healed.result.get("trained_layers") or ()) if healed else ()
    kept = sorted({*range(plan["layers"])} - {*plan["removed"]})
    states |= {kept[layer]: f"{states[kept[layer]]} trained" for layer in trained}
    states |= dict.fromkeys(plan["removed"], "removed")
    drawn = [Layer(state, f"layer {number}: {state.replace(' ', ', ')}") for number, state in sorted(states.items())]
    title = f"{plan['layers']} layers without {show_layers(plan['removed'])}"
    how = str(healed.arguments.get("method") or healed.result.get("method") or "") if healed else ""
    after = f" Healed after that{f' by {how}' if how else ''}." if healed else ""
    said = f"{'; green: refitted' if fits else ''}; blue: kept{'; outlined: trained' if trained else ''}"
    yield Figure(title, f"Empty: removed{said}.{after}", stack(drawn, title=title))


def depths(findings: Findings) -> Iterator[Figure]:
    """Draw quality against layers removed, with a line for each setting."""
    texts = findings.measured("perplexity")[:1]
    shares = [findings.headline] if findings.headline not in ("", *findings.measured("perplexity")) else []
    for model in findings.by_model:
        for column in (*shares, *texts):
            if figure := _depth(findings, model, column):
                yield figure


def _depth(findings: Findings, model: str, column: str) -> Figure | None:
    members: dict[str, list[Result]] = {}
    for result in findings.by_model.get(model, []):
        if column in result.measures and result.removed is not None:
            members.setdefault(findings.name(result, {"model", "drop"}), []).append(result)
    lines = _coloured([_depth_line(label, group, column) for label, group in members.items()])
    points = [point for line in lines for point in line.points]
    if len({point.x for point in points}) < 2:
        return None
    base = findings.bases[model].measures.get(column) if model in findings.bases else None
    levels = [("base model", base.value)] if base and math.isfinite(base.value) else []
    levels += [("chance", base.chance)] if base and base.chance is not None else []
    x = axis("layers removed", [0, *(point.x for point in points)], "{:g}".format, whole=True)
    y = _quality_axis(findings, column, [*(point.y for point in points), *(value for _, value in levels)])
    of = f", {brief(model)}" if len(findings.by_model) > 1 else ""
    title = f"{y.label} against layers removed{of}"
    chart = Chart(title, x, y, lines, levels)
    infinite = " A triangle at the upper edge: infinite." if any(point.infinite for point in points) else ""
    return Figure(title, f"Bars are one standard error.{infinite}", chart.svg(), _legend(lines))


def _depth_line(label: str, results: Sequence[Result], column: str) -> Series:
    points = []
    for result in sorted(results, key=lambda result: result.removed or 0):
        measure, removed = result.measures[column], result.removed or 0
        score = measure.cell.measured + "%" * (measure.kind == "share")
        title = f"{label}, {counted(removed, 'layer')} removed: {score}"
        points.append(Point(removed, measure.value, title, measure.estimate.stderr))
    return Series(label, points)


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
    named = [(macro("swatch")(line.colour), line.name) for line in lines if line.coloured]
    grey = len(lines) - len(named)
    return (*named, *([(macro("swatch")(None), counted(grey, "other"))] if grey else []))


FIGURES: Sequence[Callable[[Findings], Iterator[Figure]]] = (kept, layers, depths)


def figures(findings: Findings) -> list[Figure]:
    """Draw every figure that the runs have something for."""
    return [figure for draw in FIGURES for figure in draw(findings)]
