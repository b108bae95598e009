"""Charts as inline SVG: small, readable in light and dark (colours are CSS variables), each point with its numbers.

Lengths are in the units of the view box, which is as wide as WIDTH and scales with the page.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from markupsafe import Markup, escape

WIDTH, HEIGHT = 480, 330
LEFT, RIGHT, TOP, BOTTOM = 58, 30, 30, 46  # left: room for 10,000 on a phone
NAMES, ROW = 100, 20  # of a heat map: room for names, height of a row
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")
COLOURED = len(SHAPES)  # lines beyond these are grey: nobody tells more colours apart


@dataclass(frozen=True)
class Point:
    """A place, how far its value may be off, and what is said when one looks at it. y may be infinite or no number."""

    x: float
    y: float
    title: str
    error: float | None = None


@dataclass(frozen=True)
class Line:
    """Points of one kind; colour: which of the six, None: grey; factors: what a filter goes by."""

    name: str
    points: Sequence[Point]
    colour: int | None = None
    factors: Mapping[str, str] = field(default_factory=dict)
    joined: bool = True
    thin: Sequence[tuple[float, float]] = ()


@dataclass(frozen=True)
class Axis:
    """A scale from values to lengths, with the numbers along it."""

    label: str
    low: float
    high: float
    ticks: Sequence[float]
    said: Callable[[float], str]
    log: bool = False

    def place(self, value: float, start: float, end: float) -> float:
        """Where on the way from start to end a value lies; an infinite one at its end."""
        if math.isinf(value):
            return end if value > 0 else start
        low, high, at = (math.log(each) if self.log else each for each in (self.low, self.high, value))
        return start + (end - start) * min(1.0, max(0.0, (at - low) / ((high - low) or 1.0)))


def axis(
    label: str, values: Iterable[float], said: Callable[[float], str], *, log: bool = False, whole: bool = False
) -> Axis:
    """An axis with round numbers around the finite values.

    >>> axis("x", [0.12, 0.49], str).ticks
    [0.1, 0.2, 0.3, 0.4, 0.5]
    """
    known = [value for value in values if math.isfinite(value) and (value > 0 or not log)] or [1.0]
    low, high = min(known), max(known)
    if low == high:
        low, high = (low / 1.5, high * 1.5) if log else (low - (abs(low) or 1) / 10, high + (abs(high) or 1) / 10)
    if log:
        ticks = _log_ticks(low, high)
        return Axis(label, min(low, ticks[0]), max(high, ticks[-1]) * 1.02, ticks, said, log=True)
    step = _step((high - low) / 5, whole=whole)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [round(number * step, 12) for number in range(first, last + 1)]
    return Axis(label, ticks[0], ticks[-1], ticks, said)


def _step(rough: float, *, whole: bool) -> float:
    """The round number next above a rough step."""
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= rough * 0.999)
    return max(1.0, round(step)) if whole else step


def _log_ticks(low: float, high: float) -> list[float]:
    """1, 2, 5 of every decade between low and high where few, else whole decades."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 1.5, 2, 3, 5, 7) if high / low < 6 else (1, 2, 5) if high / low < 300 else (1,)
    ticks = [factor * 10.0**decade for decade in decades for factor in factors]
    inside = [tick for tick in ticks if low * 0.98 <= tick <= high * 1.02]
    if len(inside) > 8:
        inside = inside[:: math.ceil(len(inside) / 8)]
    return inside if len(inside) > 1 else [low, high]


def tag(name: str, *content: str | Markup, **attributes: object) -> Markup:
    """An element; attributes with None are left out, `_` in their names is `-`, and `class_` is class.

    >>> tag("text", "<b>", class_="tick", x=1.5)
    Markup('<text class="tick" x="1.5">&lt;b&gt;</text>')
    """
    said = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _short(value))
        for key, value in attributes.items()
        if value is not None
    )
    inside = Markup("").join(escape(each) for each in content)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), said, inside)  # noqa: S704  our own names


