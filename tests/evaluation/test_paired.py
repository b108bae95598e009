"""Paired comparison against scipy, and against counting by hand: every choice of signs, fractions instead of floats."""

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from shortstack.errors import DataError
from shortstack.evaluation.paired import Estimate, Sample, compare, compare_tasks, holm

bits = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=2, max_size=10)


def outcomes(values):
    return named((f"document {number}" for number in range(len(values))), values)


def named(documents, values, *, macro=False):
    return Sample.of(Estimate(0), dict(zip(documents, values, strict=True)), macro=macro)


def compared(pairs, **options):
    ours, theirs = zip(*pairs, strict=True)
    return compare("task", outcomes(ours), outcomes(theirs), **options)


def share_of_signs_as_extreme(differences):
    """Of all 2^n choices of signs, those whose sum is as far from 0: in whole numbers."""
    sums = [abs(sum(s * d for s, d in zip(signs, differences, strict=True)))
            for signs in itertools.product((1, -1), repeat=len(differences))]  # fmt: skip
    return Fraction(sum(total >= abs(sum(differences)) for total in sums), len(sums))


@settings(deadline=None)  # the first call imports scipy
@given(bits)
def test_mcnemars_p_is_the_share_of_all_signs_that_are_as_extreme(pairs):
    assert compared(pairs).p == pytest.approx(float(share_of_signs_as_extreme([a - b for a, b in pairs])))


def test_p_and_interval_of_other_numbers_are_those_of_students_paired_test():
    rng = np.random.default_rng(3)
    ours, theirs = rng.normal(0.4, 1, 12), rng.normal(0, 1, 12)
    found = compared(list(zip(ours.tolist(), theirs.tolist(), strict=True)))
    expected = stats.ttest_rel(ours, theirs)
    assert found.p == pytest.approx(expected.pvalue)
    assert found.interval == pytest.approx(tuple(expected.confidence_interval(0.95)))
    assert found.stderr == pytest.approx((ours - theirs).std(ddof=1) / math.sqrt(12))
    assert (found.value, found.base, found.n) == (pytest.approx(ours.mean()), pytest.approx(theirs.mean()), 12)
    assert 0.01 < found.p < 0.6, "a case that says something"


def test_equal_shifts_are_tested_by_their_signs():
    found = compared([(0.25, 0.75)] * 6)
    assert found.p == pytest.approx(stats.binomtest(0, 6).pvalue)
    assert found.interval == (-0.5, -0.5)


def test_of_tasks_that_count_alike_errors_add_up_however_many_documents_each_has():
    """Four documents and forty, in no order; the whole is Welch's, with a second sample for each further task."""
    rng = np.random.default_rng(5)
    few, many = rng.normal(0.5, 2, 4), rng.normal(0, 0.5, 40)
    names = [*(f"few/{n}" for n in range(4)), *(f"many/{n}" for n in range(40))]
    order = rng.permutation(44)
    gains = np.concatenate([few, many])
    documents, base = tuple(names[n] for n in order), rng.normal(0, 1, 44)
    ours = named(documents, tuple((base + gains)[order]), macro=True)
    found = compare("group", ours, named(tuple(names), tuple(base), macro=True))
    welch = stats.ttest_ind(few, -many, equal_var=False)
    assert found.difference == pytest.approx((few.mean() + many.mean()) / 2)
    assert found.value == pytest.approx(((base + gains)[:4].mean() + (base + gains)[4:].mean()) / 2)
    assert found.p == pytest.approx(welch.pvalue)
    low, high = welch.confidence_interval(0.95)
    assert found.interval == pytest.approx((low / 2, high / 2))
    assert found.stderr == pytest.approx(math.hypot(few.std(ddof=1) / 2, many.std(ddof=1) / math.sqrt(40)) / 2)
    assert found.n == 44


def test_a_group_whose_tasks_count_alike_is_at_chance_by_the_error_of_their_mean():
    """Of the small task .5 is nothing, of the large one .5 is a lot; of all documents it would be beyond chance."""
    documents = (*(f"few/{n}" for n in range(4)), *(f"many/{n}" for n in range(400)))
    base, flat = (named(documents, (1.0, 0.0) * 202, macro=macro) for macro in (True, False))
    assert compare("group", base, base, chance=0.3).base_at_chance
    assert not compare("group", base, base, chance=0.15).base_at_chance
    assert not compare("group", flat, flat, chance=0.3).base_at_chance


