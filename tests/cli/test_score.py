"""score on several kinds of text."""

import math

from shortstack.cli.console import show_result
from shortstack.scoring import Scores
from shortstack.scoring.scores import KindScores


def kind(*ppl):
    return KindScores(1.0, 0.0, {"ppl": ppl})


def test_the_map_names_what_is_cheap_on_one_kind_and_dear_on_another(capsys):
    cheap, dear = kind(1.1, 1.1, 1.1, 2.0), kind(1.2, 1.2, math.exp(4), 1.2)
    scores = Scores(4, {"ppl": (1.0, 2.0, 3.0, 4.0)}, base_loss=1.0, kinds={"/data/prose.txt": cheap, "copying": dear})
    show_result(scores)
    shown = capsys.readouterr().out
    assert "Low impact on prose.txt, high on copying: 2." in shown
    assert "4.00" in shown
    assert "times the unpruned" in " ".join(shown.split())


def test_one_kind_has_no_map(capsys):
    show_result(Scores(2, {"ppl": (1.0, 2.0)}, base_loss=1.0))
    assert "what each layer carries" not in capsys.readouterr().out


def test_texts_of_one_file_name_keep_their_paths(capsys):
    kinds = {"/a/text.txt": kind(1.1, 1.1, 1.1, 2.0), "/b/text.txt": kind(1.2, 1.2, math.exp(4), 1.2)}
    show_result(Scores(4, {"ppl": (1.0, 2.0, 3.0, 4.0)}, base_loss=1.0, kinds=kinds))
    shown = capsys.readouterr().out
    assert "Low impact on /a/text.txt, high on /b/text.txt: 2." in shown


def test_a_map_of_nothing_but_infinities_is_shown(capsys):
    infinite = {name: kind(math.inf, math.inf) for name in "ab"}
    show_result(Scores(2, {"ppl": (1.0, 2.0)}, base_loss=1.0, kinds=infinite))
    assert "∞" in capsys.readouterr().out


def test_a_map_by_kl_does_not_say_that_it_is_of_loss(capsys):
    by_kl = {name: KindScores(1.0, 0.0, {"kl": values}) for name, values in {"a": (0.5, 1.0), "b": (0.1, 4.0)}.items()}
    show_result(Scores(2, {"kl": (0.3, 2.5)}, base_loss=1.0, kinds=by_kl))
    shown = " ".join(capsys.readouterr().out.split())
    assert "KL divergence from the unpruned model without it" in shown
    assert "lost" not in shown
    assert "times the unpruned" not in shown
