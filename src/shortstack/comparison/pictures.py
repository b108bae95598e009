"""A comparison as a picture: quality against bytes, what nothing beats in both in colour."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from shortstack.charts.chart import Chart, Point, Series, axis, front
from shortstack.charts.drawing import HEIGHT
from shortstack.charts.picture import Named, Panel, Picture, short
from shortstack.errors import InputError
from shortstack.machine.formats import number, size
from shortstack.machine.numbers import perplexity


@dataclass(frozen=True)
class Judged:
    """A baseline's name, the bytes of its weights, and its loss, the mean over texts in nats per token."""

    name: str
    bytes: int | None
    loss: float


def comparison_picture(rows: Sequence[Judged], title: str) -> Picture:
    """Perplexity of each baseline over the bytes of its weights; both less is better."""
    points = []
    for row in rows:
        if row.bytes and math.isfinite(row.loss):
            value = perplexity(row.loss)
            points.append((row, Point(row.bytes, value, f"{row.name}: {size(row.bytes)}, perplexity {number(value)}")))
    if len(points) < 2:
        expected, fix = "two baselines to draw", "see their reasons in the table"
        raise InputError(len(points), expected=expected, fix=fix, where="the picture")
    best = front([point for _, point in points], less_x=True, less_y=True)
    lines = [
        Series(row.name, [point], 5 if row.name == "unpruned" else 0 if point in best else None, joined=False)
        for row, point in points
    ]
    x = axis("bytes of weights", [point.x for _, point in points], size)
    y = axis("perplexity (fewer is better)", [point.y for _, point in points], number, log=True)
    svg = Chart("quality against bytes", x, y, lines, front=best).svg()
    legend: Named = [(5, "unpruned"), (0, "nothing beats it in both"), (None, "something does")]
    about = [point.title for point in best][:8]
    return Picture(short(title), [Panel("", svg, HEIGHT, legend)], about)
