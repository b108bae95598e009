"""score on several kinds of text."""

import math

import pytest

from shortstack.cli.console import show_result
from shortstack.scoring import Scores
from shortstack.scoring.scores import KindScores


def shown(kinds, capsys):
    """What is printed of four layers, for which these kinds of text have a perplexity each."""
    by_kind = {name: KindScores(1.0, 0.0, {"ppl": ppl}) for name, ppl in kinds.items()}
    show_result(Scores(4, {"ppl": (1.0, 2.0, 3.0, 4.0)}, base_loss=1.0, kinds=by_kind))
    return " ".join(capsys.readouterr().out.split())


CHEAP, DEAR = (1.1, 1.1, 1.1, 2.0), (1.2, 1.2, math.exp(4), 1.2)


@pytest.mark.parametrize(
    ("paths", "names"),
    [(("/data/prose.txt", "copying"), ("prose.txt", "copying")), (("/a/text.txt", "/b/text.txt"),) * 2],
)
def test_the_map_names_what_is_cheap_on_one_kind_and_dear_on_another(paths, names, capsys):
    said = shown(dict(zip(paths, (CHEAP, DEAR), strict=True)), capsys)
    assert f"Low impact on {names[0]}, high on {names[1]}: 2." in said
    assert "4.00" in said
    assert "times the unpruned" in said


def test_one_kind_has_no_map_and_infinities_are_shown_in_one(capsys):
    assert "what each layer carries" not in shown({}, capsys)
    assert "∞" in shown(dict.fromkeys("ab", (math.inf,) * 4), capsys)


def test_a_map_by_kl_does_not_say_that_it_is_of_loss(capsys):
    by_kl = {name: KindScores(1.0, 0.0, {"kl": values}) for name, values in {"a": (0.5, 1.0), "b": (0.1, 4.0)}.items()}
    show_result(Scores(2, {"kl": (0.3, 2.5)}, base_loss=1.0, kinds=by_kl))
    said = " ".join(capsys.readouterr().out.split())
    assert "KL divergence from the unpruned model without it" in said
    assert "lost" not in said
    assert "times the unpruned" not in said
