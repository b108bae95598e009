"""The macros of charts.svg.j2, and the lengths that they and those who place things share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template
from markupsafe import Markup


def templates(package: str) -> Environment:
    """Load the templates beside a package's files; what is put into one is escaped, and nothing may be missing."""
    loader = PackageLoader(package, ".")
    return Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)


# By name, in light and in dark: paper behind a page and sheets on it, text, rules; c0 to c5 of lines, grey of all others.
COLOURS: Mapping[str, tuple[str, str]] = {
    "paper": ("#fbfbf9", "#14161a"),
    "sheet": ("#ffffff", "#1b1e24"),
    "ink": ("#1c1f24", "#e8e9eb"),
    "soft": ("#565c66", "#a4abb6"),
    "rule": ("#e2e3df", "#2d323b"),
    "strong": ("#c9cbc6", "#454c58"),
    "c0": ("#0067a5", "#62b5f0"),
    "c1": ("#c14a09", "#f19a5f"),
    "c2": ("#1b7f4d", "#5fcf98"),
    "c3": ("#8d3a86", "#d796d0"),
    "c4": ("#7a5c00", "#dcb63f"),
    "c5": ("#3d4450", "#d5d9df"),
    "grey": ("#b6bac0", "#5a616d"),
}
COLOURED = 6  # lines beyond these are grey: nobody tells more colours apart


def page_style() -> Markup:
    """Style the charts of a page that is light or dark; the colours become its variables."""
    variables = "".join(f"--{name}: light-dark({light}, {dark});" for name, (light, dark) in COLOURS.items())
    return Markup(f":root {{ {variables} }}\n") + _style({name: f"var(--{name})" for name in COLOURS})  # noqa: S704  our own


def plain_style() -> Markup:
    """Style a picture that stands alone: light, and without variables, which not every reader of SVG knows."""
    return _style({name: light for name, (light, _) in COLOURS.items()})


def _style(colours: Mapping[str, str]) -> Markup:
    return Markup(templates("shortstack.charts").get_template("charts.css.j2").render(c=colours, coloured=COLOURED))  # noqa: S704


WIDTH, HEIGHT = 480, 330
LEFT, TOP = 58, 30  # left: room for 10,000 on a phone
END, FLOOR = WIDTH - 30, HEIGHT - 46  # the right end and the height of the horizontal axis
NAMES, ROW, BARS, DOTS = 132, 20, 40, 34  # room for names; heights of a row of cells, of bars, and of dots
OUTLINES = {
    "square": "m-3.3 -3.3h6.6v6.6h-6.6z",
    "triangle": "m0 -4.4l4.2 7.4h-8.4z",
    "infinite": "m0 -7l5 9h-10z",
    "diamond": "m0 -4.9l4.9 4.9l-4.9 4.9l-4.9 -4.9z",
    "cross": "m-4 -1.2h2.8v-2.8h2.4v2.8h2.8v2.4h-2.8v2.8h-2.4v-2.8h-2.8z",
}
SHAPES = ("circle", "square", "triangle", "diamond", "cross", "ring")


def macro(name: str) -> Callable[..., Markup]:
    drawn: Callable[..., Markup] = getattr(_template().module, name)
    return drawn


@cache
def _template() -> Template:
    environment = templates("shortstack.charts")
    environment.finalize = lambda value: f"{value:.2f}".rstrip("0").rstrip(".") if isinstance(value, float) else value
    environment.filters |= {
        "shape": lambda colour: "circle" if colour is None else SHAPES[colour % COLOURED],
        "colour_class": lambda colour: "grey" if colour is None else f"c{colour}",
    }
    lengths = {"WIDTH": WIDTH, "HEIGHT": HEIGHT, "LEFT": LEFT, "END": END, "FLOOR": FLOOR}
    lengths |= {"TOP": TOP, "NAMES": NAMES, "ROW": ROW, "BARS": BARS, "DOTS": DOTS}
    return environment.get_template("charts.svg.j2", globals=lengths | {"OUTLINES": OUTLINES})
