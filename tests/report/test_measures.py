"""Measures of evaluations, and differences between them: paired by what was asked alike, and by chance called so."""

from __future__ import annotations

import math
import random
import statistics
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from shortstack.report.findings import Result, averaged
from shortstack.report.measures import Measure, difference, measures, places, seeds_mean
from shortstack.runs.records import StepRecord
from stores import perplexity, probe, task

DOCUMENTS, SEEDS, ROUNDS = 200, 3, 100


def step(result, key="key"):
    return StepRecord(key, "evaluate", "done", result=result)


def between(ours, theirs):
    """The difference of the one thing that both measured."""
    ((one,), (other,)) = (measures(step(result, key)).values() for result, key in ((ours, "a"), (theirs, "b")))
    return difference(one, other)


def test_documents_are_paired_by_name_not_by_place():
    names, values = [f"d{n}" for n in range(50)], [float(n % 3 == 0) for n in range(50)]
    shuffled = random.Random(0).sample(range(50), 50)
    ours = Measure("share", 0.3, 0.1, ("a",), outcomes=dict(zip(names, values, strict=True)))
    theirs = Measure("share", 0.3, 0.1, ("b",), outcomes={names[n]: values[n] for n in shuffled})
    found = difference(ours, theirs)
    assert (found.value, found.p) == (0, 1)
    lost = replace(theirs, outcomes={**(theirs.outcomes or {}), "d0": 0.0})
    assert difference(ours, lost).stderr == pytest.approx(0.02), "of one document that differs"


@pytest.mark.parametrize("items", [2, 3, 5])
def test_a_few_items_of_a_probe_that_are_all_lost_are_chance_still(items):
    """By standard errors alone they were worse beyond chance: that of all right was 0."""
    found = between({"probes": {"p": probe([0.0] * items)}}, {"probes": {"p": probe([1.0] * items)}})
    assert found.how == "McNemar's exact test"
    assert found.p == pytest.approx(2 / 2**items)
    assert not found.significant
    assert found.stderr


def windows(losses, digest="same"):
    known = perplexity(statistics.fmean(losses), statistics.stdev(losses) / math.sqrt(len(losses)))
    return {"perplexity": {"t": known | {"window_losses": losses, "windows": {"sha256": digest}}}}


def test_a_perplexity_is_compared_on_the_same_windows():
    rng = random.Random(0)
    base = [rng.gauss(3, 1) for _ in range(12)]
    cut = [loss + rng.gauss(0.1, 0.05) for loss in base]
    found = between(windows(cut), windows(base))
    assert found.value == pytest.approx(statistics.fmean(base) - statistics.fmean(cut))
    assert found.p == pytest.approx(stats.ttest_rel(base, cut).pvalue)
    assert found.how == "differences on the same documents"
    apart = between(windows(cut, "x"), windows(base, "y"))
    assert apart.how == "standard errors alone", "of other windows"


@pytest.mark.parametrize(("gap", "p"), [(0.0, 1.0), (0.4, 2 / 2**3)])
def test_differences_that_are_all_the_same_are_judged_by_their_signs(gap, p):
    base = [2.5, 3.0, 3.5]
    assert between(windows([loss - gap for loss in base]), windows(base)).p == pytest.approx(p)


def test_without_outcomes_standard_errors_decide_and_that_is_said():
    ours, theirs = (Measure("share", value, 0.03, (name,)) for value, name in ((0.5, "a"), (0.6, "b")))
    found = difference(ours, theirs)
    assert found.how == "standard errors alone"
    assert found.stderr == pytest.approx(0.03 * math.sqrt(2))
    assert found.p == pytest.approx(2 * stats.norm.cdf(-0.1 / (0.03 * math.sqrt(2))))


def test_a_perplexity_is_compared_by_its_loss_and_an_infinite_one_is_the_worst():
    two, three = (
        Measure("perplexity", math.exp(loss), None, (name,), higher=False, loss=loss, loss_stderr=0.1)
        for loss, name in ((2.0, "a"), (3.0, "b"))
    )
    infinite = Measure("perplexity", math.inf, higher=False, loss=800.0)
    assert difference(two, three).value == pytest.approx(1.0)
    assert places([two.better, three.better, infinite.better]) == [1, 2, 0]


def test_standard_errors_of_0_alone_say_nothing():
    """Any difference would be beyond chance beside them: of equal shifts of few documents, or of no documents."""
    ours, theirs = (Measure("share", value, 0.0, (name,)) for value, name in ((0.8, "a"), (1.0, "b")))
    assert difference(ours, theirs).p is None
    ours = graded("a", 0.05, 0.05), graded("x", *[1.0] * 51, *[0.0] * 49)
    theirs = graded("b", 0.95, 0.95), graded("y", *[1.0] * 50, *[0.0] * 50)
    averages = [
        Measure("share", sum(part.value for part in parts) / 2, steps=parts[0].steps, parts=parts)
        for parts in (ours, theirs)
    ]
    assert difference(*averages).p is None


def graded(name, *values):
    outcomes = {f"d{place}": value for place, value in enumerate(values)}
    stderr = float(np.std(values, ddof=1) / math.sqrt(len(values)))
    return Measure("share", float(np.mean(values)), stderr, (name,), outcomes=outcomes)