def _short(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


def chart(
    x: Axis,
    y: Axis,
    lines: Sequence[Line],
    *,
    title: str,
    references: Sequence[tuple[str, float]] = (),
    front: Sequence[Point] = (),
    facets: Callable[[Mapping[str, str]], str] = lambda _: "",
) -> Markup:
    """A chart of lines; references: levels drawn across, with their names; front: a staircase through those points."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    across = [_reference(name, y.place(value, bottom, TOP)) for name, value in references]
    stairs = [_staircase(x, y, front)] if front else []
    ordered = sorted(lines, key=lambda line: line.colour is not None)  # grey ones first, so that colours lie above
    drawn = [_line(x, y, line, facets(line.factors)) for line in ordered]
    return tag(
        "svg",
        tag("title", title),
        *_grid(x, y, right, bottom),
        *across,
        *stairs,
        *drawn,
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_label=title,
        class_="chart",
    )


def _grid(x: Axis, y: Axis, right: float, bottom: float) -> list[Markup]:
    found = []
    for value in y.ticks:
        at = y.place(value, bottom, TOP)
        found.append(tag("line", x1=LEFT, x2=right, y1=at, y2=at, class_="grid"))
        found.append(tag("text", y.said(value), x=LEFT - 7, y=at + 4, class_="tick end"))
    for value in x.ticks:
        at = x.place(value, LEFT, right)
        found.append(tag("line", x1=at, x2=at, y1=bottom, y2=bottom + 4, class_="axis"))
        found.append(tag("text", x.said(value), x=at, y=bottom + 18, class_="tick middle"))
    found.append(tag("line", x1=LEFT, x2=right, y1=bottom, y2=bottom, class_="axis"))
    found.append(tag("text", x.label, x=(LEFT + right) / 2, y=HEIGHT - 6, class_="label middle"))
    return [*found, tag("text", y.label, x=0, y=12, class_="label")]


def _reference(name: str, at: float) -> Markup:
    right = WIDTH - RIGHT
    line = tag("line", x1=LEFT, x2=right, y1=at, y2=at, class_="reference")
    return tag("g", line, tag("text", name, x=right, y=at - 5, class_="tick end"), class_="base")


def _staircase(x: Axis, y: Axis, front: Sequence[Point]) -> Markup:
    """Steps through the points of a front: what is on their wrong side is beaten by one of them."""
    places = sorted((x.place(point.x, LEFT, WIDTH - RIGHT), y.place(point.y, HEIGHT - BOTTOM, TOP)) for point in front)
    path = f"M{places[0][0]:.1f} {places[0][1]:.1f}"
    for (_, before), (at, height) in pairwise(places):
        path += f"H{at:.1f}V{height:.1f}" if height < before else f"V{height:.1f}H{at:.1f}"
    return tag("path", d=path, class_="front")


def _line(x: Axis, y: Axis, line: Line, facets: str) -> Markup:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    places = [
        (x.place(point.x, LEFT, right), y.place(point.y, bottom, TOP), point)
        for point in line.points
        if not math.isnan(point.y)
    ]
    parts = [_path([(x.place(a, LEFT, right), y.place(b, bottom, TOP)) for a, b in line.thin], "thin")]
    if line.joined:
        parts.append(_path([(across, up) for across, up, _ in places], "line"))
    parts += [_whisker(y, across, point) for across, _, point in places]
    shape = SHAPES[line.colour] if line.colour is not None else "circle"
    parts += [
        _marker("infinite" if math.isinf(point.y) else shape, across, up, point.title) for across, up, point in places
    ]
    colour = "grey" if line.colour is None else f"c{line.colour}"
    return tag("g", *parts, class_=f"series {colour}", data_f=facets or None)


def _path(places: Sequence[tuple[float, float]], kind: str) -> Markup:
    if len(places) < 2:
        return Markup("")
    return tag("path", d="M" + "L".join(f"{across:.1f} {up:.1f}" for across, up in places), class_=kind)


def _whisker(y: Axis, across: float, point: Point) -> Markup:
    """One standard error up and down, where that is more than the marker hides."""
    if not point.error or not math.isfinite(point.y):
        return Markup("")
    low, high = max(point.y - point.error, y.low), point.y + point.error
    ends = [y.place(value, HEIGHT - BOTTOM, TOP) for value in (low, high)]
    return (
        tag("line", x1=across, x2=across, y1=ends[0], y2=ends[1], class_="whisker")
        if ends[0] - ends[1] > 8
        else Markup("")
    )


def _marker(shape: str, x: float, y: float, title: str) -> Markup:
    said = tag("title", title)
    if shape in ("circle", "ring"):
        return tag("circle", said, cx=x, cy=y, r=3.6, class_=shape if shape == "ring" else None)
    if shape == "square":
        return tag("rect", said, x=x - 3.3, y=y - 3.3, width=6.6, height=6.6)
    outlines = {
        "triangle": f"M{x:.1f} {y - 4.4:.1f}l4.2 7.4h-8.4z",
        "infinite": f"M{x:.1f} {y - 7:.1f}l5 9h-10z",
        "diamond": f"M{x:.1f} {y - 4.9:.1f}l4.9 4.9l-4.9 4.9l-4.9 -4.9z",
        "cross": f"M{x - 4:.1f} {y - 1.2:.1f}h2.8v-2.8h2.4v2.8h2.8v2.4h-2.8v2.8h-2.4v-2.8h-2.8z",
    }
    return tag("path", said, d=outlines[shape], class_="point")


def swatch(colour: int | None) -> Markup:
    """The marker of a line, for a legend."""
    shape = SHAPES[colour] if colour is not None else "circle"
    kind = "grey" if colour is None else f"c{colour}"
    return tag(
        "svg", _marker(shape, 7.0, 7.0, ""), viewBox="0 0 14 14", class_=f"swatch series {kind}", aria_hidden="true"
    )


def heat(rows: Mapping[str, Sequence[float]], *, title: str, titles: Callable[[str, int], str], marked: int) -> Markup:
    """Rows of cells, darker the earlier in its row's order (0 first); a dot in those whose place is below `marked`."""
    columns = len(next(iter(rows.values())))
    cell, high = (WIDTH - NAMES) / columns, float(ROW)
    parts = []
    for number, (name, row) in enumerate(rows.items()):
        top = number * high
        parts.append(
            tag(
                "text",
                name if len(name) < 16 else f"{name[:14]}…",
                x=NAMES - 8,
                y=top + high / 2 + 4,
                class_="tick end",
            )
        )
        for column, place in enumerate(row):
            strength = 0.04 + 0.9 * (1 - place / max(1, columns - 1)) ** 1.6
            said = tag("title", titles(name, column))
            at = {"x": NAMES + column * cell, "y": top}
            parts.append(tag("rect", said, **at, width=cell - 1, height=high - 1, fill_opacity=strength, class_="cell"))
            if place < marked:
                dot = {"cx": at["x"] + cell / 2 - 0.5, "cy": top + high / 2 - 0.5}
                parts.append(tag("circle", **dot, r=min(2.6, cell / 5), class_="dot"))
    bottom = high * len(rows)
    for column in range(0, columns, 1 if columns <= 16 else 5 if columns <= 48 else 10):
        parts.append(tag("text", str(column), x=NAMES + (column + 0.5) * cell, y=bottom + 15, class_="tick middle"))
    parts.append(tag("text", "layer", x=NAMES - 8, y=bottom + 15, class_="tick end"))
    box = f"0 0 {WIDTH} {bottom + 24:.0f}"
    return tag("svg", tag("title", title), *parts, viewBox=box, role="img", aria_label=title, class_="chart heat")
