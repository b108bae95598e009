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
END, FLOOR = WIDTH - RIGHT, HEIGHT - BOTTOM  # of the horizontal axis: its right end, its height
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
    """A scale, with the numbers along it; text: how a number is written."""

    label: str
    low: float
    high: float
    ticks: Sequence[float]
    text: Callable[[float], str]
    log: bool = False

    def fraction(self, value: float) -> float:
        """How far along the axis a value lies, from 0 to 1; an infinite one at its end."""
        if math.isinf(value):
            return float(value > 0)
        low, high, at = (math.log(each) if self.log else each for each in (self.low, self.high, value))
        return min(1.0, max(0.0, (at - low) / ((high - low) or 1.0)))


def axis(
    label: str, values: Iterable[float], text: Callable[[float], str], *, log: bool = False, whole: bool = False
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
        return Axis(label, min(low, ticks[0]), max(high, ticks[-1]) * 1.02, ticks, text, log=True)
    step = _step((high - low) / 5, whole=whole)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    ticks = [round(number * step, 12) for number in range(first, last + 1)]
    return Axis(label, ticks[0], ticks[-1], ticks, text)


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
    described = Markup("").join(
        Markup(' {}="{}"').format(key.rstrip("_").replace("_", "-"), _short(value))
        for key, value in attributes.items()
        if value is not None
    )
    inside = Markup("").join(escape(each) for each in content)
    return Markup("<{0}{1}>{2}</{0}>").format(Markup(name), described, inside)  # noqa: S704  our own names


def _short(value: object) -> object:
    return f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value


@dataclass(frozen=True)
class Chart:
    """Lines over two axes. levels: names and values of lines drawn across; front: points that a staircase joins."""

    title: str
    x: Axis
    y: Axis
    lines: Sequence[Line]
    levels: Sequence[tuple[str, float]] = ()
    front: Sequence[Point] = ()

    def svg(self, facets: Callable[[Mapping[str, str]], str]) -> Markup:
        """The chart as SVG. facets: a line's factors as the words that the page filters by."""
        ordered = sorted(self.lines, key=lambda line: line.colour is not None)  # grey ones first: colours lie above
        parts = [*self._grid(), *map(self._level, self.levels), self._staircase()]
        parts += [self._line(line, facets(line.factors)) for line in ordered]
        return picture(self.title, parts, height=HEIGHT, kind="chart")

    def _place(self, x: float, y: float) -> tuple[float, float]:
        """Where values lie in the picture."""
        return LEFT + (END - LEFT) * self.x.fraction(x), self._height(y)

    def _height(self, y: float) -> float:
        return FLOOR + (TOP - FLOOR) * self.y.fraction(y)

    def _grid(self) -> list[Markup]:
        parts = []
        for value in self.y.ticks:
            at = self._height(value)
            parts.append(tag("line", x1=LEFT, x2=END, y1=at, y2=at, class_="grid"))
            parts.append(tag("text", self.y.text(value), x=LEFT - 7, y=at + 4, class_="tick end"))
        for value in self.x.ticks:
            at = LEFT + (END - LEFT) * self.x.fraction(value)
            parts.append(tag("line", x1=at, x2=at, y1=FLOOR, y2=FLOOR + 4, class_="axis"))
            parts.append(tag("text", self.x.text(value), x=at, y=FLOOR + 18, class_="tick middle"))
        parts.append(tag("line", x1=LEFT, x2=END, y1=FLOOR, y2=FLOOR, class_="axis"))
        parts.append(tag("text", self.x.label, x=(LEFT + END) / 2, y=HEIGHT - 6, class_="label middle"))
        return [*parts, tag("text", self.y.label, x=0, y=12, class_="label")]

    def _level(self, level: tuple[str, float]) -> Markup:
        name, value = level
        at = self._height(value)
        line = tag("line", x1=LEFT, x2=END, y1=at, y2=at, class_="reference")
        return tag("g", line, tag("text", name, x=END, y=at - 5, class_="tick end"), class_="base")

    def _staircase(self) -> Markup:
        """Steps through the points of the front: what is on their wrong side is beaten by one of them."""
        if not self.front:
            return Markup("")
        places = sorted(self._place(point.x, point.y) for point in self.front)
        path = f"M{places[0][0]:.1f} {places[0][1]:.1f}"
        for (_, before), (at, height) in pairwise(places):
            path += f"H{at:.1f}V{height:.1f}" if height < before else f"V{height:.1f}H{at:.1f}"
        return tag("path", d=path, class_="front")

    def _line(self, line: Line, facets: str) -> Markup:
        points = [(point, *self._place(point.x, point.y)) for point in line.points if not math.isnan(point.y)]
        shape, colour = _look(line.colour)
        return tag(
            "g",
            _path([self._place(x, y) for x, y in line.thin], "thin"),
            _path([(across, up) for _, across, up in points] if line.joined else [], "line"),
            *(self._whisker(across, point) for point, across, _ in points),
            *(_marker("infinite" if math.isinf(p.y) else shape, across, up, p.title) for p, across, up in points),
            class_=f"series {colour}",
            data_f=facets or None,
        )

    def _whisker(self, across: float, point: Point) -> Markup:
        """One standard error up and down, where that is more than the marker hides."""
        if not point.error or not math.isfinite(point.y):
            return Markup("")
        low, high = self._height(max(point.y - point.error, self.y.low)), self._height(point.y + point.error)
        return tag("line", x1=across, x2=across, y1=low, y2=high, class_="whisker") if low - high > 8 else Markup("")


def picture(title: str, parts: Sequence[Markup], *, height: float, kind: str) -> Markup:
    """An image with a name for those who do not see it."""
    box = f"0 0 {WIDTH} {height:.0f}"
    return tag("svg", tag("title", title), *parts, viewBox=box, role="img", aria_label=title, class_=kind)


def _look(colour: int | None) -> tuple[str, str]:
    """The shape and the class of a colour; grey for None."""
    return ("circle", "grey") if colour is None else (SHAPES[colour], f"c{colour}")


def _path(places: Sequence[tuple[float, float]], kind: str) -> Markup:
    if len(places) < 2:
        return Markup("")
    return tag("path", d="M" + "L".join(f"{across:.1f} {up:.1f}" for across, up in places), class_=kind)


def _marker(shape: str, x: float, y: float, title: str) -> Markup:
    caption = tag("title", title)
    if shape in ("circle", "ring"):
        return tag("circle", caption, cx=x, cy=y, r=3.6, class_=shape if shape == "ring" else None)
    if shape == "square":
        return tag("rect", caption, x=x - 3.3, y=y - 3.3, width=6.6, height=6.6)
    outlines = {
        "triangle": f"M{x:.1f} {y - 4.4:.1f}l4.2 7.4h-8.4z",
        "infinite": f"M{x:.1f} {y - 7:.1f}l5 9h-10z",
        "diamond": f"M{x:.1f} {y - 4.9:.1f}l4.9 4.9l-4.9 4.9l-4.9 -4.9z",
        "cross": f"M{x - 4:.1f} {y - 1.2:.1f}h2.8v-2.8h2.4v2.8h2.8v2.4h-2.8v2.8h-2.4v-2.8h-2.8z",
    }
    return tag("path", caption, d=outlines[shape], class_="point")


def swatch(colour: int | None) -> Markup:
    """The marker of a line, for a legend."""
    shape, kind = _look(colour)
    marker = _marker(shape, 7.0, 7.0, "")
    return tag("svg", marker, viewBox="0 0 14 14", class_=f"swatch series {kind}", aria_hidden="true")


def heat_map(rows: Mapping[str, Sequence[int]], *, title: str, text: Callable[[str, int], str], marked: int) -> Markup:
    """Rows of cells, darker the earlier in its row's order (0 first); a dot in those whose place is below `marked`.

    rows: the place of each column, by the row's name; text: what a cell says, from the row's name and its column.
    """
    columns = len(next(iter(rows.values())))
    width, height = (WIDTH - NAMES) / columns, float(ROW)
    parts = []
    for number, (name, places) in enumerate(rows.items()):
        top = number * height
        short = name if len(name) < 16 else f"{name[:14]}…"
        parts.append(tag("text", short, x=NAMES - 8, y=top + height / 2 + 4, class_="tick end"))
        for column, place in enumerate(places):
            left, strength = NAMES + column * width, 0.04 + 0.9 * (1 - place / max(1, columns - 1)) ** 1.6
            box = {"x": left, "y": top, "width": width - 1, "height": height - 1}
            parts.append(tag("rect", tag("title", text(name, column)), **box, fill_opacity=strength, class_="cell"))
            if place < marked:
                dot = {"cx": left + width / 2 - 0.5, "cy": top + height / 2 - 0.5, "r": min(2.6, width / 5)}
                parts.append(tag("circle", **dot, class_="dot"))
    bottom = height * len(rows)
    for column in range(0, columns, 1 if columns <= 16 else 5 if columns <= 48 else 10):
        parts.append(tag("text", str(column), x=NAMES + (column + 0.5) * width, y=bottom + 15, class_="tick middle"))
    parts.append(tag("text", "layer", x=NAMES - 8, y=bottom + 15, class_="tick end"))
    return picture(title, parts, height=bottom + 24, kind="chart heat")
