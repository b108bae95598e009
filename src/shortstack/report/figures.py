"""What the charts show: which results make a line, what a point says, which points nothing beats."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from markupsafe import Markup

from shortstack.report.charts import COLOURED, Line, Point, axis, chart, heat, swatch
from shortstack.report.findings import Findings
from shortstack.report.format import counted, shown, uncertainty
from shortstack.report.labels import brief
from shortstack.report.results import Measure, Result
from shortstack.runs.records import Step

Facets = Callable[[Mapping[str, str]], str]
MAPS = 12  # of the order in which metrics remove layers


@dataclass(frozen=True)
class Figure:
    """A chart, its caption, and the names of its lines with their markers."""

    key: str
    title: str
    caption: str
    svg: Markup
    legend: tuple[tuple[Markup, str, str], ...] = ()


def figures(found: Findings, facets: Facets) -> list[Figure]:
    """Every figure that the runs have something for."""
    made = [*_depths(found, facets), *_trade_offs(found, facets), *_heat_maps(found), *_losses(found, facets)]
    return [figure for figure in made if figure]


# Quality against layers removed


def _depths(found: Findings, facets: Facets) -> list[Figure]:
    texts = found.measured("perplexity")[:1]
    shares = [found.headline] if found.headline and not found.headline.startswith("perplexity:") else []
    return [
        figure
        for model in found.bases or {each.model for each in found.results}
        for name in (*shares, *texts)
        if (figure := _depth(found, model, name, facets))
    ]


def _depth(found: Findings, model: str, column: str, facets: Facets) -> Figure | None:
    """One line for each setting, over the number of layers that it removes."""
    lines: dict[str, list[tuple[Point, Result]]] = {}
    for each in found.results:
        measure = each.measures.get(column)
        if each.model == model and measure and each.removed is not None:
            label = found.name(each, {"model", "drop"})
            point = Point(each.removed, measure.value, _told(label, each.removed, measure), measure.stderr)
            lines.setdefault(label, []).append((point, each))
    points = [point for line in lines.values() for point, _ in line]
    if len({point.x for point in points}) < 2:
        return None
    base = found.bases[model].measures.get(column) if model in found.bases else None
    log, noun, said = _scale(found, column)
    levels = [("unpruned", base.value)] if base and math.isfinite(base.value) else []
    drawn = _coloured(
        [
            Line(name, sorted((point for point, _ in line), key=lambda point: point.x), None, _common(line))
            for name, line in lines.items()
        ]
    )
    x = axis("layers removed", [0, *(point.x for point in points)], lambda value: f"{value:g}", whole=True)
    y = axis(noun, [*(_shown_range(points)), *(value for _, value in levels)], said, log=log)
    title = f"{noun} against layers removed" + (f", {brief(model)}" if len(found.bases) > 1 else "")
    beyond = " A triangle at the upper edge: infinite." if any(math.isinf(point.y) for point in points) else ""
    svg = chart(x, y, drawn, title=title, references=levels, facets=facets)
    return Figure(
        f"depth-{column}-{model}", title, f"Bars are one standard error.{beyond}", svg, _legend(drawn, facets)
    )


def _scale(found: Findings, column: str) -> tuple[bool, str, Callable[[float], str]]:
    """Whether the axis is logarithmic, what it is called, and how it says a number."""
    name = brief(found.names[column])
    if column.startswith("perplexity:"):
        return (
            True,
            f"perplexity on {name}",
            lambda value: shown(value, "perplexity") if value < 1e5 else f"{value:.0e}",
        )
    return False, f"{name} (%)", lambda value: f"{100 * value:.3g}"


def _shown_range(points: Sequence[Point]) -> list[float]:
    return [point.y for point in points if math.isfinite(point.y)]


def _told(label: str, removed: int, measure: Measure) -> str:
    error = uncertainty(measure.value, measure.stderr, measure.kind)
    value = shown(measure.value, measure.kind) + (f" ± {error}" if error else "") + "%" * (measure.kind == "share")
    return f"{label}, {counted(removed, 'layer')} removed: {value}"


def _common(line: Sequence[tuple[Point, Result]]) -> dict[str, str]:
    """The factors that all of a line's results share."""
    first = line[0][1].factors
    return {name: level for name, level in first.items() if all(each.factors[name] == level for _, each in line)}