@pytest.mark.parametrize(("ours", "theirs"), [([1] * 20, [1] * 20), ([0] * 6, [1] * 6)])
def test_of_rights_and_wrongs_that_differ_alike_neither_error_nor_interval_is_empty(ours, theirs):
    """With half a document in each cell of the table; the variance is written out cell by cell."""
    found = compared(zip(ours, theirs, strict=True))
    cells = dict.fromkeys((-1, 0, 1), 0.5) | {0: 1.0}
    for one, other in zip(ours, theirs, strict=True):
        cells[one - other] += 1
    n = len(ours) + 2
    mean = sum(value * count for value, count in cells.items()) / n
    stderr = math.sqrt(sum(count * (value - mean) ** 2 for value, count in cells.items()) / n / n)
    assert found.stderr == pytest.approx(stderr)
    reach = stats.t.ppf(0.975, len(ours) - 1) * stderr
    assert found.interval == pytest.approx((found.difference - reach, found.difference + reach))


@given(st.dictionaries(st.text(max_size=3), st.floats(0, 1), min_size=1, max_size=8))
def test_holm_rejects_what_stepping_down_rejects(ps):
    """At every level: go up from the smallest, stop at the first p above level / (how many are left)."""
    corrected = holm(ps)
    assert list(corrected) == list(ps)
    for level in (0.001, 0.05, 0.3, 0.9):
        rejected, left = set(), len(ps)
        for task in sorted(ps, key=ps.get):
            if ps[task] * left > level:
                break
            rejected.add(task)
            left -= 1
        assert {task for task, p in corrected.items() if p <= level} == rejected


def test_tasks_are_corrected_together():
    worse = outcomes([0] * 8 + [1] * 12)
    same = outcomes([1] * 20)
    found = compare_tasks({"a": worse, "b": same}, {"a": same, "b": same}, chances={"a": 0.25})
    assert found["a"].p == pytest.approx(2 / 2**8)
    assert found["a"].p_holm == pytest.approx(2 * found["a"].p)
    assert found["b"].p_holm == 1.0
    assert found["a"].retention_above_chance == pytest.approx(100 * (0.6 - 0.25) / 0.75)
    assert found["b"].retention_above_chance is None, "no chance level was given"


def test_of_a_base_at_chance_nothing_is_retained():
    found = compared([(1, 0), (0, 1), (1, 1), (0, 0)], chance=0.5)
    assert found.base_at_chance
    assert found.retention_above_chance is None
    assert found.retention == 100
    barely = compared([(1, 1)] * 26 + [(0, 0)] * 74, chance=0.25)
    assert barely.base_at_chance, "one point above chance with a standard error of four"
    above = compared([(1, 1)] * 40 + [(0, 1)] * 40 + [(0, 0)] * 20, chance=0.25)
    assert not above.base_at_chance
    assert above.retention_above_chance == pytest.approx(100 * 0.15 / 0.55)


def test_a_share_of_nothing_is_not_computed():
    assert compared([(1, 0), (0, 0)], chance=0.0).retention is None
    assert compared([(-1.5, -2.0), (-3.0, -1.0)]).retention is None, "log-likelihoods"
    assert compared([(1, 1), (0, 1)]).retention == 50


def test_documents_are_paired_by_id_in_any_order():
    ours, base = named(("a", "b", "c"), (1.0, 0.0, 1.0)), named(("c", "a", "b"), (1.0, 1.0, 0.0))
    found = compare("task", ours, base)
    assert (found.difference, found.p) == (0, 1)
    lost = compare("task", named(tuple("abcd"), (1, 0, 1, 1)), named(tuple("dabc"), (0, 1, 0, 1)))
    assert lost.stderr == pytest.approx(0.25), "by place .48"


def test_other_documents_and_tasks_are_refused():
    ours, theirs = named("ab", (1, 0)), named("ac", (1, 0))
    with pytest.raises(DataError, match=r"1 \(b\) only of the model, 1 \(c\) only of the"):
        compare("task", ours, theirs)
    with pytest.raises(DataError, match=r"1 \(a\) only of the model"):
        compare_tasks({"a": ours, "b": ours}, {"b": ours})


def test_one_document_says_nothing():
    one, few = named("a", (1,)), named(("a/1", "a/2", "b/1"), (1, 0, 1), macro=True)
    for pair in (compare("t", one, named("a", (0,))), compare("t", few, few)):
        assert (pair.p, pair.interval, pair.stderr) == (None, None, None)
