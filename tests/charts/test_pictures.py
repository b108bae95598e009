"""Pictures: what is drawn is what was measured, names are escaped, files are whole or absent and always the same."""

import math
import re
from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest
from markupsafe import Markup

import shortstack as ss
from shortstack.charts.chart import Chart, Point, Series, axis
from shortstack.charts.picture import MARGIN, Panel, Picture
from shortstack.charts.rows import Bars, Dot, Layer, dots, stack
from shortstack.errors import InputError, OutputError
from shortstack.healing.result import loss_picture
from shortstack.scoring.depths import Depth, DepthCurve
from shortstack.scoring.metrics import removal_order

SVG = "{http://www.w3.org/2000/svg}"
SCORES = ss.Scores(
    6,
    {"ppl": (9.0, 2.0, math.inf, 1.0, 3.0, 2.0), "bi": (0.9, 0.1, 0.2, 0.3, 0.4, 0.5), "random": (0.0,) * 6},
    window=2,
    blocks={"angular": (0.5, 0.1, 0.4, 0.1, 0.3)},
    tokens={"source": "pydoc", "samples": 10, "length": 128},
    model={"source": "org/<small> & co"},
)
CURVE = DepthCurve(
    (
        Depth(8, 2.0, 7.4, 0.0),
        Depth(7, 2.5, 12.2, 0.4),
        Depth(6, 9.0, 8103.1, 6.1),
        Depth(5, 800.0, math.inf, 700.0),
    ),
)
HISTORY = SimpleNamespace(losses=((1, 4.0), (10, 3.5), (20, 3.6)), held_out=((0, 4.1), (10, 3.4), (20, 3.7)), best=10)


PICTURES = {
    "scores": lambda: SCORES.plot(2),
    "depth_curve": CURVE.plot,
    "healing": lambda: loss_picture(HISTORY, "healed"),
}
every = pytest.mark.parametrize("draw", PICTURES.values(), ids=PICTURES)


def drawn(picture: Picture) -> ElementTree.Element:
    return ElementTree.fromstring(picture.svg())  # noqa: S314  drawn above


def texts(root: ElementTree.Element) -> set[str]:
    return {"".join(each.itertext()) for each in root.iter(f"{SVG}text")}


def titles(root: ElementTree.Element, tag: str, kind: str) -> list[str]:
    """Return what pointing at elements of a class says."""
    found = (each for each in root.iter(SVG + tag) if kind in each.get("class", "").split())
    return [title.text or "" for each in found if (title := each.find(f"{SVG}title")) is not None]


@every
def test_a_picture_is_xml_without_variables_and_fits_what_it_holds(draw):
    picture = draw()
    root = drawn(picture)
    assert "var(" not in picture.svg()
    assert "light-dark" not in picture.svg()
    assert (root.get("width"), root.get("height")) == (str(picture.width), str(picture.height))
    *_, (last, top) = picture.placed
    assert top + last.head + last.height + MARGIN == pytest.approx(picture.height, abs=1)
    for (one, at), (_, below) in zip(list(picture.placed), list(picture.placed)[1:], strict=False):
        assert below >= at + one.head + one.height


