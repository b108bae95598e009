"""A chart of the page, with its caption and legend."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup

Legend = tuple[tuple[Markup, str, str], ...]


@dataclass(frozen=True)
class Figure:
    """A chart, its caption, and the markers of its lines with their names and the words they are filtered by.

    section: the key of the table that it stands beside, or depth. folded: whether it is shown on request alone.
    """

    key: str
    section: str
    title: str
    caption: str
    svg: Markup
    legend: Legend = ()
    folded: bool = False
