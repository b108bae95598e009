"""Scores as pictures."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from shortstack.charts.picture import Panel, Picture, short
from shortstack.charts.rows import Bars, bars, bars_height, heat_map, map_height
from shortstack.machine.formats import number
from shortstack.scoring.metrics import removal_order

Values = Mapping[str, Sequence[float]]
Tokens = Mapping[str, Any] | None


def score_picture(
    values: Values, drop: int, *, title: str, tokens: Tokens, blocks: Values, window: int | None
) -> Picture:
    """Return the order in which each metric removes layers, its values, and what blocks score.

    values, blocks: of each layer, and of each block of `window` layers, by metric. The first `drop` layers are marked.
    """
    order = "Order in which each metric removes layers"
    panels = [_orders(values, drop, order, "layer"), _values(values, drop)]
    if blocks:
        order = (
            f"Order in which each metric removes blocks of {window} layer{'s' * (window != 1)}, the first one marked"
        )
        panels.append(_orders(blocks, 1, order, "first layer"))
    marked = f"the {drop} that go first are marked" if drop > 1 else "the one that goes first is marked"
    return Picture(title, panels, ["; ".join([*text_read(tokens), marked])])


def text_read(tokens: Tokens) -> list[str]:
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
