"""Charts below each other as one SVG that stands alone: what `--plot` writes and a notebook shows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from markupsafe import Markup

from shortstack.charts.drawing import COLOURS, WIDTH, plain_style, templates
from shortstack.machine.files import atomic_write, check_picture

MARGIN, GAP, LINE = 24, 34, 16
LETTER = 6.2  # about the width of a letter of 11 pixels
LONGEST = 60  # letters of a title that fit in a picture's width
Named = Sequence[tuple[int | None, str]]  # colours of lines and their names


@dataclass(frozen=True)
class Panel:
    """A chart with its title, its height in its own units, and what its colours mean."""

    title: str
    svg: Markup
    height: float
    legend: Named = ()

    @property
    def legend_places(self) -> list[tuple[int | None, str, float, float]]:
        """Colour, name and place of each entry, in lines as wide as the picture."""
        places, x, y = [], 0.0, float(LINE)
        for colour, name in self.legend:
            width = 26 + LETTER * len(name)
            if x and x + width > WIDTH:
                x, y = 0.0, y + LINE
            places.append((colour, name, x, y))
            x += width
        return places

    @property
    def head(self) -> float:
        """Where the chart begins, below the title and the legend."""
        return (self.legend_places[-1][3] if self.legend else 0.0) + 10


@dataclass(frozen=True, repr=False)
class Picture:
    """Panels below each other under a title and lines about it. A notebook shows it; save() writes it."""

    title: str
    panels: Sequence[Panel]
    about: Sequence[str] = ()

    def __repr__(self) -> str:
        return f"<Picture: {self.title}>"

    width = WIDTH + 2 * MARGIN

    @property
    def height(self) -> int:
        *_, (last, top) = [(None, MARGIN + LINE * len(self.about)), *self.placed]
        return round(top + (last.head + last.height if last else 0) + MARGIN)

    @property
    def placed(self) -> Iterator[tuple[Panel, float]]:
        """Each panel, and where its title stands."""
        top = float(MARGIN + LINE * len(self.about) + GAP)
        for panel in self.panels:
            yield panel, top
            top += panel.head + panel.height + GAP

    def svg(self) -> str:
        """Draw it in light colours; names in it are escaped."""
        environment = templates("shortstack.charts")
        light = {name: colour for name, (colour, _) in COLOURS.items()}
        own = Markup(environment.get_template("picture.css.j2").render(c=light))  # noqa: S704  our own
        style, sheet = plain_style() + own, light["sheet"]
        template = environment.get_template("picture.svg.j2")
        return template.render(picture=self, style=style, sheet=sheet, margin=MARGIN, width=WIDTH) + "\n"

    def _repr_svg_(self) -> str:
        return self.svg()

    def save(self, path: str | Path) -> None:
        """Write it as a new .svg file, whole or not at all."""
        check_picture(Path(path))
        with atomic_write(Path(path)) as partial:
            partial.write_text(self.svg(), encoding="utf-8")


def short(name: object, length: int = LONGEST) -> str:
    """Shorten a long name to its end, which tells most."""
    text = str(name)
    return text if len(text) <= length else f"...{text[3 - length :]}"
