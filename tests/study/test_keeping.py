"""What a shortened model keeps, and which cut to try next, against models of which the answer is known."""

import math

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from shortstack.study.keeping import TRIALS, Share, first_amount, kept, largest, least, next_amount


def evaluation(loss, right=(), tasks=()):
    return {
        "perplexity": {"a.txt": {"loss": loss, "loss_stderr": 0.03}},
        "probes": {str(place): {"value": each, "stderr": 0.04} for place, each in enumerate(right)},
        "tasks": {name: {"value": value, "stderr": 0.02, "metric": metric} for name, value, metric in tasks},
    }


def test_shares_are_of_likelihood_probes_and_tasks_with_their_errors():
    base = evaluation(2.0, (0.8, 0.4), [("piqa", 0.5, "acc"), ("wikitext", 20.0, "word_perplexity")])
    last = evaluation(2.3, (0.4, 0.2), [("piqa", 0.4, "acc"), ("wikitext", 30.0, "word_perplexity")])
    found = kept(base, last)
    assert found["likelihood of a.txt"].value == pytest.approx(math.exp(-0.3))
    assert found["likelihood of a.txt"].stderr == pytest.approx(math.exp(-0.3) * 0.03 * math.sqrt(2))
    error = 0.04 / math.sqrt(2)  # of a mean over two probes
    assert found["probes of writing"].value == pytest.approx(0.5)
    assert found["probes of writing"].stderr == pytest.approx(0.5 * math.hypot(error / 0.6, error / 0.3))
    assert found["tasks"].value == pytest.approx(0.8)
    assert least(found) == ("probes of writing", found["probes of writing"])
    assert "probes of writing" not in kept(evaluation(2.0), evaluation(2.3))
    assert kept(base, evaluation(2.3, (0.0, 0.0)))["probes of writing"] == Share(0.0, pytest.approx(error / 0.6))


def test_one_window_has_no_error_and_counts_with_none():
    one = {"loss": 2.0, "loss_stderr": math.nan}
    assert kept({**evaluation(2.0), "perplexity": {"a": one}}, {**evaluation(2.0), "perplexity": {"a": one}})[
        "likelihood of a"
    ] == Share(1.0, 0.0)


@given(st.integers(5, 60), st.floats(0.02, 0.6), st.floats(0.5, 0.99))
def test_a_line_is_found_in_as_many_trials_as_there_are(layers, fall, keep):
    """A model that loses so much of everything with each layer; the first guess is of one layer."""
    share = {amount: 1 - fall * amount for amount in range(layers)}
    assume(all(abs(each - keep) > 1e-4 for each in share.values()))
    tried, amount = {}, 1
    for _ in range(TRIALS):
        if amount is not None:
            tried[amount] = share[amount]
            amount = next_amount(tried, keep, most=layers - 1)
    right = max((each for each in range(1, layers) if share[each] >= keep), default=None)
    assert amount is None
    assert largest(tried, keep) == right


@given(st.dictionaries(st.integers(1, 20), st.floats(0, 1.2), min_size=1), st.floats(0.05, 0.99))
def test_what_is_tried_next_is_new_and_within_bounds(tried, keep):
    following = next_amount(tried, keep, most=20)
    assert following is None or (1 <= following <= 20 and following not in tried)


def test_the_first_guess_is_what_single_layers_leave_room_for():
    costs = [0.3, 0.01, 0.02, 0.04, -0.01]
    assert first_amount(costs, 0.95) == 4  # room for .1026: -.01 counts as none, then .01, .02 and .04
    assert first_amount([1.0, 2.0], 0.95) == 1, "at least one goes"
    assert first_amount([0.0] * 6, 0.95) == 5, "at least one stays"
