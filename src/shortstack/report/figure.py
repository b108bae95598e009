"""A chart of the page, with its caption and legend."""

from __future__ import annotations

from dataclasses import dataclass, replace

from markupsafe import Markup

from shortstack.charts.chart import Chart, Facets
from shortstack.charts.drawing import WIDE

Legend = tuple[tuple[Markup, str, str], ...]


@dataclass(frozen=True)
class Figure:
    """A chart, its caption, and the markers of its lines with their names and the words they are filtered by.

    wide: the same for where it stands alone in its row.
    section: the key of the table that it stands beside, or depth. folded: whether it is shown on request alone.
    """

    key: str
    section: str
    title: str
    caption: str
    svg: Markup
    legend: Legend = ()
    folded: bool = False
    wide: Markup | None = None


def wide(chart: Chart, facets: Facets = lambda _factors: "") -> Markup:
    """A chart for where it stands alone in its row."""
    return replace(chart, width=WIDE).svg(facets)
