"""Pictures: what is drawn is what was measured, files are whole or absent and always the same; and Kendall's tau."""

import itertools
import math
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from collections import Counter
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortstack.cli.plots import depth_curve, depth_figure, loss_curve, loss_figure, score_figure, score_map
from shortstack.errors import InputError, OutputError, PlanError
from shortstack.machine import files as jsonfiles
from shortstack.scoring import METRICS, Scores
from shortstack.scoring.scores import agreement, kendall_tau

matplotlib = pytest.importorskip("matplotlib")
pytest.importorskip("matplotlib.text")  # a part that is there only once somebody has imported it

TOKENS = {"source": "pydoc", "samples": 10, "length": 128}
SMALL = Scores(
    6,
    {"ppl": (9.0, 2.0, math.inf, 1.0, 3.0, 2.0), "bi": (0.9, 0.1, 0.2, 0.3, 0.4, 0.5), "random": (0.0,) * 6},
    window=2,
    window_scores={"angular": (0.5, 0.1, 0.4, 0.1, 0.3)},
    tokens=TOKENS,
    model={"source": "org/$mall$"},
)
ONE = Scores(6, {"ppl": (9.0, 2.0, math.inf, 1.0, 3.0, 2.0)})
DEPTHS = [
    {"layers": 8, "loss": 2.0, "perplexity": 7.4, "kl": 0.0},
    {"layers": 7, "loss": 2.5, "perplexity": 12.2, "kl": 0.4},
    {"layers": 6, "loss": 9.0, "perplexity": 8103.1, "kl": 6.1},
    {"layers": 4, "loss": 800.0, "perplexity": math.inf, "kl": 700.0},
]


def large() -> Scores:
    """Twelve metrics of 80 layers, with windows of each."""
    values = {name: tuple(math.sin(k + k * i) for i in range(80)) for k, name in enumerate(list(METRICS)[:12], start=1)}
    windows = {name: row[:61] for name, row in values.items()}
    return Scores(80, values, window=20, window_scores=windows, tokens=TOKENS, model={"source": "x/" + "long-" * 30})


# Kendall's tau


def counted_tau(a, b) -> float:
    """(concordant - discordant) / sqrt((pairs - pairs tied in a)(pairs - pairs tied in b)), counted one by one."""
    pairs = list(itertools.combinations(zip(a, b, strict=True), 2))
    concordant = sum((x < u and y < v) or (x > u and y > v) for (x, y), (u, v) in pairs)
    discordant = sum((x < u and y > v) or (x > u and y < v) for (x, y), (u, v) in pairs)
    tied_a, tied_b = (sum(math.comb(n, 2) for n in Counter(values).values()) for values in (a, b))
    untied = (len(pairs) - tied_a) * (len(pairs) - tied_b)
    return (concordant - discordant) / math.sqrt(untied) if untied else math.nan


few = st.integers(0, 4).map(lambda n: math.inf if n == 4 else float(n))  # few values, so many ties


@given(st.lists(st.tuples(few, few), max_size=12))
def test_tau_is_what_counting_gives(pairs):
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    assert kendall_tau(a, b) == pytest.approx(counted_tau(a, b), nan_ok=True)


@pytest.mark.parametrize("n", [2, 5, 30])
def test_tau_of_the_same_the_reverse_and_one_exchange(n):
    order = list(range(n))
    assert kendall_tau(order, [x**3 for x in order]) == 1
    assert kendall_tau(order, order[::-1]) == -1
    assert kendall_tau(order, [1, 0, *order[2:]]) == pytest.approx(1 - 4 / (n * (n - 1)))


def test_tau_with_ties_in_closed_form():
    halves, order = [0] * 5 + [1] * 5, range(10)
    assert kendall_tau(halves, order) == pytest.approx(math.sqrt(25 / 45))
    assert kendall_tau([12, 2, 1, 12, 2], [1, 4, 7, 1, 0]) == pytest.approx(-math.sqrt(2) / 3)


def test_where_all_are_equal_there_is_no_order():
    assert math.isnan(kendall_tau([1, 1, 1], [1, 2, 3]))
    assert math.isnan(kendall_tau([1], [1]))


