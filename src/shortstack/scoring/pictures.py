"""Scores and depths as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shortstack.charts.chart import Chart, Point, Series, axis, in_thousands
from shortstack.charts.drawing import HEIGHT
from shortstack.charts.picture import Named, Panel, Picture, short
from shortstack.charts.rows import Bars, bars, bars_height, heat_map, map_height, square, square_height
from shortstack.machine.formats import number
from shortstack.scoring.metrics import removal_order

Values = Mapping[str, Sequence[float]]
Tokens = Mapping[str, Any] | None
Depths = Mapping[str, float]


def score_picture(
    values: Values, drop: int, *, title: str, tokens: Tokens, blocks: Values, window: int | None
) -> Picture:
    """Return the order in which each metric removes layers, its values, what blocks score, and how far metrics agree.

    values, blocks: of each layer, and of each block of `window` layers, by metric. The first `drop` layers are marked.
    """
    order = "Order in which each metric removes layers"
    panels = [_orders(values, drop, order, "layer"), _values(values, drop)]
    if blocks:
        order = (
            f"Order in which each metric removes blocks of {window} layer{'s' * (window != 1)}, the first one marked"
        )
        panels.append(_orders(blocks, 1, order, "first layer"))
    if len(values) > 1:
        panels.append(_agreement(values))
    marked = f"the {drop} that go first are marked" if drop > 1 else "the one that goes first is marked"
    return Picture(title, panels, ["; ".join([*_read(tokens), marked])])


def _read(tokens: Tokens) -> list[str]:
    return [f"{tokens['samples']} x {tokens['length']} tokens of {short(tokens['source'], 40)}"] if tokens else []


def _orders(values: Values, marked: int, title: str, axis_name: str) -> Panel:
    orders = {name: removal_order(row) for name, row in values.items()}
    places = {name: [order.index(place) for place in range(len(order))] for name, order in orders.items()}

    def said(name: str, column: int) -> str:
        return f"{axis_name} {column} by {name}: place {places[name][column] + 1}, score {number(values[name][column])}"

    svg = heat_map(places, title=title, text=said, marked=marked, axis=axis_name)
    return Panel(f"{title}: the darker, the earlier", svg, map_height(len(places)))


def _values(values: Values, drop: int) -> Panel:
    rows = [Bars(name, row, frozenset(removal_order(row)[:drop])) for name, row in values.items()]

    def said(name: str, layer: int) -> str:
        return f"layer {layer} by {name}: {number(values[name][layer])}"

    svg = bars(rows, title="Scores of layers by each metric", text=said, number=number)
    legend = [(0, "score; low = remove first"), (1, "among those that go")]
    return Panel("Scores, each metric from its lowest to its highest", svg, bars_height(len(rows)), legend)


def _agreement(values: Values) -> Panel:
    from scipy.stats import kendalltau

    taus = [[float(kendalltau(one, other).statistic) for other in values.values()] for one in values.values()]
    title = "Agreement of metrics, Kendall's tau: 1 same order, -1 reverse"
    svg = square(list(values), taus, title=title)
    return Panel(title, svg, square_height(len(taus)))


def depth_picture(depths: Sequence[Depths], *, tokens: Tokens) -> Picture:
    """Draw perplexity and KL divergence over the number of layers that are cut from the tail.

    depths: of the unpruned model first: layers (kept), and by name what was measured.
    """
    labels = {"perplexity": "perplexity", "kl": "KL divergence from the unpruned model (nats per token)"}
    panels = [_depths(depths, name, label) for name, label in labels.items()]
    return Picture(f"The first layers alone, of {depths[0]['layers']}", panels, _read(tokens))


def _depths(depths: Sequence[Depths], name: str, label: str) -> Panel:
    points = _points(depths, name)
    x = axis("layers removed from the tail", [point.x for point in points], "{:g}".format, whole=True)
    text = in_thousands if name == "perplexity" else number
    y = axis(label, [point.y for point in points], text, log=name == "perplexity")
    svg = Chart(label, x, y, [Series("cut", points, 0)]).svg()
    legend: Named = [(None, "at the upper edge: infinite")] if any(point.infinite for point in points) else []
    return Panel("", svg, HEIGHT, legend)


def _points(depths: Sequence[Depths], key: str) -> list[Point]:
    points = []
    for depth in depths:
        gone, value = depths[0]["layers"] - depth["layers"], depth[key]
        points.append(Point(gone, value, f"{gone:g} removed, cut: {number(value)}"))
    return points
