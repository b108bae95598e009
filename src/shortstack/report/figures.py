"""Content of the charts below the first one: the results on a line, the label of a point, what nothing beats."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median
from typing import Any

from markupsafe import Markup

from shortstack.charts.chart import Axis, Chart, Point, Series, axis, front, in_thousands
from shortstack.charts.drawing import COLOURED, swatch
from shortstack.charts.rows import Layer, heat_map, stack
from shortstack.machine.formats import brief, counted, show_layers, shown, uncertainty
from shortstack.machine.numbers import perplexity
from shortstack.report.findings import Findings
from shortstack.report.results import BASE, HEALED, Measure, Result
from shortstack.runs.records import StepRecord, TailCurve

OURS, THEIRS = 0, 5  # colours of the shorter model and of the unpruned one
BEYOND = 2.5  # times the median loss: from there on a point lies at the chart's edge
Legend = tuple[tuple[Markup, str], ...]  # markers of lines and their names


@dataclass(frozen=True)
class Figure:
    """A chart with its caption and legend. section: the key of the table that it stands beside, first, kept or depth.

    folded: whether it is shown on request alone.
    """

    key: str
    section: str
    title: str
    caption: str
    svg: Markup
    legend: Legend = ()
    folded: bool = False


def figures(findings: Findings) -> list[Figure]:
    """Every figure that the runs have something for."""
    models = findings.bases or findings.by_model
    texts = findings.measured("perplexity")[:1]
    shares = [findings.headline] if findings.headline not in ("", *findings.measured("perplexity")) else []
    bases = findings.bases.values() if not findings.subject else ()
    every = [
        findings.subject and _stack(findings.subject),
        findings.subject and _tail_curve(findings.runs.tail_curve),
        *(_depth(findings, model, name) for model in models for name in (*shares, *texts)),
        *(_trade_off(findings, base, size=size) for base in bases for size in (True, False)),
        *_heat_maps(findings),
        _losses(findings),
    ]
    return [figure for figure in every if figure]


def lines_figure(key: str, section: str, chart: Chart, caption: str, legend: Legend = ()) -> Figure:
    """A chart of lines; where a point is infinite, its caption says how that is drawn."""
    infinite = any(point.infinite for line in chart.lines for point in line.points)
    said = f"{caption} A triangle at the upper edge: infinite." if infinite else caption
    return Figure(key, section, chart.title, said, chart.svg(), legend)


# One setting: its layers, and the curve of depths


def _stack(result: Result) -> Figure | None:
    """Every layer of the unpruned model: gone, refitted, or as it was."""
    plan, prune = next(iter(result.plans), {}), result.step("prune")
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
    caption = f"On {counted(curve.samples, 'window')} of {curve.length} tokens."
    legend = tuple((swatch(line.colour), line.name) for line in lines)
    return lines_figure("tails", "depth", Chart(title, x, y, lines), caption, legend)


def _at(removed: int, loss: float, said: str) -> Point:
    """A point at the perplexity of a loss."""
    return Point(removed, perplexity(loss), f"{said}: perplexity {shown(perplexity(loss), 'number')}")


# Quality against layers removed


def _depth(findings: Findings, model: str, column: str) -> Figure | None:
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
    chart = Chart(title, x, y, lines, levels)
    return lines_figure(f"depth-{column}-{model}", "depth", chart, "Bars are one standard error.", _legend(lines))


def _depth_line(label: str, some: Sequence[Result], column: str) -> Series:
    """The points of results that differ in the layers removed."""
    points = []
    for each in sorted(some, key=lambda each: each.removed or 0):
        measure, removed = each.measures[column], each.removed or 0
        title = f"{label}, {counted(removed, 'layer')} removed: {score_text(measure)}"
        points.append(Point(removed, measure.value, title, measure.stderr))
    return Series(label, points)


def score_text(measure: Measure) -> str:
    """A score with its standard error and its unit."""
    spread = uncertainty(measure.value, measure.stderr, measure.kind)
    return shown(measure.value, measure.kind) + (f" ± {spread}" if spread else "") + "%" * (measure.kind == "share")


def _quality_axis(findings: Findings, column: str, values: Sequence[float]) -> Axis:
    """The axis of a column's values: logarithmic for perplexities, else in percent."""
    name = findings.title(column)
    if column.startswith("perplexity:"):
        return axis(name, values, in_thousands, log=True)
    return axis(f"{name} (%)", values, lambda value: f"{100 * value:.3g}")


def _of_model(findings: Findings, model: str) -> str:
    """The end of a title, where there are several models."""
    return f", {brief(model)}" if len(findings.bases) > 1 else ""