@pytest.mark.parametrize(
    ("metric", "higher", "kind"),
    [
        ("acc", True, "share"),
        ("exact_match", True, "share"),
        ("bits_per_byte", False, "number"),
        ("mcc", True, "number"),
    ],
)
def test_kind_and_direction_come_from_the_metric_and_not_from_the_value(metric, higher, kind):
    known = task([0.4], metric) | {"higher_is_better": higher}
    measure = measures(step({"tasks": {"t": known}}))["task:t"]
    assert (measure.kind, measure.higher) == (kind, higher)


def test_what_is_compared_in_another_unit_than_the_value_says_its_unit():
    ours, theirs = ({"tasks": {"pages": task(losses, "word_perplexity")}} for losses in ((-3.0, -3.5), (-3.4, -3.7)))
    found = between(ours, theirs)
    assert (found.value, found.unit) == (pytest.approx(0.3), "nats per word")
    assert found.text.endswith(" nats per word")
    assert between({"tasks": {"pages": task([-3.0], "word_perplexity")}}, theirs).unit == "", "unpaired, of the values"


def group(few, many):
    """Two tasks that count alike."""
    names = [*(f"few/{n}" for n in range(len(few))), *(f"many/{n}" for n in range(len(many)))]
    value = (statistics.fmean(few) + statistics.fmean(many)) / 2
    return {"tasks": {"group": task([*few, *many]) | {"documents": names, "macro": True, "value": value}}}


def test_of_a_group_whose_tasks_count_alike_their_errors_add_up():
    few, many = ([1.0, 0.0, 0.0, 0.0, 1.0], [1.0] * 5), ([1.0] * 30 + [0.0] * 10, [1.0] * 40)
    ours, theirs = group(few[0], many[0]), group(few[1], many[1])
    spread = [statistics.stdev([one - 1 for one in ours]) for ours in (few[0], many[0])]
    found = between(ours, theirs)
    assert found.value == pytest.approx((-0.6 - 0.25) / 2)
    assert found.stderr == pytest.approx(math.hypot(spread[0] / math.sqrt(5), spread[1] / math.sqrt(40)) / 2)
    welch = stats.ttest_ind([one - 1 for one in few[0]], [1 - one for one in many[0]], equal_var=False)
    assert found.p == pytest.approx(welch.pvalue)


def test_seeds_of_such_a_group_are_averaged_task_by_task():
    seeds = [[1.0, 0.0, 0.0, 0.0], [1.0, 1.0, 0.0, 0.0]]
    read = [measures(step(group(few, [1.0, 0.0] * 9), f"k{n}"))["task:group"] for n, few in enumerate(seeds)]
    few, many = seeds_mean(read).parts
    assert (few.value, many.value) == (pytest.approx(3 / 8), 0.5)
    assert few.outcomes == {"few/0": 1.0, "few/1": 0.5, "few/2": 0.0, "few/3": 0.0}


# Seeds


def of_seeds(name, values, stderr):
    """A measure of several seeds, whose outcomes were not kept."""
    return seeds_mean([Measure("share", value, stderr, (f"{name}{seed}",)) for seed, value in enumerate(values)])


def test_p_is_that_of_welch_where_documents_are_no_chance():
    ours, theirs = [0.5, 0.52, 0.47], [0.41, 0.46]
    found = difference(of_seeds("a", ours, 0.0), of_seeds("b", theirs, 0.0))
    assert found.p == pytest.approx(stats.ttest_ind(ours, theirs, equal_var=False).pvalue)
    assert found.how == "standard errors alone, with the spread of seeds"


def test_a_seed_is_the_same_in_all_tasks_of_an_average():
    """Its effect does not grow less by being measured in several tasks."""
    values = [0.4, 0.5, 0.6]
    tasks = {f"task:{name}": of_seeds(name, values, 0.01) for name in "xyz"}
    average = averaged(Result({"model": "m"}, (), "evaluate_pruned", tasks), list(tasks)).measures["average"]
    assert average.by_seed == pytest.approx(values)
    assert average.stderr == pytest.approx(math.sqrt(3 * 0.01**2 / 9 + 0.01 / 3))


def measured(rng, ease, spread, name):
    """A setting of several seeds: each has an effect of its own on the chance to get a document right."""
    made = []
    for seed in range(SEEDS):
        chance = np.clip(ease + spread * rng.standard_normal(), 0, 1)
        made.append(graded(f"{name}{seed}", *(rng.random(DOCUMENTS) < chance).astype(float).tolist()))
    return seeds_mean(made)


@pytest.mark.parametrize("spread", [0.0, 0.2])
def test_without_a_true_difference_one_in_twenty_is_called_one(spread):
    """The settings are alike but for their seeds. It was 38 of 100 where the documents alone were taken for chance."""
    rng = np.random.default_rng(0)
    called = 0
    for _ in range(ROUNDS):
        ease = rng.uniform(0.3, 0.7, DOCUMENTS)
        called += difference(measured(rng, ease, spread, "a"), measured(rng, ease, spread, "b")).significant
    assert called / ROUNDS <= 0.05 + 2 * math.sqrt(0.05 * 0.95 / ROUNDS)


def test_a_true_difference_is_still_seen() -> None:
    rng, seen = np.random.default_rng(0), 0
    for _ in range(40):
        ease = rng.uniform(0.3, 0.6, DOCUMENTS)
        seen += difference(measured(rng, ease + 0.2, 0.01, "a"), measured(rng, ease, 0.01, "b")).significant
    assert seen >= 38