def test_agreement_is_of_every_pair():
    found = agreement(SMALL)
    assert list(found) == list(found["bi"]) == ["ppl", "bi", "random"]
    assert found["bi"]["bi"] == 1
    assert found["bi"]["ppl"] == found["ppl"]["bi"] == counted_tau(SMALL.scores["ppl"], SMALL.scores["bi"])


# The map of scores


def part(figure, gid):
    return next((axes for axes in figure.axes if axes.get_gid() == gid), None)


def crosses(axes) -> list[set[int]]:
    """The columns with a cross, row by row."""
    rows = [set() for _ in axes.get_yticks()]
    for x, y in axes.collections[1].get_offsets():
        rows[int(y)].add(int(x))
    return rows


def texts(figure) -> list[str]:
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text)]


@pytest.mark.parametrize("scores", [SMALL, ONE, large()], ids=["small", "one", "large"])
@pytest.mark.parametrize("drop", [1, 3, "50%"])
def test_the_layers_that_go_first_are_crossed(scores, drop):
    axes = part(score_figure(scores, drop=drop), "layers")
    amount = scores.layers // 2 if drop == "50%" else drop
    assert crosses(axes) == [set(scores.order(name)[:amount]) for name in scores.scores]
    assert [label.get_text() for label in axes.get_yticklabels()] == list(scores.scores)


def test_colour_is_the_place_in_the_order():
    places = part(score_figure(SMALL, drop=2), "layers").collections[0].get_array()
    assert places[0].tolist() == [4, 1, 5, 0, 3, 2]
    assert [places[row].argsort().tolist() for row in range(3)] == [list(SMALL.order(name)) for name in SMALL.scores]


def test_the_first_row_is_on_top_and_every_cell_is_within():
    for axes in score_figure(SMALL, drop=2).axes[:2]:
        columns, rows = axes.collections[0].get_array().shape[::-1]
        assert axes.get_ylim() == (rows - 0.5, -0.5)
        assert axes.get_xlim() == (-0.5, columns - 0.5)


def test_the_lowest_block_is_crossed_and_ties_go_to_the_lower():
    axes = part(score_figure(SMALL, drop=2), "blocks")
    assert crosses(axes) == [{1}]
    assert axes.collections[0].get_array().tolist() == [[4, 0, 3, 1, 2]]
    assert axes.get_xlabel() == "first layer of the block"
    assert "blocks of 2 layers" in axes.get_title(loc="left")


def test_agreement_is_written_in_the_cells():
    figure = score_figure(SMALL, drop=2)
    cells = {text.get_position(): text for text in part(figure, "agreement").texts}
    assert cells[0, 0].get_text() == cells[1, 1].get_text() == "1.00"
    assert cells[1, 0].get_text() == cells[0, 1].get_text() == f"{kendall_tau(*list(SMALL.scores.values())[:2]):.2f}"
    assert cells[2, 1].get_text() == "-"
    assert cells[2, 1].get_color() == "black"


def test_what_was_not_scored_is_not_drawn():
    figure = score_figure(ONE, drop=2)
    assert part(figure, "blocks") is None
    assert part(figure, "agreement") is None  # of one metric with itself
    assert {"model, 6 layers", "crosses: the 2 layers that go first"} <= set(texts(figure))


def test_the_title_says_what_was_scored():
    said = texts(score_figure(SMALL, drop=2))
    assert "org/$mall$, 6 layers" in said
    assert "10 x 128 tokens of pydoc; crosses: the 2 layers that go first" in said


@pytest.fixture
def drawn(monkeypatch):
    """Draws a figure and gives the texts that were drawn, with their places; ticks out of sight are not."""
    found = []
    draw = matplotlib.text.Text.draw
    monkeypatch.setattr(matplotlib.text.Text, "draw", lambda text, *rest: (found.append(text), draw(text, *rest)))

    def texts_of(figure):
        figure.draw_without_rendering()
        return [(text.get_text(), text.get_window_extent()) for text in found if text.get_text() and text.get_visible()]

    return texts_of


