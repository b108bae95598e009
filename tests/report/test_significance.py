"""Differences by chance are called so: of documents, and of seeds."""

from __future__ import annotations

import math

import numpy as np
import pytest

from shortstack.report.findings import Result, averaged
from shortstack.report.measures import Measure, difference, seeds_mean

DOCUMENTS, SEEDS, ROUNDS = 200, 3, 100


def measured(rng: np.random.Generator, ease: np.ndarray, spread: float, name: str) -> Measure:
    """A setting of several seeds: each has an effect of its own on the chance to get a document right."""
    made = []
    for seed in range(SEEDS):
        chance = np.clip(ease + spread * rng.standard_normal(), 0, 1)
        right = (rng.random(DOCUMENTS) < chance).astype(float)
        outcomes = {f"d{place:03}": value for place, value in enumerate(right.tolist())}
        stderr = float(right.std(ddof=1) / math.sqrt(DOCUMENTS))
        made.append(Measure("share", float(right.mean()), stderr, (f"{name}{seed}",), outcomes=outcomes))
    return seeds_mean(made)


@pytest.mark.parametrize("spread", [0.0, 0.2])
def test_without_a_true_difference_one_in_twenty_is_called_one(spread: float) -> None:
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


def test_p_is_that_of_welch_where_documents_are_no_chance() -> None:
    from scipy.stats import ttest_ind

    ours, theirs = [0.5, 0.52, 0.47], [0.41, 0.46]
    a, b = (
        seeds_mean([Measure("share", value, 0.0, (f"{name}{seed}",)) for seed, value in enumerate(values)])
        for name, values in (("a", ours), ("b", theirs))
    )
    found = difference(a, b)
    assert found.p == pytest.approx(ttest_ind(ours, theirs, equal_var=False).pvalue)
    assert found.how == "standard errors alone, with the spread of seeds"


def test_a_seed_is_the_same_in_all_tasks_of_an_average() -> None:
    """Its effect does not grow less by being measured in several tasks."""
    values = [0.4, 0.5, 0.6]
    tasks = {
        f"task:{name}": seeds_mean(
            [Measure("share", value, 0.01, (f"{name}{seed}",)) for seed, value in enumerate(values)]
        )
        for name in "xyz"
    }
    result = averaged(Result({"model": "m"}, (), "evaluate_pruned", tasks), list(tasks))
    average = result.measures["average"]
    assert average.by_seed == pytest.approx(values)
    assert average.stderr == pytest.approx(math.sqrt(3 * 0.01**2 / 9 + 0.01 / 3))


def graded(name: str, *values: float) -> Measure:
    outcomes = {f"d{place}": value for place, value in enumerate(values)}
    stderr = float(np.std(values, ddof=1) / math.sqrt(len(values)))
    return Measure("share", float(np.mean(values)), stderr, (name,), outcomes=outcomes)


def test_equal_shifts_of_few_documents_are_not_called_certain() -> None:
    """Their standard error is 0, beside which any difference would be beyond chance."""
    ours = graded("a", 0.05, 0.05), graded("x", *[1.0] * 51, *[0.0] * 49)
    theirs = graded("b", 0.95, 0.95), graded("y", *[1.0] * 50, *[0.0] * 50)
    averages = [
        Measure("share", sum(part.value for part in parts) / 2, steps=parts[0].steps, parts=parts)
        for parts in (ours, theirs)
    ]
    assert difference(*averages).p is None