def _coloured(lines: Sequence[Line]) -> list[Line]:
    """The longest lines, of those the first, in colours; the others grey. A line has one colour in all figures."""
    ranked = sorted(lines, key=lambda line: -sum(not math.isnan(point.y) for point in line.points))
    return [replace(line, colour=place if place < COLOURED else None) for place, line in enumerate(ranked)]


def _legend(lines: Sequence[Line], facets: Facets) -> tuple[tuple[Markup, str, str], ...]:
    named = [(swatch(line.colour), line.name, facets(line.factors)) for line in lines if line.colour is not None]
    grey = sum(line.colour is None for line in lines)
    return (*named, *([(swatch(None), counted(grey, "other"), "")] if grey else []))


# Quality against size and speed, with the front


def _trade_offs(found: Findings, facets: Facets) -> list[Figure]:
    return [
        figure
        for model in found.bases
        for size in (True, False)
        if found.headline and (figure := _trade_off(found, model, found.headline, facets, size=size))
    ]


def _trade_off(found: Findings, model: str, column: str, facets: Facets, *, size: bool) -> Figure | None:
    """A point for each setting: its quality over its bytes, or over its speed."""
    placed: list[tuple[Point, Result]] = []
    for each in (found.bases[model], *(result for result in found.results if result.model == model)):
        measure, at = each.measures.get(column), (_stored(each, found, model) if size else _speed(each, found, model))
        if measure and at is not None and math.isfinite(measure.value):
            name = "unpruned" if each is found.bases[model] else found.name(each, {"model"})
            where = shown(at, "bytes") if size else f"{shown(at, 'rate')} tokens/s"
            placed.append(
                (
                    Point(at, measure.value, f"{name}: {where}, {shown(measure.value, measure.kind)}", measure.stderr),
                    each,
                )
            )
    if len({point.x for point, _ in placed}) < 2:
        return None
    log, noun, said = _scale(found, column)
    best = front([point for point, _ in placed], less_x=size, less_y=log)
    lines = [_points_line(point, each, best, found.bases[model]) for point, each in placed]
    what = "size" if size else "speed"
    label = "weights" if size else "new tokens per second, one sequence"
    x = axis(label, [point.x for point, _ in placed], lambda value: _size(value) if size else shown(value, "rate"))
    title = f"{noun} against {what}" + (f", {brief(model)}" if len(found.bases) > 1 else "")
    svg = chart(
        x, axis(noun, [point.y for point, _ in placed], said, log=log), lines, title=title, front=best, facets=facets
    )
    names = "; ".join(point.title for point in best[:6]) + ("; ..." if len(best) > 6 else "")
    caption = f"On the front, which nothing beats in both: {names}."
    return Figure(f"{what}-{model}", title, caption, svg)


def _size(value: float) -> str:
    """Bytes in few digits."""
    number, unit = shown(value, "bytes").split()
    return f"{float(number):.3g} {unit}"


def _points_line(point: Point, result: Result, best: Sequence[Point], base: Result) -> Line:
    colour = 5 if result is base else 0 if point in best else None
    return Line("", [point], colour, {"model": result.model} if result is base else result.factors, joined=False)


def front(points: Sequence[Point], *, less_x: bool, less_y: bool) -> list[Point]:
    """The points that no other is at least as good as in both and better in one, from the smallest x.

    >>> [point.x for point in front([Point(1, 5, ""), Point(2, 4, ""), Point(3, 9, "")], less_x=True, less_y=False)]
    [1, 3]
    """

    def key(point: Point) -> tuple[float, float]:
        return (point.x if less_x else -point.x), (point.y if less_y else -point.y)

    kept: list[Point] = []
    lowest = math.inf
    for point in sorted(points, key=key):
        if key(point)[1] < lowest:
            kept.append(point)
            lowest = key(point)[1]
    return sorted(kept, key=lambda point: point.x)


def _stored(result: Result, found: Findings, model: str) -> float | None:
    """Bytes of the weights: measured, else as planned."""
    if result is found.bases[model]:
        plans = [plan for each in found.results if each.model == model for plan in each.plans if plan.get("bytes")]
        return plans[0]["bytes"]["before"] if plans else None
    profile = result.first("profile")
    if profile and profile.result.get("weight_bytes"):
        return float(profile.result["weight_bytes"])
    return next((plan["bytes"]["after"] for plan in result.plans if plan.get("bytes")), None)


def _speed(result: Result, found: Findings, model: str) -> float | None:
    """New tokens per second of one sequence."""
    base = result is found.bases[model]
    step = result.first("profile_base" if base else "profile")
    rates = (
        {speed["batch"]: speed.get("decode_tokens_per_s") for speed in (step.result.get("speed") or ())} if step else {}
    )
    return rates[min(rates)] if rates else None