def check_room(places):
    assert len(places) > 5
    for (one, here), (other, there) in itertools.combinations(places, 2):
        assert not here.overlaps(there), (one, other)


@pytest.mark.parametrize("scores", [SMALL, ONE, large()], ids=["small", "one", "large"])
def test_no_text_of_a_map_covers_another(scores, drawn):
    check_room(drawn(score_figure(scores, drop=1)))


# The curve over depth


def test_a_curve_per_measure_over_the_layers_removed():
    figure = depth_figure(DEPTHS, title="demo", knee=1)
    curves = {axes.get_gid(): axes.lines[0].get_xydata().tolist() for axes in figure.axes}
    assert curves["kl"] == [[0, 0.0], [1, 0.4], [2, 6.1], [4, 700.0]]
    assert curves["perplexity"][:3] == [[0, 7.4], [1, 12.2], [2, 8103.1]]
    assert list(curves) == ["perplexity", "kl"]
    assert [axes.get_yscale() for axes in figure.axes] == ["log", "linear"]
    assert "demo" in texts(figure)


def test_an_infinite_perplexity_is_a_triangle_at_the_edge():
    axes = part(depth_figure(DEPTHS, title="demo", knee=None), "perplexity")
    assert axes.lines[1].get_marker() == "^"
    assert axes.lines[1].get_xydata().tolist() == [[4, 1]]
    assert axes.get_ylabel().endswith("(triangle: infinite)")


def test_accuracy_has_a_panel_where_it_was_measured():
    depths = [{**DEPTHS[0], "accuracy": 0.6}, DEPTHS[1], {**DEPTHS[2], "accuracy": 0.25}, DEPTHS[3]]
    figure = depth_figure(depths, title="demo", knee=None)
    assert part(figure, "accuracy").lines[0].get_xydata().tolist() == [[0, 0.6], [2, 0.25]]
    assert len({axes.get_xlim() for axes in figure.axes}) == 1
    assert figure.axes[-1].get_xlabel().startswith("layers removed from the tail")


@pytest.mark.parametrize(("knee", "said"), [(0, "0 layers"), (1, "1 layer"), (2, "2 layers")])
def test_the_knee_is_a_line_through_every_panel(knee, said):
    figure = depth_figure(DEPTHS, title="demo", knee=knee)
    for axes in figure.axes:
        (line,) = [line for line in axes.lines if line.get_linestyle() == "--"]
        assert list(line.get_xdata()) == [knee, knee]
    assert f"knee: {said} removed" in texts(figure)


@pytest.mark.parametrize("knee", [None, 0, 4])
@pytest.mark.parametrize("amount", [1, 2, 4])
def test_no_text_of_a_curve_covers_another(amount, knee, drawn):
    check_room(drawn(depth_figure(DEPTHS[:amount], title="demo", knee=knee)))


def test_perplexities_are_written_as_in_tables(drawn):
    depths = [{"layers": 9 - i, "perplexity": 10.0**i, "kl": 0.0} for i in range(5)]
    said = {text for text, _ in drawn(depth_figure(depths, title="demo", knee=None))}
    assert {"100", "1,000", "10,000"} <= said
    assert not any("$" in text for text in said)


# The curve of losses

HISTORY = SimpleNamespace(losses=((1, 4.0), (10, 3.5), (20, 3.6)), held_out=((0, 4.1), (10, 3.4), (20, 3.7)), best=10)


def test_losses_over_steps_with_the_kept_step_marked():
    figure = loss_figure(HISTORY, title="healed")
    lines = {line.get_gid(): line.get_xydata().tolist() for line in figure.axes[0].lines}
    assert lines["training"] == [[1, 4.0], [10, 3.5], [20, 3.6]]
    assert lines["held-out"] == [[0, 4.1], [10, 3.4], [20, 3.7]]
    (kept,) = [line for line in figure.axes[0].lines if line.get_linestyle() == "--"]
    assert list(kept.get_xdata()) == [10, 10]
    assert {"healed", "kept", "training", "held-out"} <= set(texts(figure))


