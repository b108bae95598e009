"""Pictures: what is drawn is what was measured, names are escaped, files are whole or absent and always the same."""

import math
import re
from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

import shortstack as ss
from shortstack.charts.chart import Chart, Point, Series, axis
from shortstack.charts.picture import MARGIN, Panel, Picture
from shortstack.charts.rows import STACK_HEIGHT, Bars, Dot, Dots, Layer, dots, stack
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
def test_equal_data_are_equal_bytes_and_what_exists_is_not_replaced(draw, tmp_path):
    for name in ("one.svg", "two.SVG"):
        draw().save(tmp_path / name)
    assert (tmp_path / "one.svg").read_bytes() == (tmp_path / "two.SVG").read_bytes()
    with pytest.raises(OutputError, match="exists"):
        draw().save(tmp_path / "one.svg")
    with pytest.raises(OutputError, match="no folder"):
        draw().save(tmp_path / "none" / "x.svg")
    for name in ("x", "x.png", "x.pdf"):
        with pytest.raises(InputError, match=r"ending in \.svg"):
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
    said = titles(root, "rect", "cell")
    assert "layer 3 by ppl: place 1, score 1" in said[3]
    first = [float(each.get("cx", "")) for each in root.iter(f"{SVG}circle") if each.get("class") == "dot"]
    width = (480 - 132) / 6
    assert [int((x - 132) / width) for x in first] == [1, 3, 1, 2, 0, 1, 1]  # two of each metric, one block


def test_bars_are_as_high_as_values_and_those_that_go_stand_out():
    root = drawn(SCORES.plot(2))
    found = [each for each in root.iter(f"{SVG}rect") if "bar" in each.get("class", "").split()]
    assert len(found) == 3 * 6
    heights = [float(each.get("height", "")) for each in found[6:12]]
    wanted = [1.5 + (value - 0.1) / 0.8 * 28 for value in SCORES.scores["bi"]]
    assert heights == pytest.approx(wanted, abs=0.01)
    assert titles(root, "rect", "first") == [
        f"layer {layer} by {name}: {value}"
        for name, layer, value in [
            ("ppl", 1, 2),
            ("ppl", 3, 1),
            ("bi", 1, 0.1),
            ("bi", 2, 0.2),
            ("random", 0, 0),
            ("random", 1, 0),
        ]
    ]
    assert Bars("x", (1.0, 10.0, 1000.0)).heights == pytest.approx([0, 1 / 3, 1])  # steep: as logarithms
    assert Bars("x", (math.inf, 1.0, 3.0)).heights == [1.0, 0.0, 1.0]


def test_agreement_is_written_in_the_cells():
    said = titles(drawn(SCORES.plot()), "rect", "cell")
    assert "ppl and ppl: 1.00" in said
    assert not any("random and" in each for each in said)  # all of it is equal, which is no order
    assert "-" in texts(drawn(SCORES.plot()))


def test_what_was_not_scored_is_not_drawn():
    one = ss.Scores(6, {"ppl": SCORES.scores["ppl"]})
    assert len(one.plot().panels) == 2
    assert "the 2 that go first are marked" in " ".join(one.plot().about)
    blocks = ss.Scores(6, one.scores, 2, SCORES.blocks)
    *_, panel = blocks.plot().panels
    assert panel.title.startswith("Order in which each metric removes blocks of 2 layers, the first one marked")
    with pytest.raises(InputError, match="6 layers"):
        one.plot(6)


def places(root: ElementTree.Element, colour: str) -> list[tuple[float, float]]:
    """Where the markers of a line lie."""
    group = next(each for each in root.iter(f"{SVG}g") if each.get("class", "").startswith(f"series {colour}"))
    circles = [(float(each.get("cx", "")), float(each.get("cy", ""))) for each in group.iter(f"{SVG}circle")]
    pattern = r"M([\d.]+) ([\d.]+)"
    paths = [re.match(pattern, each.get("d", "")) for each in group.iter(f"{SVG}path") if each.get("class") == "point"]
    return circles + [(float(found[1]), float(found[2])) for found in paths if found]


