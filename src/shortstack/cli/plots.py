"""Results as pictures: the one file that needs matplotlib, `pip install 'shortstack[plot]'`.

Figures are made and drawn without pyplot: there is no window, and no state that outlives a call.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortstack.errors import InputError
from shortstack.machine.files import check_new, whole
from shortstack.machine.formats import number
from shortstack.machine.options import check_installed
from shortstack.planning.layer_sets import parse_drop
from shortstack.scoring import Scores
from shortstack.scoring.scores import agreement, removal_order

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.collections import QuadMesh
    from matplotlib.figure import Figure

    from shortstack.healing.training import History


# What a file must not say for equal data to give equal bytes: when it was made.
METADATA: dict[str, dict[str, Any]] = {".svg": {"Date": None}, ".png": {}, ".pdf": {"CreationDate": None}}
STYLE = {
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.titlelocation": "left",
    "axes.spines.right": False,
    "axes.spines.top": False,
    "text.parse_math": False,  # a $ in a model's name is a $
    "svg.fonttype": "none",
    "svg.hashsalt": "shortstack",
}
ROW, TAU, COLOUR_BAR = 0.3, 0.42, 2.0  # inches: a metric's row is so high, a cell of Kendall's tau and the bar so wide
TITLE: dict[str, Any] = {"fontsize": 11, "weight": "bold"}
CURVE, KNEE, LEARNT = "#0072b2", "#d55e00", "#999999"  # told apart by all eyes (Okabe and Ito)


def score_map(scores: Scores, path: Path, *, drop: str | int) -> None:
    """Draw the order in which each metric removes layers, with the first `drop` marked, and how far metrics agree on it.

    `score_map(scores, Path("scores.svg"), drop="25%")`

    Raises:
        PlanError: no such number of layers can be removed.
        InputError: as check_picture.
    """
    check_picture(path)
    _save(score_figure(scores, drop=drop), path)


def depth_curve(depths: Sequence[Mapping[str, float]], path: Path, *, title: str, knee: int | None) -> None:
    """Draw perplexity, KL divergence and accuracy over the number of layers removed from the tail.

    depths: of the unpruned model, then of shorter ones: layers (kept), perplexity, kl (nats), and accuracy (0 to 1) if
    there is one. knee: a number of removed layers, marked.

    Raises:
        InputError: as check_picture.
    """
    check_picture(path)
    _save(depth_figure(depths, title=title, knee=knee), path)


def loss_curve(history: History, path: Path, *, title: str) -> None:
    """Draw training and held-out loss over optimizer steps, with the step whose weights were kept marked.

    Raises:
        InputError: as check_picture.
    """
    check_picture(path)
    _save(loss_figure(history, title=title), path)


def check_picture(path: Path) -> None:
    """Refuse a picture that cannot be drawn, before minutes of work for it.

    Raises:
        InputError: its suffix names no format that is drawn, or matplotlib is not installed.
        OutputError: it exists, or its directory cannot be written.
    """
    if path.suffix.lower() not in METADATA:
        raise InputError(
            path, expected=f"a name ending in {', '.join(METADATA)}", found=repr(path.name), fix="end it in .svg"
        )
    check_new(path)
    check_installed("matplotlib", "plot", where=path, why="which draws it")


def score_figure(scores: Scores, *, drop: str | int) -> Figure:
    """The picture that score_map writes."""
    amount = parse_drop(drop, scores.layers)
    cell = min(0.4, max(0.15, 9 / scores.layers))
    with _style():
        figure = _figure_in_inches()
        figure.text(0, 0.75, f"{_short(scores.model.get('source', 'model'))}, {scores.layers} layers", **TITLE)
        figure.text(0, 0.55, _subtitle(scores, amount))
        layers = _order_map(figure, scores.scores, amount, cell=cell, top=0)
        layers.set(title="Order in which each metric removes layers", xlabel="layer", gid="layers")
        low = ROW * len(scores.scores)
        if scores.window_scores:
            blocks = _order_map(figure, scores.window_scores, 1, cell=cell, top=low + 0.9)
            title = f"The same for blocks of {scores.window} layers; a cross: the block that goes first"
            blocks.set(title=title, xlabel="first layer of the block", gid="blocks")
            low += 0.9 + ROW * len(scores.window_scores)
        _order_bar(figure, layers, top=low + 0.65)
        if len(scores.scores) > 1:
            _agreement_map(figure, agreement(scores), left=scores.layers * cell + 0.4 + _width(scores.scores))
        return figure


def depth_figure(depths: Sequence[Mapping[str, float]], *, title: str, knee: int | None) -> Figure:
    """The picture that depth_curve writes."""
    panels = {"perplexity": "perplexity", "kl": "KL divergence\n(nats per token)", "accuracy": "accuracy"}
    shown = [key for key in panels if any(key in depth for depth in depths)]
    with _style():
        figure = _figure_in_inches()
        figure.text(0, 0.4, title, **TITLE)
        for index, key in enumerate(shown):
            axes = _axes(figure, left=0, top=index * 1.9, width=6, height=1.7)
            axes.sharex(figure.axes[0])
            _curve(axes, depths, key, panels[key])
            _repaired_curve(axes, depths, f"repaired_{key}")
            axes.tick_params(labelbottom=key == shown[-1])
            if knee is not None:
                axes.axvline(knee, color=KNEE, linestyle="--")
        figure.axes[-1].set_xlabel("layers removed from the tail (0: the unpruned model)")
        if knee is not None:
            top, said = figure.axes[0], f"knee: {knee} layer{'s' * (knee != 1)} removed"
            top.text(knee, 1.05, said, color=KNEE, ha="center", transform=top.get_xaxis_transform())
        return figure


def loss_figure(history: History, *, title: str) -> Figure:
    """The picture that loss_curve writes."""
    from matplotlib.ticker import MaxNLocator

    with _style():
        figure = _figure_in_inches()
        figure.text(0, 0.4, title, **TITLE)
        axes = _axes(figure, left=0, top=0, width=6, height=2.6)
        for gid, points, colour, style in (
            ("training", history.losses, LEARNT, {"linewidth": 1.2}),
            ("held-out", history.held_out, CURVE, {"marker": "o", "markersize": 4}),
        ):
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, label=gid, gid=gid, **style)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set(xlabel="optimizer steps", ylabel="loss (nats per token)")
        axes.axvline(history.best, color=KNEE, linestyle="--")
        axes.text(history.best, 1.03, "kept", color=KNEE, ha="center", transform=axes.get_xaxis_transform())
        axes.legend(frameon=False)
        return figure


def _subtitle(scores: Scores, amount: int) -> str:
    """What was read, and what the crosses say."""
    tokens = scores.tokens
    read = f"{tokens['samples']} x {tokens['length']} tokens of {_short(tokens['source'])}; " if tokens else ""
    crosses = f"crosses: the {amount} layers that go first" if amount > 1 else "a cross: the layer that goes first"
    return read + crosses


def _short(name: object, length: int = 60) -> str:
    """The end of a long path, which tells most."""
    text = str(name)
    return text if len(text) <= length else f"...{text[3 - length :]}"


def _figure_in_inches() -> Figure:
    """A figure one inch wide and high, so that places in it are inches; what is drawn around it is saved, too."""
    from matplotlib.figure import Figure

    return Figure(figsize=(1, 1))


def _axes(figure: Figure, *, left: float, top: float, width: float, height: float) -> Axes:
    """Axes at a place in inches; top grows downwards."""
    return figure.add_axes((left, -top - height, width, height))


def _order_map(figure: Figure, values: Mapping[str, Sequence[float]], marked: int, *, cell: float, top: float) -> Axes:
    """A row for each metric; the place of each column in its order as colour, and crosses at the first `marked`."""
    orders = [removal_order(row) for row in values.values()]
    places = [[order.index(column) for column in range(len(order))] for order in orders]
    columns = len(orders[0])
    axes = _axes(figure, left=0, top=top, width=columns * cell, height=len(orders) * ROW)
    mesh = _cells(axes, places, "viridis", 0, max(1, columns - 1))
    _mark(axes, mesh, places, marked, size=min(30, (40 * cell) ** 2))
    axes.set_yticks(range(len(orders)), list(values))
    axes.set_xticks(range(0, columns, 1 if cell >= 0.25 else 5))
    return axes


def _mark(axes: Axes, mesh: QuadMesh, places: Sequence[Sequence[int]], amount: int, *, size: float) -> None:
    """A cross in every cell whose place is below `amount`."""
    cells = [(x, y, place) for y, row in enumerate(places) for x, place in enumerate(row) if place < amount]
    columns, rows, crossed = zip(*cells, strict=True)
    inks = [_ink(mesh, place) for place in crossed]
    axes.scatter(columns, rows, marker="x", s=size, c=inks, linewidths=1.2)


def _order_bar(figure: Figure, layers: Axes, *, top: float) -> None:
    """What the colours of the order mean."""
    axes = _axes(figure, left=0, top=top, width=COLOUR_BAR, height=0.12)
    bar = figure.colorbar(layers.collections[0], cax=axes, orientation="horizontal", ticks=[])
    bar.outline.set_visible(False)
    axes.text(0, -0.5, "goes first", ha="left", va="top", transform=axes.transAxes)
    axes.text(1, -0.5, "goes last", ha="right", va="top", transform=axes.transAxes)


def _agreement_map(figure: Figure, taus: Mapping[str, Mapping[str, float]], *, left: float) -> None:
    """A row and a column for each metric, with the numbers in the cells."""
    names, rows = list(taus), [list(row.values()) for row in taus.values()]
    axes = _axes(figure, left=left, top=0, width=len(names) * TAU, height=len(names) * ROW)
    mesh = _cells(axes, rows, "cividis", -1, 1)
    for y, row in enumerate(rows):
        for x, tau in enumerate(row):
            text = "-" if math.isnan(tau) else f"{tau:z.2f}"
            axes.text(x, y, text, color=_ink(mesh, tau), size=8, ha="center", va="center")
    axes.set_xticks(range(len(names)), names, rotation=90)
    axes.set_yticks(range(len(names)), names)
    axes.set(title="Agreement of metrics\nKendall's tau: 1 same order, -1 reverse", gid="agreement")


def _width(names: Iterable[str]) -> float:
    """About the inches that the longest of names takes."""
    return 0.065 * max(map(len, names))


def _cells(axes: Axes, rows: Sequence[Sequence[float]], colours: str, low: float, high: float) -> QuadMesh:
    """Rows of coloured cells, the first row on top; the middle of a cell is at its column and row."""
    x, y = ([edge - 0.5 for edge in range(amount + 1)] for amount in (len(rows[0]), len(rows)))
    mesh = axes.pcolormesh(x, y, rows, cmap=colours, vmin=low, vmax=high, edgecolors="white", linewidth=0.5)
    axes.invert_yaxis()
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return mesh


def _ink(mesh: QuadMesh, value: float) -> str:
    """What can be read on a cell of this value: black or white. The cell of no number has no colour."""
    import numpy as np

    red, green, blue, opacity = mesh.to_rgba(np.array(value))
    light = 0.299 * red + 0.587 * green + 0.114 * blue
    return "black" if light > 0.46 or not opacity else "white"


def _curve(axes: Axes, depths: Sequence[Mapping[str, float]], key: str, label: str) -> None:
    """What the entries have under the key; what is infinite is marked at the upper edge."""
    from matplotlib.ticker import MaxNLocator

    points = [(depths[0]["layers"] - depth["layers"], depth[key]) for depth in depths if key in depth]
    axes.plot(*zip(*points, strict=True), color=CURVE, marker="o", markersize=4)
    beyond = [removed for removed, value in points if math.isinf(value)]
    if beyond:
        edge = axes.get_xaxis_transform()
        axes.plot(beyond, [1] * len(beyond), "^", color=CURVE, transform=edge, clip_on=False)
        label += "\n(triangle: infinite)"
    if key == "perplexity":
        _log_scale(axes)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_label_coords(-0.115, 0.5)  # the same for every panel, however wide its numbers are
    axes.set(ylabel=label, gid=key)


def _repaired_curve(axes: Axes, depths: Sequence[Mapping[str, float]], key: str) -> None:
    """The same with repair, if there is any, as a dotted line with its name."""
    points = [(depths[0]["layers"] - depth["layers"], depth[key]) for depth in depths if key in depth]
    if points:
        axes.plot(*zip(*points, strict=True), color=CURVE, linestyle=":", marker="s", markersize=3, label="repaired")
        axes.legend(loc="upper left", frameon=False)


def _log_scale(axes: Axes) -> None:
    """A log scale with numbers as the tables have them, not as powers."""
    from matplotlib.ticker import LogFormatter

    class Numbers(LogFormatter):
        def __call__(self, x: float, pos: int | None = None) -> str:
            return number(x) if super().__call__(x, pos) else ""  # matplotlib says which ticks have room for one

    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(Numbers())
    axes.yaxis.set_minor_formatter(Numbers())


@contextmanager
def _style() -> Iterator[None]:
    """matplotlib's own defaults and ours, whatever the user's settings are."""
    from matplotlib import style

    with style.context(STYLE, after_reset=True):
        yield


def _save(figure: Figure, path: Path) -> None:
    suffix = path.suffix.lower()
    with whole(path) as partial, _style():
        figure.savefig(partial, format=suffix[1:], metadata=METADATA[suffix], bbox_inches="tight", dpi=150)