@every
def test_equal_data_are_equal_bytes_and_nothing_is_replaced(draw, tmp_path):
    for name in ("one.svg", "two.SVG"):
        draw().save(tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.SVG").read_bytes()
    for name, error in {
        "one.svg": OutputError,
        "none/x.svg": OutputError,
        "x": InputError,
        "x.png": InputError,
    }.items():
        with pytest.raises(error):
            draw().save(tmp_path / name)
    assert len(list(tmp_path.iterdir())) == 2


def test_names_are_escaped_and_long_ones_end_as_they_end():
    assert "org/&lt;small&gt; &amp; co, 6 layers" in SCORES.plot().svg()
    long = replace(SCORES, model={"source": "x/" + "long-" * 30 + "end"}).plot()
    assert long.title.startswith("...")
    assert long.title.endswith("-end, 6 layers")


def test_cells_are_darker_the_earlier_and_the_first_are_marked():
    root = drawn(SCORES.plot(2))
    cells = [each for each in root.iter(f"{SVG}rect") if each.get("class") == "cell"][: 3 * 6]
    for row, values in enumerate(SCORES.scores.values()):
        opacity = [float(cell.get("fill-opacity", "")) for cell in cells[6 * row : 6 * row + 6]]
        assert tuple(sorted(range(6), key=lambda layer: -opacity[layer])) == removal_order(values)
    assert "layer 3 by ppl: place 1, score 1" in titles(root, "rect", "cell")[3]
    first = [float(each.get("cx", "")) for each in root.iter(f"{SVG}circle") if each.get("class") == "dot"]
    assert [int((x - 132) / ((480 - 132) / 6)) for x in first] == [1, 3, 1, 2, 0, 1, 1]  # two of each metric, one block


def test_bars_are_as_high_as_values_and_those_that_go_stand_out():
    root = drawn(SCORES.plot(2))
    found = [each for each in root.iter(f"{SVG}rect") if "bar" in each.get("class", "").split()]
    assert len(found) == 3 * 6
    wanted = [1.5 + (value - 0.1) / 0.8 * 28 for value in SCORES.scores["bi"]]
    assert [float(each.get("height", "")) for each in found[6:12]] == pytest.approx(wanted, abs=0.01)
    first = [f"layer {layer} by ppl: {value}" for layer, value in ((1, 2), (3, 1))]
    assert titles(root, "rect", "first")[:2] == first
    assert Bars("x", (1.0, 10.0, 1000.0)).heights == pytest.approx([0, 1 / 3, 1]), "steep: as logarithms"
    assert Bars("x", (math.inf, 1.0, 3.0)).heights == [1.0, 0.0, 1.0]


def test_what_was_not_scored_is_not_drawn():
    one = ss.Scores(6, {"ppl": SCORES.scores["ppl"]})
    assert len(one.plot().panels) == 2
    *_, panel = ss.Scores(6, one.scores, 2, SCORES.blocks).plot().panels
    assert panel.title.startswith("Order in which each metric removes blocks of 2 layers, the first one marked")
    with pytest.raises(InputError):
        one.plot(6)


def places(root: ElementTree.Element, colour: str) -> list[tuple[float, float]]:
    """Where the markers of a line lie."""
    group = next(each for each in root.iter(f"{SVG}g") if each.get("class", "").startswith(f"series {colour}"))
    circles = [(float(each.get("cx", "")), float(each.get("cy", ""))) for each in group.iter(f"{SVG}circle")]
    pattern = r"M([\d.]+) ([\d.]+)"
    paths = [re.match(pattern, each.get("d", "")) for each in group.iter(f"{SVG}path") if each.get("class") == "point"]
    return circles + [(float(found[1]), float(found[2])) for found in paths if found]


def test_depths_lie_where_their_numbers_are_and_the_infinite_at_the_edge():
    root = drawn(CURVE.plot())
    ppl, kl = (
        places(chart, "c0") for chart in [each for each in root.iter(f"{SVG}svg") if each.get("class") == "chart"][:2]
    )
    rise = [kl[0][1] - y for _, y in kl]
    assert rise[3] / rise[2] == pytest.approx(700 / 6.1, rel=0.15)  # a pixel of a hundredth
    logs = [math.log(value) for value in (7.4, 12.2, 8103.1)]
    ratio = (logs[1] - logs[0]) / (logs[2] - logs[0])
    assert (ppl[0][1] - ppl[1][1]) / (ppl[0][1] - ppl[2][1]) == pytest.approx(ratio, abs=0.01)
    assert ppl[3] == (ppl[3][0], 30.0)
    assert "at the upper edge: infinite" in texts(root)


def test_losses_have_the_kept_step_marked():
    root = drawn(loss_picture(HISTORY, "healed"))
    assert len(places(root, "c0")) == 3
    (mark,) = [each for each in root.iter(f"{SVG}line") if each.get("class") == "mark"]
    assert float(mark.get("x1", "")) == pytest.approx(places(root, "c0")[1][0], abs=0.1)
    assert {"training loss", "held-out loss", "optimizer steps"} <= texts(root)


def test_layers_and_dots_lie_at_their_values():
    layers = [Layer("removed" if layer in (3, 4) else "kept", f"layer {layer}") for layer in range(8)]
    root = drawn(Picture("t", [Panel("", stack(layers, title="t"), 46)]))
    assert titles(root, "rect", "removed") == ["layer 3", "layer 4"]
    rows = [Dot("copying", 0.4, 0.3, 0.5, "40%"), Dot("json", 0.8, 0.8, 0.8, "80%")]
    root = drawn(Picture("t", [Panel("t", dots(rows, title="t", scale=axis("", [0, 1], str)), 60)]))
    width = 480 - 44
    found = [float(each.get("cx", "")) for each in root.iter(f"{SVG}circle")]
    assert found == pytest.approx([22 + 0.4 * width, 22 + 0.8 * width], abs=0.1)
    (line,) = [each for each in root.iter(f"{SVG}line") if each.get("class") == "whisker"]
    assert float(line.get("x2", "")) == pytest.approx(22 + 0.5 * width, abs=0.1)


@pytest.mark.parametrize("low", [1.0, 5.0, 100.0])
def test_no_tick_of_a_logarithmic_axis_covers_another(low):
    for high in (low * 1.5, low * 30, low * 1e6):
        scale = axis("y", [low, high], str, log=True)
        chart = Chart("t", axis("x", [0, 1], str), scale, [Series("a", [Point(0, low, "")])])
        at = [chart.height(tick) for tick in scale.ticks]
        assert all(abs(one - other) > 11 for one, other in combinations(at, 2))


def test_legends_wrap_where_they_are_wide():
    panel = Panel("t", Markup(), 330, [(0, "a" * 40), (1, "b" * 40)])
    (_, _, x, y), (_, _, left, below) = panel.legend_places
    assert (x, left) == (0.0, 0.0)
    assert panel.head > below > y


@pytest.mark.parametrize(
    ("values", "log"),
    [([0.1, 0.9], False), ([5.0], False), ([0.0], False), ([11.0, 3e6], True), ([7.0, 7.2], True), ([], True)],
)
def test_an_axis_holds_its_values(values, log):
    found = axis("x", values, str, log=log)
    assert found.low < found.high
    assert len(found.ticks) >= 2
    assert all(found.low <= value <= found.high for value in (*values, *found.ticks))