def chart_of(root: ElementTree.Element, number: int) -> ElementTree.Element:
    return [each for each in root.iter(f"{SVG}svg") if each.get("class") == "chart"][number]


def test_depths_lie_where_their_numbers_are_and_the_infinite_at_the_edge():
    root = drawn(CURVE.plot())
    kl = places(chart_of(root, 1), "c0")
    rise = [kl[0][1] - y for _, y in kl]
    assert rise[3] / rise[2] == pytest.approx(700 / 6.1, rel=0.15)  # a pixel of a hundredth
    ppl = places(chart_of(root, 0), "c0")
    logs = [math.log(value) for value in (7.4, 12.2, 8103.1)]
    assert (ppl[0][1] - ppl[1][1]) / (ppl[0][1] - ppl[2][1]) == pytest.approx(
        (logs[1] - logs[0]) / (logs[2] - logs[0]), abs=0.01
    )
    assert ppl[3] == (ppl[3][0], 30.0)
    assert "at the upper edge: infinite" in texts(root)


def test_losses_over_steps_with_the_kept_step_marked():
    root = drawn(loss_picture(HISTORY, "healed"))
    assert len(places(root, "c0")) == 3
    (mark,) = [each for each in root.iter(f"{SVG}line") if each.get("class") == "mark"]
    assert float(mark.get("x1", "")) == pytest.approx(places(root, "c0")[1][0], abs=0.1)
    assert {"training loss", "held-out loss", "optimizer steps"} <= texts(root)
    assert "held-out KL from the teacher" in texts(drawn(loss_picture(HISTORY, "healed", kind="KL from the teacher")))


def test_layers_that_go_are_empty():
    made = stack([Layer("kept", "layer 0"), Layer("removed", "layer 1 goes")], title="t")
    root = drawn(Picture("t", [Panel("", made, STACK_HEIGHT)]))
    assert titles(root, "rect", "removed") == ["layer 1 goes"]
    assert titles(root, "rect", "kept") == ["layer 0"]


def test_dots_lie_at_their_values_beside_chance():
    values = [Dot(5, 0.8, 0.7, 0.9, "0.8"), Dot(0, 0.4, 0.4, 0.4, "0.4")]
    made = dots([Dots("copying", values, 0.1)], title="t", scale=axis("", [0, 1], str))
    root = drawn(Picture("t", [Panel("t", made, 60)]))
    left, width = 22, 480 - 44
    assert [x for x, _ in places(root, "c0")] == [pytest.approx(left + 0.4 * width, abs=0.1)]
    assert [x for x, _ in places(root, "c5")] == [pytest.approx(left + 0.8 * width, abs=0.1)]
    (chance,) = [each for each in root.iter(f"{SVG}line") if each.get("class") == "mark"]
    assert float(chance.get("x1", "")) == pytest.approx(left + 0.1 * width, abs=0.1)


@pytest.mark.parametrize("low", [1.0, 5.0, 100.0])
def test_no_tick_of_a_logarithmic_axis_covers_another(low):
    for high in (low * 1.5, low * 30, low * 1e6):
        scale = axis("y", [low, high], str, log=True)
        chart = Chart("t", axis("x", [0, 1], str), scale, [Series("a", [Point(0, low, "")])])
        at = [chart.height(tick) for tick in scale.ticks]
        assert all(abs(one - other) > 11 for one, other in combinations(at, 2))


def test_legends_wrap_where_they_are_wide():
    panel = Panel(
        "t", Chart("t", axis("x", [0], str), axis("y", [0], str), []).svg(), 330, [(0, "a" * 40), (1, "b" * 40)]
    )
    (_, _, x, y), (_, _, left, below) = panel.legend_places
    assert (x, left) == (0.0, 0.0)
    assert below > y
    assert panel.head > below


@pytest.mark.parametrize(
    ("values", "log"),
    [([0.1, 0.9], False), ([5.0], False), ([0.0], False), ([11.0, 3e6], True), ([7.0, 7.2], True), ([], True)],
)
def test_an_axis_holds_its_values(values, log):
    found = axis("x", values, str, log=log)
    assert found.low < found.high
    assert len(found.ticks) >= 2
    assert all(found.low <= value <= found.high for value in (*values, *found.ticks))
