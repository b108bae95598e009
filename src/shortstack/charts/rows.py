"""Rows of a map, of bars and of dots, and layers side by side."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from markupsafe import Markup

from shortstack.charts.chart import Axis
from shortstack.charts.drawing import BARS, DOTS, ROW, macro

STEEP = 8  # times the median: where one value is higher, bars are as high as logarithms
Text = Callable[[str, int], str]  # of a cell, from its row's name and its column


def heat_map(rows: Mapping[str, Sequence[int]], *, title: str, text: Text, marked: int, axis: str) -> Markup:
    """Draw rows of cells, darker the earlier in its row's order (0 first); a dot in those whose place is below `marked`.

    rows: the place of each column, by the row's name; rows may differ in length.
    """
    return macro("heat_map")(rows, title, text, marked, axis, map_height(len(rows)))


def map_height(rows: int) -> int:
    return ROW * rows + 24


@dataclass(frozen=True)
class Bars:
    """A row of bars: values, and the places of those that are marked."""

    name: str
    values: Sequence[float]
    first: frozenset[int] = frozenset()

    @property
    def finite(self) -> list[float]:
        return [value for value in self.values if math.isfinite(value)]

    @property
    def steep(self) -> bool:
        """Whether one value would hide all differences between the others."""
        return bool(self.finite) and min(self.finite) > 0 and max(self.finite) > STEEP * median(self.finite)

    @property
    def heights(self) -> list[float]:
        """The height of each bar, from 0 to 1; an infinite value is as high as can be."""
        drawn = [math.log(value) if self.steep and value > 0 else value for value in self.values]
        finite = [value for value in drawn if math.isfinite(value)] or [0.0]
        low, span = min(finite), (max(finite) - min(finite)) or 1.0
        return [min(1.0, (value - low) / span) if math.isfinite(value) else float(value > 0) for value in drawn]


def bars(rows: Sequence[Bars], *, title: str, text: Text, number: Callable[[float], str]) -> Markup:
    """Draw rows of bars, each from its lowest value to its highest, which are written below its name."""
    return macro("bars")(rows, title, text, number, bars_height(len(rows)))


def bars_height(rows: int) -> int:
    return BARS * rows + 24


@dataclass(frozen=True)
class Dot:
    """A row with one value, the ends of its error bar, and the text that pointing at it shows."""

    name: str
    value: float
    low: float
    high: float
    text: str


def dots(rows: Sequence[Dot], *, title: str, scale: Axis) -> Markup:
    """Draw a line for each name, with its value along the scale."""
    return macro("dots")(rows, title, scale, DOTS * len(rows) + 24)


@dataclass(frozen=True)
class Layer:
    """A layer: kept, removed, refitted or trained; and the text that pointing at it shows."""

    state: str
    text: str


def stack(layers: Sequence[Layer], *, title: str) -> Markup:
    """Draw layers side by side, the first at the left; removed ones are empty."""
    return macro("stack")(layers, title)
