"""Content of the charts: the results on a line, the label of a point, and the points that nothing beats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import Any

from shortstack.charts.chart import Axis, Chart, Facets, Point, Series, axis, front, in_thousands
from shortstack.charts.drawing import COLOURED, WIDE, WIDTH, swatch
from shortstack.charts.rows import heat_map
from shortstack.machine.formats import brief, counted, shown, uncertainty
from shortstack.report.figure import Figure, Legend, wide
from shortstack.report.findings import Findings
from shortstack.report.labels import short_paths
from shortstack.report.results import BASE, Measure, Result
from shortstack.report.single_setting import single_setting
from shortstack.runs.records import StepRecord

BEYOND = 2.5  # times the median loss: from there on a point lies at the chart's edge


def figures(findings: Findings, facets: Facets) -> list[Figure]:
    """Every figure that the runs have something for. facets: factors as the words that the page filters by."""
    models = findings.bases or findings.by_model
    texts = findings.measured("perplexity")[:1]
    shares = [findings.headline] if findings.headline not in ("", *findings.measured("perplexity")) else []
    every = [
        *single_setting(findings),
        *(_depth(findings, model, name, facets) for model in models for name in (*shares, *texts)),
        *(_trade_off(findings, base, facets, size=size) for base in findings.bases.values() for size in (True, False)),
        *_heat_maps(findings),
        _losses(findings, facets),
    ]
    return [figure for figure in every if figure]


# Quality against layers removed


def _depth(findings: Findings, model: str, column: str, facets: Facets) -> Figure | None:
    """One line for each setting, over the number of layers that it removes."""
    members: dict[str, list[Result]] = {}
    for each in findings.by_model.get(model, []):
        if column in each.measures and each.removed is not None:
            members.setdefault(findings.name(each, {"model", "drop"}), []).append(each)
    lines = _coloured([_depth_line(label, some, column) for label, some in members.items()])
    points = [point for line in lines for point in line.points]
    if len({point.x for point in points}) < 2:
        return None
    base = findings.bases[model].measures.get(column) if model in findings.bases else None
    levels = [("unpruned", base.value)] if base and math.isfinite(base.value) else []
    levels += [("chance", base.chance)] if base and base.chance is not None else []
    x = axis("layers removed", [0, *(point.x for point in points)], "{:g}".format, whole=True)
    y = _quality_axis(findings, column, [*(point.y for point in points), *(value for _, value in levels)])
    title = f"{y.label} against layers removed{_of_model(findings, model)}"
    beyond = " A triangle at the upper edge: infinite." if any(point.infinite for point in points) else ""
    caption, chart = f"Bars are one standard error.{beyond}", Chart(title, x, y, lines, levels)
    key, legend = f"depth-{column}-{model}", _legend(lines, facets)
    return Figure(key, "depth", title, caption, chart.svg(facets), legend, wide=wide(chart, facets))


def _depth_line(label: str, some: Sequence[Result], column: str) -> Series:
    """The points of results that differ in the layers removed; the line's factors are those that all of them share."""
    points = []
    for each in sorted(some, key=lambda each: each.removed or 0):
        measure, removed = each.measures[column], each.removed or 0
        title = f"{label}, {counted(removed, 'layer')} removed: {score_text(measure)}"
        points.append(Point(removed, measure.value, title, measure.stderr))
    first = some[0].factors
    common = {name: level for name, level in first.items() if all(each.factors[name] == level for each in some)}
    return Series(label, points, None, common)


def score_text(measure: Measure) -> str:
    """A score with its standard error and its unit."""
    spread = uncertainty(measure.value, measure.stderr, measure.kind)
    return shown(measure.value, measure.kind) + (f" ± {spread}" if spread else "") + "%" * (measure.kind == "share")


def _quality_axis(findings: Findings, column: str, values: Sequence[float]) -> Axis:
    """The axis of a column's values: logarithmic for perplexities, else in percent."""
    name = brief(findings.names[column])
    if column.startswith("perplexity:"):
        return axis(f"perplexity on {name}", values, in_thousands, log=True)
    return axis(f"{name} (%)", values, lambda value: f"{100 * value:.3g}")


