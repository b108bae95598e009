"""The macros of charts.svg.j2, and the lengths that they and those who place things share."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

from jinja2 import Template
from markupsafe import Markup

from shortstack.charts.colours import COLOURED
from shortstack.machine.templates import templates

WIDTH, HEIGHT = 480, 330
WIDE = 900  # of a chart that is alone in its row: as high, and its letters as large
LEFT, RIGHT, TOP, BOTTOM = 58, 30, 30, 46  # left: room for 10,000 on a phone
NAMES, ROW, BARS = 132, 20, 40  # room for names; heights of a row of cells, and of a row of bars
OUTLINES = {
    "square": "m-3.3 -3.3h6.6v6.6h-6.6z",
    "triangle": "m0 -4.4l4.2 7.4h-8.4z",
    "infinite": "m0 -7l5 9h-10z",
    "diamond": "m0 -4.9l4.9 4.9l-4.9 4.9l-4.9 -4.9z",
    "cross": "m-4 -1.2h2.8v-2.8h2.4v2.8h2.8v2.4h-2.8v2.8h-2.4v-2.8h-2.8z",
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")


def macro(name: str) -> Callable[..., Markup]:
    """A macro of charts.svg.j2."""
    found: Callable[..., Markup] = getattr(_template().module, name)
    return found


def swatch(colour: int | None) -> Markup:
    """The marker of a line, for a legend."""
    return macro("swatch")(colour)


@cache
def _template() -> Template:
    environment = templates("shortstack.charts")
    environment.finalize = lambda value: f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
    environment.filters |= {
        "shape": lambda colour: "circle" if colour is None else SHAPES[colour % COLOURED],
        "colour_class": lambda colour: "grey" if colour is None else f"c{colour}",
    }
    lengths = {"WIDTH": WIDTH, "HEIGHT": HEIGHT, "LEFT": LEFT, "FLOOR": HEIGHT - BOTTOM}
    lengths |= {"TOP": TOP, "NAMES": NAMES, "ROW": ROW, "BARS": BARS}
    return environment.get_template("charts.svg.j2", globals=lengths | {"OUTLINES": OUTLINES})
