"""The course of a training as a picture."""

from __future__ import annotations

from shortstack.charts.chart import Chart, Point, Series, axis
from shortstack.charts.drawing import HEIGHT
from shortstack.charts.picture import Panel, Picture, short
from shortstack.healing.training import History
from shortstack.machine.formats import number


def loss_picture(history: History, title: str) -> Picture:
    """Training and held-out loss over optimizer steps, in nats per token; the step whose weights were kept is marked."""
    lines = [
        Series(name, [Point(step, loss, f"step {step}, {name}: {loss:.4f}") for step, loss in losses], colour)
        for name, losses, colour in (("training", history.losses, 5), ("held out", history.held_out, 0))
        if losses
    ]
    every = [point for line in lines for point in line.points]
    x = axis("optimizer steps", [point.x for point in every], "{:,g}".format, whole=True)
    y = axis("loss (nats per token)", [point.y for point in every], number)
    svg = Chart(title, x, y, lines, marks=[("kept", float(history.best))]).svg()
    return Picture(short(title), [Panel("", svg, HEIGHT, [(line.colour, line.name) for line in lines])])
