"""Evaluations as the report reads them: kinds and directions of measures, and pairs of what was asked alike."""

from __future__ import annotations

import math
import random
import statistics
from pathlib import Path
from typing import Any

import pytest
from scipy import stats as scipy

from shortstack.report import Report
from shortstack.report.measures import Difference, Measure, difference, measures
from shortstack.runs.records import StepRecord
from stores import Store, perplexity, plan, probe, settings, task


def step(result: dict[str, Any], key: str = "key") -> StepRecord:
    return StepRecord(key, "evaluate", "done", result=result)


def between(ours: dict[str, Any], theirs: dict[str, Any]) -> Difference:
    """The difference of the one thing that both measured."""
    ((one,), (other,)) = (measures(step(result, key)).values() for result, key in ((ours, "a"), (theirs, "b")))
    return difference(one, other)


# Probes are paired item by item


def test_a_probe_that_loses_four_of_twenty_items_is_judged_by_mcnemar(tmp_path: Path) -> None:
    """By standard errors alone it was worse beyond chance: that of 20 of 20 was 0."""
    base = {"probes": {name: probe([1.0] * 20) for name in ("copying", "json")}}
    cut = {"probes": {"copying": probe([1.0] * 16 + [0.0] * 4), "json": probe([1.0] * 20)}}
    store = Store(tmp_path / "runs")
    store.measured(settings(), evaluate_base=base, plan=plan("bi", 8), evaluate_pruned=cut)
    store.close()
    table = next(table for table in Report.of(tmp_path / "runs").tables if table.key == "probes")
    (copying, json) = (cell.judgement.base for cell in table.rows[1].cells[1:])
    assert copying
    assert copying.how == "McNemar's exact test"
    assert copying.p == pytest.approx(2 * scipy.binomtest(0, 4).pvalue), "Holm, of two probes"
    assert table.rows[1].cells[1].marks == ""
    assert json
    assert json.p == 1


@pytest.mark.parametrize("items", [2, 3, 5])
def test_a_few_items_that_are_all_lost_are_chance_still(items: int) -> None:
    found = between({"probes": {"p": probe([0.0] * items)}}, {"probes": {"p": probe([1.0] * items)}})
    assert found.p == pytest.approx(2 / 2**items)
    assert not found.significant
    assert found.stderr


# Texts are paired window by window


def test_a_perplexity_is_compared_on_the_same_windows() -> None:
    rng = random.Random(0)
    base = [rng.gauss(3, 1) for _ in range(12)]
    cut = [loss + rng.gauss(0.1, 0.05) for loss in base]
    found = between({"perplexity": {"t": windows(cut)}}, {"perplexity": {"t": windows(base)}})
    expected = scipy.ttest_rel(base, cut)
    assert found.value == pytest.approx(statistics.fmean(base) - statistics.fmean(cut))
    assert found.p == pytest.approx(expected.pvalue)
    assert found.how == "differences on the same documents"
    apart = between({"perplexity": {"t": windows(cut, "x")}}, {"perplexity": {"t": windows(base, "y")}})
    assert apart.how == "standard errors alone", "of other windows"


def windows(losses: list[float], digest: str = "same") -> dict[str, Any]:
    stderr = statistics.stdev(losses) / math.sqrt(len(losses)) if len(losses) > 1 else None
    known = perplexity(statistics.fmean(losses), stderr)
    return known | {"window_losses": losses, "windows": {"sha256": digest}}


def test_of_one_window_nothing_is_known() -> None:
    found = between({"perplexity": {"t": windows([9.0])}}, {"perplexity": {"t": windows([2.5])}})
    assert (found.p, found.how) == (None, "no standard errors")


@pytest.mark.parametrize(("gap", "p"), [(0.0, 1.0), (0.4, 2 / 2**3)])
def test_differences_that_are_all_the_same_are_judged_by_their_signs(gap: float, p: float) -> None:
    base = [2.5, 3.0, 3.5]
    ours = {"perplexity": {"t": windows([loss - gap for loss in base])}}
    assert between(ours, {"perplexity": {"t": windows(base)}}).p == pytest.approx(p)


def test_a_standard_error_of_0_alone_says_nothing() -> None:
    ours, theirs = (Measure("share", value, 0.0, (name,)) for value, name in ((0.8, "a"), (1.0, "b")))
    assert difference(ours, theirs).p is None


# Kinds and directions


@pytest.mark.parametrize(
    ("metric", "higher", "kind"),
    [
        ("acc", True, "share"),
        ("exact_match", True, "share"),
        ("bits_per_byte", False, "number"),
        ("mcc", True, "number"),
    ],
)
def test_kind_and_direction_come_from_the_metric_and_not_from_the_value(metric: str, higher: bool, kind: str) -> None:
    known = task([0.4], metric) | {"higher_is_better": higher}
    measure = measures(step({"tasks": {"t": known}}))["task:t"]
    assert (measure.kind, measure.higher) == (kind, higher)