def _of_model(findings: Findings, model: str) -> str:
    """The end of a title, where there are several models."""
    return f", {brief(model)}" if len(findings.bases) > 1 else ""


def _coloured(lines: Sequence[Series]) -> list[Series]:
    """The longest lines, of those the first, in colours; the others grey. A line has one colour in all figures."""
    ranked = sorted(lines, key=lambda line: -sum(not math.isnan(point.y) for point in line.points))
    return [replace(line, colour=place if place < COLOURED else None) for place, line in enumerate(ranked)]


def _legend(lines: Sequence[Series], facets: Facets) -> Legend:
    named = [(swatch(line.colour), line.name, facets(line.factors)) for line in lines if line.colour is not None]
    grey = sum(line.colour is None for line in lines)
    return (*named, *([(swatch(None), counted(grey, "other"), "")] if grey else []))


# Quality against size and speed, with the front


def _trade_off(findings: Findings, base: Result, facets: Facets, *, size: bool) -> Figure | None:
    """A point for each setting: its score over its bytes, or over its speed; the best of both in colour."""
    points: list[tuple[Point, Result]] = []
    for each in (base, *findings.by_model.get(base.model, [])):
        measure, at = findings.score(each), _stored_bytes(findings, each) if size else _tokens_per_second(each)
        if measure and at is not None and math.isfinite(measure.value):
            name = "unpruned" if each is base else findings.name(each, {"model"})
            where = shown(at, "bytes") if size else f"{shown(at, 'rate')} tokens/s"
            title = f"{name}: {where}, {shown(measure.value, measure.kind)}"
            points.append((Point(at, measure.value, title, measure.stderr), each))
    if len({point.x for point, _ in points}) < 2:
        return None
    y = _quality_axis(findings, findings.headline, [point.y for point, _ in points])
    best = front([point for point, _ in points], less_x=size, less_y=y.log)
    lines = []
    for point, each in points:
        colour = 5 if each is base else 0 if point in best else None
        factors = {"model": base.model} if each is base else each.factors
        lines.append(Series("", [point], colour, factors, joined=False))
    what, label = ("size", "weights") if size else ("speed", "new tokens per second, one sequence")
    x = axis(label, [point.x for point, _ in points], _short_bytes if size else lambda value: shown(value, "rate"))
    title = f"{y.label} against {what}{_of_model(findings, base.model)}"
    chart = Chart(title, x, y, lines, front=best)
    names = "; ".join(point.title for point in best[:6]) + ("; ..." if len(best) > 6 else "")
    caption = f"On the front, which nothing beats in both: {names}."
    return Figure(f"{what}-{base.model}", "sizes", title, caption, chart.svg(facets), wide=wide(chart, facets))


def _short_bytes(value: float) -> str:
    """Bytes in few digits."""
    number, unit = shown(value, "bytes").split()
    return f"{float(number):.3g} {unit}"


def _stored_bytes(findings: Findings, result: Result) -> float | None:
    """Bytes of the weights: measured, else as planned."""
    if result.role == BASE:
        plans = [plan for each in findings.by_model.get(result.model, []) for plan in each.plans]
        return next((plan["bytes"]["before"] for plan in plans if plan.get("bytes")), None)
    profile = result.step("profile")
    if profile and profile.result.get("weight_bytes"):
        return float(profile.result["weight_bytes"])
    return next((plan["bytes"]["after"] for plan in result.plans if plan.get("bytes")), None)


def _tokens_per_second(result: Result) -> float | None:
    """New tokens per second at the smallest batch."""
    step = result.step("profile_base" if result.role == BASE else "profile")
    speeds = (step.result.get("speed") or ()) if step else ()
    smallest: Mapping[str, Any] = min(speeds, key=lambda speed: speed["batch"], default={})
    return smallest.get("decode_tokens_per_s")


# Scores of layers


def _heat_maps(findings: Findings) -> list[Figure]:
    """The order in which each metric removes layers: a map for each model and calibration, all but the first folded."""
    steps: dict[str, StepRecord] = {}
    for trial in findings.runs.trials:
        step = trial.step("score")
        if step and step.result.get("order"):
            steps.setdefault(str(step.result["order"]), step)
    maps = [_heat_map(findings, step) for step in steps.values()]
    return [replace(each, folded=place > 0) for place, each in enumerate(maps)]


