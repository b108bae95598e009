"""score on several kinds of text."""

from shortstack.cli.console import show_result
from shortstack.scoring import Scores


def test_of_several_kinds_ppl_is_said_to_be_relative(capsys):
    tokens = {"samples": 4, "length": 8, "source": "mix", "kinds": [{"source": "pydoc"}, {"source": "copying"}]}
    scores = Scores(4, {"ppl": (1.0, 2.0, 3.0, 4.0)}, tokens=tokens, base_loss=1.0)
    assert scores.kinds == ("pydoc", "copying")
    show_result(scores)
    assert "ppl is relative to the unpruned perplexity." in " ".join(capsys.readouterr().out.split())
