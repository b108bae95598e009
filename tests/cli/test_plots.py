"""`--plot` of score, depth-curve and heal: an .svg file beside the result, and nothing where it cannot be written."""

from xml.etree import ElementTree

import pytest

from zoo import speaking

TEXT = "--text pydoc --samples 2 --length 16"
VERBS = {
    "score": f"score m --metric bi,ppl --window 2 {TEXT}",
    "depth-curve": f"depth-curve m {TEXT}",
    "heal": "heal m --data pydoc --max-length 16 --max-samples 8 --last 1 -o out",
}


@pytest.fixture
def place(tmp_path, command):
    speaking(tmp_path / "m")
    return tmp_path


@pytest.mark.parametrize(
    ("verb", "said"),
    [("score", "Scores, each metric"), ("depth-curve", "layers removed from the tail"), ("heal", "optimizer steps")],
)
def test_a_verb_writes_its_picture(verb, said, place, command):
    assert command(*VERBS[verb].split(), "--plot", "x.svg")[0] == 0
    root = ElementTree.fromstring((place / "x.svg").read_text())  # noqa: S314  written above
    assert any(said in "".join(each.itertext()) for each in root.iter("{http://www.w3.org/2000/svg}text"))


@pytest.mark.parametrize("verb", VERBS)
def test_a_name_that_is_no_picture_is_refused_before_work(verb, place, command):
    for name, said in (("x.pdf", "end it in .svg"), ("none/x.svg", "none")):
        assert said in command.refused(*VERBS[verb].split(), "--plot", name)
