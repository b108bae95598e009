"""The colours of every chart: those of lines are told apart by all eyes, in light and in dark."""

from __future__ import annotations

from collections.abc import Mapping

from markupsafe import Markup

from shortstack.machine.templates import templates

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
    """The style of charts in a page that is light or dark, whose variables the colours become."""
    variables = "".join(f"--{name}: light-dark({light}, {dark});" for name, (light, dark) in COLOURS.items())
    return Markup(f":root {{ {variables} }}\n") + _style({name: f"var(--{name})" for name in COLOURS})  # noqa: S704  our own


def plain_style() -> Markup:
    """The same for a picture that stands alone: light, and without variables, which not every reader of SVG knows."""
    return _style({name: light for name, (light, _) in COLOURS.items()})


def _style(colours: Mapping[str, str]) -> Markup:
    return Markup(templates("shortstack.charts").get_template("charts.css.j2").render(c=colours, coloured=COLOURED))  # noqa: S704