@pytest.mark.parametrize("best", [0, 10, 20])
def test_no_text_of_a_loss_curve_covers_another(best, drawn):
    check_room(drawn(loss_figure(SimpleNamespace(**{**vars(HISTORY), "best": best}), title="healed")))


# Files


def draw_map(path):
    score_map(SMALL, path, drop=2)


def draw_curve(path):
    depth_curve(DEPTHS, path, title="demo", knee=1)


def draw_losses(path):
    loss_curve(HISTORY, path, title="healed")


every = pytest.mark.parametrize("draw", [draw_map, draw_curve, draw_losses])


@every
@pytest.mark.parametrize("suffix", [".svg", ".png", ".pdf", ".SVG"])
def test_equal_data_give_equal_bytes_whatever_the_users_settings(tmp_path, draw, suffix):
    draw(tmp_path / f"one{suffix}")
    with matplotlib.rc_context({"font.size": 30, "savefig.transparent": True, "svg.hashsalt": None}):
        draw(tmp_path / f"two{suffix}")
        assert matplotlib.rcParams["font.size"] == 30
    one, two = ((tmp_path / f"{name}{suffix}").read_bytes() for name in ("one", "two"))
    assert one == two
    assert one[:4] in (b"<?xm", b"\x89PNG", b"%PDF")
    assert len(list(tmp_path.iterdir())) == 2


@every
def test_an_svg_has_text_as_text_and_each_id_once(tmp_path, draw):
    draw(tmp_path / "x.svg")
    root = ElementTree.fromstring((tmp_path / "x.svg").read_text())  # noqa: S314  # written above
    said = {text for element in root.iter("{http://www.w3.org/2000/svg}text") for text in element.itertext()}
    assert said & {"first layer of the block", "knee: 1 layer removed", "optimizer steps"}
    assert all(float(root.get(side).removesuffix("pt")) > 200 for side in ("width", "height"))  # not the bare inch
    ids = Counter(element.get("id") for element in root.iter() if element.get("id"))
    assert set(ids.values()) == {1}
    assert set(ids) & {"layers", "kl", "held-out"}
    assert "Date" not in (tmp_path / "x.svg").read_text()


@every
@pytest.mark.parametrize("name", ["x", "x.jpg", "x.json", ".svg"])
def test_another_suffix_is_answered_with_those_there_are(tmp_path, draw, name):
    with pytest.raises(InputError, match=r"\.svg, \.png, \.pdf"):
        draw(tmp_path / name)
    assert not list(tmp_path.iterdir())


@every
def test_what_exists_is_not_replaced(tmp_path, draw):
    (tmp_path / "x.svg").write_text("mine")
    (tmp_path / "link.svg").symlink_to(tmp_path / "nowhere")
    for name in ("x.svg", "link.svg"):
        with pytest.raises(OutputError, match="it exists"):
            draw(tmp_path / name)
    assert (tmp_path / "x.svg").read_text() == "mine"
    with pytest.raises(OutputError, match="a directory to write in"):
        draw(tmp_path / "none" / "x.svg")


@every
def test_a_picture_that_fails_leaves_nothing(tmp_path, draw, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(jsonfiles.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        draw(tmp_path / "x.svg")
    assert not list(tmp_path.iterdir())


def test_more_layers_than_there_are_cannot_be_marked(tmp_path):
    with pytest.raises(PlanError, match="between 1 and 5"):
        score_map(SMALL, tmp_path / "x.svg", drop=6)
    assert not list(tmp_path.iterdir())


@every
def test_without_matplotlib_the_extra_is_named(tmp_path, draw, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(InputError, match=r"pip install 'shortstack\[plot\]'"):
        draw(tmp_path / "x.svg")


def test_importing_costs_nothing_and_drawing_has_no_global_state():
    code = """if True:
        import sys
        from shortstack.cli import plots
        assert not {"matplotlib", "torch"} & set(sys.modules)
        plots.depth_figure([{"layers": 2, "perplexity": 3.0, "kl": 0.0}], title="x", knee=None)
        assert "matplotlib.pyplot" not in sys.modules
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