# Scores of layers


def _heat_maps(found: Findings) -> list[Figure]:
    """The order in which each metric removes layers: a map for each model and calibration, MAPS of them at most."""
    steps: dict[str, Step] = {}
    for trial in found.runs.trials:
        step = trial.step("score")
        if step and step.result.get("order"):
            steps.setdefault(str(step.result["order"]), step)
    maps = [_heat_map(found, step) for step in list(steps.values())[:MAPS]]
    if len(steps) > MAPS:
        maps[-1] = replace(maps[-1], caption=f"{maps[-1].caption} {len(steps) - MAPS} more are not drawn.")
    return maps


def _heat_map(found: Findings, step: Step) -> Figure:
    orders = step.result["order"]
    places = {metric: [order.index(layer) for layer in range(len(order))] for metric, order in orders.items()}
    values = step.result.get("scores") or {}
    marked = min((each.removed for each in found.results if each.removed), default=0)
    tokens = step.result.get("tokens") or {}
    on = f", on {tokens['samples']} x {tokens['length']} tokens of {brief(str(tokens['source']))}" if tokens else ""
    model = brief(str((step.result.get("model") or {}).get("source") or step.arguments.get("model", "")))
    title = f"Which layers each metric removes first, {model}{on}"

    def told(metric: str, layer: int) -> str:
        value = (values.get(metric) or [None] * len(orders[metric]))[layer]
        score = "" if value is None else f", score {shown(float(value), 'number')}"
        return f"layer {layer} by {metric}: {_ordinal(places[metric][layer] + 1)} to go{score}"

    dots = f" Dots: the first {marked}." if marked else ""
    svg = heat(places, title=title, titles=told, marked=marked)
    return Figure(f"scores-{step.key[:12]}", title, f"The stronger the colour, the earlier a layer goes.{dots}", svg)


def _ordinal(number: int) -> str:
    """
    >>> [_ordinal(number) for number in (1, 2, 3, 4, 11, 22)]
    ['1st', '2nd', '3rd', '4th', '11th', '22nd']
    """
    ending = "th" if number % 100 in (11, 12, 13) else {1: "st", 2: "nd", 3: "rd"}.get(number % 10, "th")
    return f"{number}{ending}"


# Losses over training


def _losses(found: Findings, facets: Facets) -> list[Figure]:
    """Held-out loss over the steps of every healing, the training loss thin behind it."""
    lines: dict[str, Line] = {}
    for each in found.results:
        step = each.first("heal")
        if step and step.result.get("held_out_losses") and step.key not in lines:
            label = found.name(each)
            points = [
                Point(at, loss, f"{label}, step {at:g}: held-out loss {shown(loss, 'loss')}")
                for at, loss in step.result["held_out_losses"]
                if loss is not None
            ]
            trained = [(at, loss) for at, loss in step.result.get("losses") or () if loss is not None]
            lines[step.key] = Line(label, points, None, each.factors, thin=trained)
    if not lines:
        return []
    drawn, legend = _by_level([*lines.values()], facets)
    everything = [value for line in drawn for value in (*(p.y for p in line.points), *(loss for _, loss in line.thin))]
    x = axis(
        "optimizer steps", [point.x for line in drawn for point in line.points], lambda value: f"{value:,g}", whole=True
    )
    y = axis("loss (nats per token)", everything, lambda value: f"{value:.3g}")
    title = "Held-out loss while healing"
    svg = chart(x, y, drawn, title=title, facets=facets)
    return [Figure("losses", title, "Thin lines: the training loss.", svg, legend)]


def _by_level(lines: Sequence[Line], facets: Facets) -> tuple[list[Line], tuple[tuple[Markup, str, str], ...]]:
    """Coloured by the first factor that tells a few kinds apart, with those kinds as the legend."""
    for factor in ("heal", "data", "drop", "metric"):
        levels = list(dict.fromkeys(line.factors.get(factor, "") for line in lines))
        if 1 < len(levels) <= COLOURED:
            drawn = [replace(line, colour=levels.index(line.factors[factor])) for line in lines]
            names = [(swatch(place), brief(level), facets({factor: level})) for place, level in enumerate(levels)]
            return drawn, tuple(names)
    drawn = _coloured(lines)
    return drawn, _legend(drawn, facets)
