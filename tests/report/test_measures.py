"""Measures of evaluations, and differences between them: paired where the same was asked."""

import math
import random
import statistics

import numpy as np
import pytest
from scipy import stats

from shortstack.errors import DataError
from shortstack.evaluation.paired import Estimate, Sample, average, difference, mean_of, over_seeds
from shortstack.report.measures import Change, measures, places
from shortstack.runs.records import StepRecord
from stores import perplexity, task

DOCUMENTS, SEEDS, ROUNDS = 200, 3, 100


def read(result, key="key"):
    """The one measure of an evaluation."""
    (measure,) = measures(StepRecord(key, "evaluate", "done", result=result)).values()
    return measure


def between(ours, theirs):
    return Change.of(read(ours, "a"), read(theirs, "b"))


def windows(losses, digest="same"):
    known = perplexity(statistics.fmean(losses), statistics.stdev(losses) / math.sqrt(len(losses)))
    return {"perplexity": {"t": known | {"window_losses": losses, "windows": {"sha256": digest}}}}


def test_perplexity_is_compared_on_the_same_windows():
    rng = random.Random(0)
    base = [rng.gauss(3, 1) for _ in range(12)]
    cut = [loss + rng.gauss(0.1, 0.05) for loss in base]
    found, expected = between(windows(cut), windows(base)), stats.ttest_rel(base, cut)
    assert found.difference.value == pytest.approx(statistics.fmean(base) - statistics.fmean(cut))
    assert (found.difference.test, found.difference.p) == (
        "differences on the same documents",
        pytest.approx(expected.pvalue),
    )
    assert found.value == pytest.approx(math.exp(statistics.fmean(cut) - statistics.fmean(base))), "shown as a factor"
    low, high = stats.ttest_rel(cut, base).confidence_interval(0.95)
    assert found.interval == pytest.approx((math.exp(low), math.exp(high)))
    assert between(windows(cut, "x"), windows(base, "y")).difference.test == "standard errors alone", "of other windows"


def test_without_outcomes_standard_errors_decide():
    found = difference(Sample(Estimate(0.5, 0.03)), Sample(Estimate(0.6, 0.03)))
    assert (found.test, found.stderr) == ("standard errors alone", pytest.approx(0.03 * math.sqrt(2)))
    assert found.p == pytest.approx(2 * stats.norm.cdf(-0.1 / (0.03 * math.sqrt(2))))
    assert difference(Sample(Estimate(0.8, 0.0)), Sample(Estimate(1.0, 0.0))).p is None, "0 says nothing"
    assert difference(Sample(Estimate(0.8)), Sample(Estimate(1.0, 0.1))).p is None


def test_averages_of_equal_shifts_say_nothing():
    ours = graded("a", 0.05, 0.05), graded("x", *[1.0] * 51, *[0.0] * 49)
    theirs = graded("b", 0.95, 0.95), graded("y", *[1.0] * 50, *[0.0] * 50)
    assert difference(average(ours), average(theirs)).p is None


def test_infinite_perplexity_is_the_worst():
    found = [read({"perplexity": {"t": perplexity(loss)}}).better for loss in (2.0, 3.0, 800.0)]
    assert (places(found), found[2]) == ([1, 2, 0], -math.inf)


@pytest.mark.parametrize(
    ("metric", "higher", "kind"),
    [
        ("acc", True, "share"),
        ("exact_match", True, "share"),
        ("bits_per_byte", False, "number"),
        ("mcc", True, "number"),
    ],
)
def test_kind_and_direction_come_from_the_metric(metric, higher, kind):
    measure = read({"tasks": {"t": task([0.4], metric) | {"higher_is_better": higher}}})
    assert (measure.kind, measure.higher) == (kind, higher)


def test_difference_in_another_unit_names_it():
    ours, theirs = ({"tasks": {"pages": task(losses, "word_perplexity")}} for losses in ((-3.0, -3.5), (-3.4, -3.7)))
    assert (between(ours, theirs).value, between(ours, theirs).unit) == (pytest.approx(0.3), "nats per word")
    single = {"tasks": {"pages": task([-3.0], "word_perplexity")}}
    assert between(single, theirs).unit == "", "unpaired, of the values"


def group(few, many):
    """Two tasks that count alike."""
    names = [*(f"few/{n}" for n in range(len(few))), *(f"many/{n}" for n in range(len(many)))]
    value = (statistics.fmean(few) + statistics.fmean(many)) / 2
    return {"tasks": {"group": task([*few, *many]) | {"documents": names, "macro": True, "value": value}}}


def test_seeds_of_a_group_are_averaged_task_by_task():
    seeds = [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]
    few, many = over_seeds([read(group(few, [1.0, 0.0] * 9), f"k{n}").sample for n, few in enumerate(seeds)]).parts
    assert (few.estimate.value, many.estimate.value) == (pytest.approx(3 / 8), 0.5)
    assert few.outcomes == {"few/0": 1.0, "few/1": 0.5, "few/2": 0.0, "few/3": 0.0}


def test_outcomes_that_are_not_of_the_documents_are_refused():
    with pytest.raises(DataError):
        read({"tasks": {"t": task([1.0, 0.0]) | {"documents": ["d1"]}}})


# Seeds


def of_seeds(name, values, stderr):
    return over_seeds([Sample(Estimate(value, stderr), sources=(f"{name}{n}",)) for n, value in enumerate(values)])


def test_p_is_welchs_where_documents_are_no_chance():
    ours, theirs = [0.5, 0.52, 0.47], [0.41, 0.46]
    found = difference(of_seeds("a", ours, 0.0), of_seeds("b", theirs, 0.0))
    assert found.p == pytest.approx(stats.ttest_ind(ours, theirs, equal_var=False).pvalue)
    assert found.test == "standard errors alone, with the spread of seeds"


def test_a_seed_is_the_same_in_all_tasks_of_an_average():
    """Its effect does not grow less by being measured in several tasks."""
    whole = average([of_seeds(name, [0.4, 0.5, 0.6], 0.01) for name in "xyz"])
    assert whole.seeds == pytest.approx([0.4, 0.5, 0.6])
    assert whole.estimate.stderr == pytest.approx(math.sqrt(3 * 0.01**2 / 9 + 0.01 / 3))


def graded(name, *values):
    return Sample.of(mean_of(np.array(values)), {f"d{n}": value for n, value in enumerate(values)}, sources=(name,))


def drawn(rng, ease, spread, name):
    """A setting of several seeds: each has an effect of its own on the chance to get a document right."""
    chances = [np.clip(ease + spread * rng.standard_normal(), 0, 1) for _ in range(SEEDS)]
    made = [graded(f"{name}{n}", *(rng.random(DOCUMENTS) < each).astype(float)) for n, each in enumerate(chances)]
    return over_seeds(made)


@pytest.mark.parametrize("spread", [0.0, 0.2])
def test_one_in_twenty_equal_settings_is_told_apart(spread):
    rng, told = np.random.default_rng(0), 0
    for _ in range(ROUNDS):
        ease = rng.uniform(0.3, 0.7, DOCUMENTS)
        told += difference(drawn(rng, ease, spread, "a"), drawn(rng, ease, spread, "b")).significant
    assert told / ROUNDS <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / ROUNDS)


def test_a_true_difference_is_seen():
    rng, seen = np.random.default_rng(0), 0
    for _ in range(40):
        ease = rng.uniform(0.3, 0.6, DOCUMENTS)
        seen += difference(drawn(rng, ease + 0.2, 0.01, "a"), drawn(rng, ease, 0.01, "b")).significant
    assert seen >= 38
