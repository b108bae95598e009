"""`--plot` of score, depth-curve and heal: an .svg file beside the result, and nothing where it cannot be written."""

import sys
from xml.etree import ElementTree

import pytest

from shortstack.cli import main
from zoo import speaking

TEXT = ("--text", "pydoc", "--samples", "2", "--length", "16", "--quiet")
VERBS = {
    "score": ("score", "m", "--metric", "bi,ppl", "--window", "2", *TEXT),
    "depth-curve": ("depth-curve", "m", *TEXT),
    "heal": (
        "heal",
        "m",
        "--data",
        "pydoc",
        "--max-length",
        "16",
        "--max-samples",
        "8",
        "--last",
        "1",
        "-o",
        "out",
        "--quiet",
    ),
}


@pytest.fixture
def place(tmp_path, monkeypatch, own_cache):
    speaking(tmp_path / "m")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def ended(monkeypatch, *words):
    monkeypatch.setattr(sys, "argv", ["shortstack", *words])
    with pytest.raises(SystemExit) as found:
        main()
    return found.value.code or 0


@pytest.mark.parametrize(
    ("verb", "said"),
    [("score", "Scores, each metric"), ("depth-curve", "layers removed from the tail"), ("heal", "optimizer steps")],
)
def test_a_verb_writes_its_picture(verb, said, place, monkeypatch):
    assert ended(monkeypatch, *VERBS[verb], "--plot", "x.svg") == 0
    root = ElementTree.fromstring((place / "x.svg").read_text())  # noqa: S314  written above
    assert any(said in "".join(each.itertext()) for each in root.iter("{http://www.w3.org/2000/svg}text"))


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize(
    ("name", "said"), [("x.pdf", "end it in .svg"), ("none/x.svg", "none"), ("m", "ending in .svg")]
)
def test_a_name_that_is_no_picture_is_refused_before_work(verb, name, said, place, monkeypatch, capsys):
    before = sorted(place.rglob("*"))
    assert ended(monkeypatch, *VERBS[verb], "--plot", name) == 2
    assert said in capsys.readouterr().err
    assert sorted(place.rglob("*")) == before
