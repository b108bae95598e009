"""The share a shortened model keeps, and which cut to try next, against models of which the answer is known."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluations import evaluation, probed, task, text
from shortstack.evaluation.paired import Estimate
from shortstack.shrinking.retention import first_amount, lowest, next_amount, retention


def test_shares_are_of_likelihood_probes_and_tasks_with_their_errors():
    tasks = {"piqa": task(0.5, "acc"), "wikitext": task(20.0, "word_perplexity")}
    base = evaluation({"a.txt": text(2.0)}, (40, 20), tasks)
    pruned = evaluation({"a.txt": text(2.3)}, (20, 10), {**tasks, "piqa": task(0.4, "acc")})
    found = retention(base, pruned)
    assert found["likelihood of a.txt"].value == pytest.approx(math.exp(-0.3))
    assert found["likelihood of a.txt"].stderr == pytest.approx(math.exp(-0.3) * 0.03 * math.sqrt(2))
    assert found["probes"].value == pytest.approx(0.5)
    before, after = (math.hypot(*(probed(right).stderr for right in some)) / 2 for some in ((40, 20), (20, 10)))
    assert found["probes"].stderr == pytest.approx(0.5 * math.hypot(before / 0.6, after / 0.3))
    assert found["tasks"].value == pytest.approx(0.8)
    assert lowest(found) == ("probes", found["probes"])
    assert "probes" not in retention(evaluation(base.perplexity), evaluation(pruned.perplexity))


def test_one_window_has_no_error_and_counts_with_none():
    one = evaluation({"a": text(2.0, stderr=None)})
    assert retention(one, one)["likelihood of a"] == Estimate(1.0, 0.0)


def test_measures_that_the_pruned_model_lacks_count_as_lost():
    base, pruned = evaluation({"a": text(2.0)}, (40,)), evaluation({"a": text(2.0)})
    assert retention(base, pruned)["probes"] == Estimate(0.0, 0.0)
    piqa, arc = {"piqa": task(0.8, "acc")}, {"arc_easy": task(0.3, "acc")}
    one, both = (evaluation({}, tasks=tasks) for tasks in (piqa, {**piqa, **arc}))
    assert retention(both, one)["tasks"] == Estimate(0.0, 0.0)


@given(st.integers(2, 60), st.floats(0.01, 0.6), st.floats(0.5, 0.99), st.integers(1, 60))
def test_the_search_ends_at_the_largest_cut_and_never_leaps(layers, fall, keep, first):
    """A model that loses so much of everything with each layer."""
    share = {amount: 1 - fall * amount for amount in range(layers)}
    right = max((each for each in range(1, layers) if share[each] >= keep), default=None)
    tried, amount = {}, min(first, layers - 1)
    while amount is not None:
        enough = [each for each, found in tried.items() if found >= keep]
        assert amount not in tried
        assert not tried or amount <= max(2 * max(enough, default=0), 1) or amount < min(set(tried) - set(enough))
        tried[amount] = share[amount]
        amount = next_amount(tried, keep, most=layers - 1)
    assert max((each for each, found in tried.items() if found >= keep), default=None) == right


def test_after_a_cut_that_kept_all_twice_as_many_go_next():
    assert next_amount({6: 1.0}, 0.95, most=29) == 12
    assert next_amount({6: 1.0, 12: 0.2}, 0.95, most=29) == 7  # on the line between them
    assert next_amount({20: 1.0}, 0.95, most=29) == 29
    assert next_amount({29: 1.0}, 0.95, most=29) is None
    assert next_amount({1: 0.5}, 0.95, most=29) is None, "not even one layer can go"


@given(st.dictionaries(st.integers(1, 20), st.floats(0, 1.2), min_size=1), st.floats(0.05, 0.99))
def test_what_is_tried_next_is_new_and_within_bounds(tried, keep):
    following = next_amount(tried, keep, most=20)
    assert following is None or (1 <= following <= 20 and following not in tried)


def test_the_first_guess_is_what_single_layers_leave_room_for():
    costs = [0.3, 0.01, 0.02, 0.04, -0.01]
    assert first_amount(costs, 0.95) == 4  # room for .1026: -.01 counts as none, then .01, .02 and .04
    assert first_amount([1.0, 2.0], 0.95) == 1, "at least one goes"
    assert first_amount([0.0] * 6, 0.95) == 5, "at least one stays"
