"""Lines over two axes, in the units of the view box; charts.svg.j2 draws them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from markupsafe import Markup

from shortstack.charts.drawing import END, FLOOR, LEFT, TOP, macro


@dataclass(frozen=True)
class Point:
    """A value, its standard error, and the text that pointing at it shows. y may be infinite or NaN."""

    x: float
    y: float
    title: str
    error: float | None = None

    @property
    def infinite(self) -> bool:
        return math.isinf(self.y)


@dataclass(frozen=True)
class Series:
    """Points of one kind; colour: one of six, None: grey."""

    name: str
    points: Sequence[Point]
    colour: int | None = None

    @property
    def coloured(self) -> bool:
        return self.colour is not None

    @property
    def drawn(self) -> list[Point]:
        """The points that have a value."""
        return [point for point in self.points if not math.isnan(point.y)]


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
        """Return how far along the axis a value lies, from 0 to 1; an infinite one lies at its end."""
        if math.isinf(value):
            return float(value > 0)
        low, high, at = (math.log(number) if self.log else number for number in (self.low, self.high, value))
        return min(1.0, max(0.0, (at - low) / ((high - low) or 1.0)))


def axis(
    label: str, values: Iterable[float], text: Callable[[float], str], *, log: bool = False, whole: bool = False
) -> Axis:
    """Make an axis with round numbers around the finite values.

    >>> axis("x", [0.12, 0.49], str).ticks
    [0.1, 0.2, 0.3, 0.4, 0.5]
    """
    finite = [value for value in values if math.isfinite(value) and (value > 0 or not log)] or [1.0]
    low, high = min(finite), max(finite)
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
    """Round a step up to 1, 2, 2.5 or 5 times a power of ten."""
    size = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * size for factor in (1, 2, 2.5, 5, 10) if factor * size >= rough * 0.999)
    return max(1.0, round(step)) if whole else step


def _log_ticks(low: float, high: float) -> list[float]:
    """Return 1, 2, 5 of every decade between low and high where few, else whole decades."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    factors = (1, 1.5, 2, 3, 5, 7) if high / low < 6 else (1, 2, 5) if high / low < 300 else (1,)
    ticks = [factor * 10.0**decade for decade in decades for factor in factors]
    inside = [tick for tick in ticks if low * 0.98 <= tick <= high * 1.02]
    if len(inside) > 8:
        inside = inside[:: math.ceil(len(inside) / 8)]
    return inside if len(inside) > 1 else [low, high]


@dataclass(frozen=True)
class Chart:
    """Lines over two axes. levels: names and values of horizontal lines; marks: of vertical ones."""

    title: str
    x: Axis
    y: Axis
    lines: Sequence[Series]
    levels: Sequence[tuple[str, float]] = ()
    marks: Sequence[tuple[str, float]] = ()

    def svg(self) -> Markup:
        """Draw it, coloured lines above grey ones."""
        return macro("line_chart")(self)

    def across(self, x: float) -> float:
        return LEFT + (END - LEFT) * self.x.fraction(x)

    def height(self, y: float) -> float:
        return FLOOR + (TOP - FLOOR) * self.y.fraction(y)

    def whisker(self, point: Point) -> tuple[float, float] | None:
        """Return the ends of one standard error up and down, where that is more than the marker hides."""
        if not point.error or not math.isfinite(point.y):
            return None
        low, high = self.height(max(point.y - point.error, self.y.low)), self.height(point.y + point.error)
        return (low, high) if low - high > 8 else None
