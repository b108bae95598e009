"""How options are written out again, what is said and drawn of results, and how a run that was stopped goes on."""

import warnings
from xml.etree import ElementTree

import pytest

from shortstack.cli.console import show_answers, show_result
from shortstack.cli.options import Source, going_on
from shortstack.errors import ShortstackWarning
from shortstack.scoring import Scores
from zoo import speaking


def test_options_are_typed_again_as_they_were():
    assert Source("v1", trust_remote_code=True).command_line == ["--revision", "v1", "--trust-remote-code"]
    assert Source().command_line == []


def test_a_warning_of_ours_is_a_line_and_others_stay_as_they_were(command, monkeypatch):
    def listing():
        warnings.warn("the mix is smaller", ShortstackWarning, stacklevel=1)
        warnings.warn("something else", UserWarning, stacklevel=1)
        return ""

    monkeypatch.setattr("shortstack.cli.app.listing", listing)
    with pytest.warns(UserWarning, match="something else") as others:
        assert command() == (0, "", "Warning: the mix is smaller\n")
    assert len(others) == 1


@pytest.mark.parametrize("stop", [KeyboardInterrupt, SystemExit(143)])
def test_a_run_that_is_stopped_says_how_it_goes_on(stop, capsys):
    with pytest.raises((KeyboardInterrupt, SystemExit)), going_on("run the same command again"):
        raise stop
    assert capsys.readouterr().err == "To continue: run the same command again.\n"


def test_a_run_that_ends_or_fails_says_nothing_of_that(capsys):
    with going_on("it goes on"):
        pass
    with pytest.raises(ValueError, match="no"), going_on("it goes on"):
        raise ValueError("no")
    assert not capsys.readouterr().err


def test_what_a_model_wrote_moves_no_cursor_and_changes_no_colour(capsys):
    show_answers({"prompt": "a\x1b[2Jb", "short": "one\r\x1b[31mtwo\nthree\x07"})
    assert capsys.readouterr().out == "\nPrompt: a[2Jb\nshort:\n  one[31mtwo\n  three\n\n"


def test_of_several_kinds_ppl_is_said_to_be_relative(capsys):
    tokens = {"samples": 4, "length": 8, "source": "mix", "kinds": [{"source": "pydoc"}, {"source": "copying"}]}
    scores = Scores(4, {"ppl": (1.0, 2.0, 3.0, 4.0)}, tokens=tokens, base_loss=1.0)
    assert scores.kinds == ("pydoc", "copying")
    show_result(scores)
    assert "ppl is relative to the unpruned perplexity." in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("score m --metric bi,ppl --window 2 --text pydoc --samples 2 --length 16", "Scores, each metric"),
        ("score m --depth-curve --text pydoc --samples 2 --length 16", "layers removed from the tail"),
        ("heal m --data pydoc --max-length 16 --max-samples 8 --train-last 1 -o out", "optimizer steps"),
    ],
)
def test_a_verb_writes_its_picture(words, said, command, tmp_path):
    speaking(tmp_path / "m")
    assert command(*words.split(), "--plot", "x.svg")[0] == 0
    root = ElementTree.fromstring((tmp_path / "x.svg").read_text())  # noqa: S314  written above
    assert any(said in "".join(each.itertext()) for each in root.iter("{http://www.w3.org/2000/svg}text"))
