"""Kendall's tau, against counting every pair."""

import itertools
import math
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shortstack.scoring.metrics import agreement, kendall_tau

SCORES = {"ppl": (9.0, 2.0, math.inf, 1.0, 3.0, 2.0), "bi": (0.9, 0.1, 0.2, 0.3, 0.4, 0.5), "random": (0.0,) * 6}


def counted_tau(a, b) -> float:
    """(concordant - discordant) / sqrt((pairs - pairs tied in a)(pairs - pairs tied in b)), counted one by one."""
    pairs = list(itertools.combinations(zip(a, b, strict=True), 2))
    concordant = sum((x < u and y < v) or (x > u and y > v) for (x, y), (u, v) in pairs)
    discordant = sum((x < u and y > v) or (x > u and y < v) for (x, y), (u, v) in pairs)
    tied_a, tied_b = (sum(math.comb(n, 2) for n in Counter(values).values()) for values in (a, b))
    untied = (len(pairs) - tied_a) * (len(pairs) - tied_b)
    return (concordant - discordant) / math.sqrt(untied) if untied else math.nan


few = st.integers(0, 4).map(lambda n: math.inf if n == 4 else float(n))  # few values, so many ties


@given(st.lists(st.tuples(few, few), max_size=12))
def test_tau_is_what_counting_gives(pairs):
    a, b = [x for x, _ in pairs], [y for _, y in pairs]
    assert kendall_tau(a, b) == pytest.approx(counted_tau(a, b), nan_ok=True)


@pytest.mark.parametrize("n", [2, 5, 30])
def test_tau_of_the_same_the_reverse_and_one_exchange(n):
    order = list(range(n))
    assert kendall_tau(order, [x**3 for x in order]) == 1
    assert kendall_tau(order, order[::-1]) == -1
    assert kendall_tau(order, [1, 0, *order[2:]]) == pytest.approx(1 - 4 / (n * (n - 1)))


def test_tau_with_ties_in_closed_form():
    halves, order = [0] * 5 + [1] * 5, range(10)
    assert kendall_tau(halves, order) == pytest.approx(math.sqrt(25 / 45))
    assert kendall_tau([12, 2, 1, 12, 2], [1, 4, 7, 1, 0]) == pytest.approx(-math.sqrt(2) / 3)


def test_where_all_are_equal_there_is_no_order():
    assert math.isnan(kendall_tau([1, 1, 1], [1, 2, 3]))
    assert math.isnan(kendall_tau([1], [1]))


def test_agreement_is_of_every_pair():
    found = agreement(SCORES)
    assert list(found) == list(found["bi"]) == ["ppl", "bi", "random"]
    assert found["bi"]["bi"] == 1
    assert found["bi"]["ppl"] == found["ppl"]["bi"] == counted_tau(SCORES["ppl"], SCORES["bi"])
