"""Keep it or not, from numbers on either side of every bound."""

import math
import re
from types import SimpleNamespace

import pytest

from evaluations import evaluation, task, text
from shortstack.profiling.speed import Ratio
from shortstack.shrinking.reference import Speed
from shortstack.shrinking.verdict import _healed, speed_told, verdict


def found(perplexity, right=(), **how):
    return evaluation({"a.txt": text(math.log(perplexity))}, right, **how)


@pytest.mark.parametrize(
    ("last", "keep"),
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
def test_what_lies_within_the_bounds_is_kept_and_what_lies_beyond_is_not(last, keep):
    assert verdict(found(10, (50, 20)), last).keep is keep


def test_who_writes_as_the_unpruned_model_does_not_repeat_itself():
    said = verdict(found(10, (90,), repeated=0.95), found(10, (90,), repeated=0.95))
    assert said.keep
    assert not any("repeats" in reason for reason in said.reasons)


@pytest.mark.parametrize(
    ("answers", "said"),
    [
        (("Paris.", "Because."), ""),
        (("Paris.", " "), "It gives no answer to a prompt that the unpruned model answers."),
        (("I am here.", "I am here."), "It gives one answer to prompts that the unpruned model answers differently."),
    ],
)
def test_a_model_that_does_not_answer_is_not_kept(answers, said):
    asked = [
        {"prompt": "?", "unpruned": theirs, "shortened": ours}
        for theirs, ours in zip(("Paris!", "For joy."), answers, strict=True)
    ]
    found_out = verdict(found(10, (90,)), found(10, (90,)), asked)
    assert found_out.keep is (not said)
    assert not said or found_out.reasons[0] == said


def test_the_numbers_are_said_what_is_broken_and_the_worst_text_first():
    base, last = (
        evaluation({"a.txt": text(math.log(one)), "b.txt": text(math.log(other))}, right, repeated=repeated)
        for one, other, right, repeated in ((10, 10, (50, 25), 0.1), (12, 14, (40, 20), 0.95))
    )
    judged = verdict(base, last)
    collapsed, worst_text, probes, needed = judged.reasons
    assert judged.decision == "Do not keep it."
    assert worst_text == "Perplexity on b.txt is 1.40 times the unpruned model's."
    shares = r"60\.0% ± .* right, 75\.0% ± .* before the cut, so 80\.0% ± .* is kept\."
    assert re.fullmatch(rf"Generation probes: {shares}", probes)
    assert collapsed == "It repeats 95% of the 4-grams that it writes."
    assert "at most 1.5 times" in needed


def test_without_probes_nothing_says_to_keep_it():
    said = verdict(found(10), found(10))
    assert said.keep is None
    assert len(said.reasons) == 2, "the text, and what a clear yes needs"


@pytest.mark.parametrize("loss", [math.inf, math.nan])
def test_a_perplexity_beyond_all_numbers_is_not_kept(loss):
    assert verdict(found(10), evaluation({"a.txt": text(loss)})).keep is False


def test_tasks_whose_metric_is_no_share_are_no_percentage():
    tasks = {"piqa": task(0.6, "acc"), "wikitext": task(20.0, "word_perplexity")}
    reasons = verdict(found(10, tasks=tasks), found(11, tasks=tasks)).reasons
    share = "60.0% ± 2.0%"
    assert f"piqa: {share} right, {share} before the cut." in reasons
    assert not any("wikitext" in reason for reason in reasons)
    fewer = verdict(found(10, tasks={**tasks, "arc_easy": task(0.2, "acc")}), found(11, tasks=tasks)).reasons
    assert fewer == reasons, "of what both were asked"


def test_speed_is_told_with_its_interval():
    ratio = Ratio(1.2, 1.1, 1.3, 0.9)
    (said,) = speed_told(Speed(ratio, ratio))
    assert "1.20 times as fast as the unpruned model's (1.10 to 1.30), prefill 1.20 times." in said
    assert [*speed_told(Speed(reason="no time"))] == []


@pytest.mark.parametrize(
    ("best", "said"),
    [(0, "No held-out loss was lower"), (3, "Healing: 4 steps, 86 samples including held-out ones. So much.")],
)
def test_a_healing_that_came_to_nothing_is_said_to_have_done_so(best, said):
    history = SimpleNamespace(steps=4, best=best)
    made = SimpleNamespace(healing=SimpleNamespace(history=history, samples=86, remarks=["So much."]))
    assert said in " ".join(_healed(made))
