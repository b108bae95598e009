"""Keep it or not, from numbers on either side of every bound."""

import math

import pytest

from evaluations import evaluation, text
from shortstack.shrinking.result import judge


def found(perplexity, right=(), **how):
    return evaluation({"a.txt": text(math.log(perplexity))}, right, **how)


@pytest.mark.parametrize(
    ("pruned", "keep"),
    [
        (found(14.999, (49, 25)), True),
        (found(15.1, (49, 25)), None),
        (found(14.999, (41, 21)), None),  # 89 % kept, but not surely 80 %
        (found(29.999, (49, 25)), None),
        (found(30.1, (49, 25)), False),
        (found(10, (22, 9)), None),  # 44 %, but not surely below 50 %
        (found(10, (20, 5)), False),
        (found(10, (49, 25), repeated=0.77), True),
        (found(10, (49, 25), repeated=0.78), False),
    ],
)
def test_verdict_on_both_sides_of_each_bound(pruned, keep):
    assert judge(found(10, (50, 20)), pruned).keep is keep


def test_repetition_is_judged_against_the_base_model():
    verdict = judge(found(10, (90,), repeated=0.95), found(10, (90,), repeated=0.95))
    assert (verdict.keep, verdict.repeats) == (True, False)


@pytest.mark.parametrize(
    ("answers", "right"),
    [(("Paris.", "Because."), True), (("Paris.", " "), False), (("I am here.", "I am here."), False)],
)
def test_a_model_that_does_not_answer_is_not_kept(answers, right):
    asked = [
        {"prompt": "?", "base": theirs, "pruned": ours}
        for theirs, ours in zip(("Paris!", "For joy."), answers, strict=True)
    ]
    verdict = judge(found(10, (90,)), found(10, (90,)), asked)
    assert (verdict.answers, verdict.keep) == (right, right)


def test_the_worst_text_counts():
    texts = ({"a.txt": text(math.log(one)), "b.txt": text(math.log(other))} for one, other in ((10, 10), (12, 14)))
    base, pruned = (evaluation(some, (50, 25)) for some in texts)
    verdict = judge(base, pruned)
    assert (verdict.text, verdict.perplexity) == ("b.txt", pytest.approx(1.4))


def test_without_probes_nothing_says_to_keep_it():
    assert judge(found(10), found(10)).keep is None


@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_a_perplexity_beyond_all_numbers_is_not_kept(loss):
    assert judge(found(10), evaluation({"a.txt": text(loss)})).keep is False