def _coloured(lines: Sequence[Series]) -> list[Series]:
    """The longest lines, of those the first, in colours; the others grey. A line has one colour in all figures."""
    ranked = sorted(lines, key=lambda line: -sum(not math.isnan(point.y) for point in line.points))
    return [replace(line, colour=place if place < COLOURED else None) for place, line in enumerate(ranked)]


def _legend(lines: Sequence[Series]) -> Legend:
    named = [(swatch(line.colour), line.name) for line in lines if line.coloured]
    grey = len(lines) - len(named)
    return (*named, *([(swatch(None), counted(grey, "other"))] if grey else []))


# Quality against size and speed, with the front


def _trade_off(findings: Findings, base: Result, *, size: bool) -> Figure | None:
    """A point for each setting: its score over its bytes, or over its speed; the best of both in colour."""
    points: list[tuple[Point, Result]] = []
    for each in (base, *findings.by_model.get(base.model, [])):
        measure, at = findings.score(each), stored_bytes(findings, each) if size else _tokens_per_second(each)
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
        lines.append(Series("", [point], colour, joined=False))
    what, label = ("size", "weights") if size else ("speed", "new tokens per second, one sequence")
    x = axis(label, [point.x for point, _ in points], _short_bytes if size else lambda value: shown(value, "rate"))
    title = f"{y.label} against {what}{_of_model(findings, base.model)}"
    chart = Chart(title, x, y, lines, front=best)
    names = "; ".join(point.title for point in best[:6]) + ("; ..." if len(best) > 6 else "")
    caption = f"On the front, which nothing beats in both: {names}."
    return Figure(f"{what}-{base.model}", "sizes", title, caption, chart.svg())


def _short_bytes(value: float) -> str:
    """Bytes in few digits."""
    number, unit = shown(value, "bytes").split()
    return f"{float(number):.3g} {unit}"


def stored_bytes(findings: Findings, result: Result) -> float | None:
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
    on = f", on {tokens['samples']} x {tokens['length']} tokens of {brief(str(tokens['source']))}" if tokens else ""
    model = brief(str((step.result.get("model") or {}).get("source") or step.arguments.get("model", "")))
    title = f"Which layers each metric removes first, {model}{on}"

    def text(metric: str, layer: int) -> str:
        value = scores[metric][layer] if scores.get(metric) else None
        score = "" if value is None else f", score {shown(float(value), 'number')}"
        return f"layer {layer} by {metric}: {_ordinal(places[metric][layer] + 1)} to go{score}"

    caption = "The stronger the colour, the earlier a layer goes." + (f" Dots: the first {marked}." if marked else "")
    drawn = heat_map(places, title=title, text=text, marked=marked)
    return Figure(f"scores-{step.key[:12]}", "metrics", title, caption, drawn)


def _ordinal(number: int) -> str:
    """
    >>> [_ordinal(number) for number in (1, 2, 3, 4, 11, 22)]
    ['1st', '2nd', '3rd', '4th', '11th', '22nd']
    """
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


# Losses over training


def _losses(findings: Findings) -> Figure | None:
    """Held-out loss over the steps of every healing, the training loss thin behind it."""
    lines: dict[str, Series] = {}
    for each in findings.results:
        step = each.step("heal")
        if step and step.result.get("held_out_losses"):
            lines.setdefault(step.key, _loss_line(findings.name(each), step))
    if not lines:
        return None
    drawn = _coloured([*lines.values()])
    points = [point for line in drawn for point in line.points]
    every = [*points, *(point for line in drawn for point in line.thin)]
    most = BEYOND * median(point.y for point in every)  # one that has collapsed does not hide what the others do
    x = axis("optimizer steps", [point.x for point in points], "{:,g}".format, whole=True)
    y = axis("loss (nats per token)", [min(point.y, most) for point in every], "{:.3g}".format)
    title = "Held-out loss while healing"
    chart = Chart(title, x, y, drawn)
    beyond = " At the upper edge: higher than the chart." if any(point.y > y.high for point in points) else ""
    caption = f"Thin lines: the training loss.{beyond}"
    return Figure("losses", "healing", title, caption, chart.svg(), _legend(drawn))


def _loss_line(label: str, step: StepRecord) -> Series:
    held_out = [(at, loss) for at, loss in step.result["held_out_losses"] if loss is not None]
    trained = [Point(at, loss, "") for at, loss in step.result.get("losses") or () if loss is not None]
    points = [Point(at, loss, f"{label}, step {at:g}: held-out loss {shown(loss, 'loss')}") for at, loss in held_out]
    return Series(label, points, thin=trained)