def _heat_map(findings: Findings, step: StepRecord) -> Figure:
    orders = step.result["order"]
    places = {metric: [order.index(layer) for layer in range(len(order))] for metric, order in orders.items()}
    scores = step.result.get("scores") or {}
    marked = min((each.removed for each in findings.results if each.removed), default=0)
    tokens = step.result.get("tokens") or {}
    read = ",".join(short_paths(str(tokens.get("source", "")).split(",")).values())
    on = f", on {tokens['samples']} x {tokens['length']} tokens of {brief(read)}" if tokens else ""
    model = brief(str((step.result.get("model") or {}).get("source") or step.arguments.get("model", "")))
    title = f"Which layers each metric removes first, {model}{on}"

    def text(metric: str, layer: int) -> str:
        value = scores[metric][layer] if scores.get(metric) else None
        score = "" if value is None else f", score {shown(float(value), 'number')}"
        return f"layer {layer} by {metric}: {_ordinal(places[metric][layer] + 1)} to go{score}"

    caption = "The stronger the colour, the earlier a layer goes." + (f" Dots: the first {marked}." if marked else "")
    narrow, wider = (heat_map(places, title=title, text=text, marked=marked, width=width) for width in (WIDTH, WIDE))
    return Figure(f"scores-{step.key[:12]}", "metrics", title, caption, narrow, wide=wider)


def _ordinal(number: int) -> str:
    """
    >>> [_ordinal(number) for number in (1, 2, 3, 4, 11, 22)]
    ['1st', '2nd', '3rd', '4th', '11th', '22nd']
    """
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


# Losses over training


def _losses(findings: Findings, facets: Facets) -> Figure | None:
    """Held-out loss over the steps of every healing, the training loss thin behind it."""
    lines: dict[str, Series] = {}
    for each in findings.results:
        step = each.step("heal")
        if step and step.result.get("held_out_losses"):
            lines.setdefault(step.key, _loss_line(findings.name(each), each, step))
    if not lines:
        return None
    drawn, legend = _by_level([*lines.values()], facets)
    points = [point for line in drawn for point in line.points]
    every = [*points, *(point for line in drawn for point in line.thin)]
    most = BEYOND * median(point.y for point in every)  # one that has collapsed does not hide what the others do
    x = axis("optimizer steps", [point.x for point in points], "{:,g}".format, whole=True)
    y = axis("loss (nats per token)", [min(point.y, most) for point in every], "{:.3g}".format)
    title = "Held-out loss while healing"
    chart = Chart(title, x, y, drawn)
    beyond = " At the upper edge: higher than the chart." if any(point.y > y.high for point in points) else ""
    caption = f"Thin lines: the training loss.{beyond}"
    return Figure("losses", "healing", title, caption, chart.svg(facets), legend, wide=wide(chart, facets))


def _loss_line(label: str, result: Result, step: StepRecord) -> Series:
    held_out = [(at, loss) for at, loss in step.result["held_out_losses"] if loss is not None]
    trained = [Point(at, loss, "") for at, loss in step.result.get("losses") or () if loss is not None]
    points = [Point(at, loss, f"{label}, step {at:g}: held-out loss {shown(loss, 'loss')}") for at, loss in held_out]
    return Series(label, points, None, result.factors, thin=trained)


def _as_named(factor: str, level: str) -> str:
    """A level as a legend says it: an amount with what it counts."""
    return f"{counted(int(level), 'layer')} fewer" if factor == "drop" and level.isdigit() else level


def _by_level(lines: Sequence[Series], facets: Facets) -> tuple[list[Series], Legend]:
    """Coloured by the first factor that tells a few kinds apart, with those kinds as the legend."""
    for factor in ("heal", "data", "drop", "metric"):
        levels = list(dict.fromkeys(line.factors.get(factor, "") for line in lines))
        if 1 < len(levels) <= COLOURED:
            drawn = [replace(line, colour=levels.index(line.factors[factor])) for line in lines]
            names = [
                (swatch(place), brief(_as_named(factor, level)), facets({factor: level}))
                for place, level in enumerate(levels)
            ]
            return drawn, tuple(names)
    drawn = _coloured(lines)
    return drawn, _legend(drawn, facets)
