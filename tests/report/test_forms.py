"""Every form of the report on results that are odd, against numbers that are computed here from what was stored."""

from __future__ import annotations

import csv
import html
import io
import math
import re
from pathlib import Path
from typing import Any

import pytest
from scipy import stats as scipy

from shortstack.machine.formats import shown
from shortstack.report import Report
from stores import Store, perplexity, plan, probe, settings, task

GROUP = [*(f"few/{n}" for n in range(4)), *(f"many/{n}" for n in range(36))]


def whole(metric: str, value: float, *, higher: bool) -> dict[str, Any]:
    """A metric of all documents together, which has no standard error."""
    known = task([0.0] * 40, metric) | {"value": value, "stderr": None, "higher_is_better": higher}
    return known | {"outcomes": [None] * 40}


def group(few: int, many: int) -> dict[str, Any]:
    """A group whose tasks count the same: so many right of four, and of thirty-six."""
    outcomes = [1.0] * few + [0.0] * (4 - few) + [1.0] * many + [0.0] * (36 - many)
    return task(outcomes) | {"documents": GROUP, "macro": True, "value": (few / 4 + many / 36) / 2}


def measured(right: int, bits: float, mcc: float, few: int, loss: float) -> dict[str, Any]:
    """right: of forty; loss: of the one window."""
    return {
        "tasks": {
            "piqa": task([1.0] * right + [0.0] * (40 - right)),
            "cola": whole("mcc", mcc, higher=True),
            "pile": whole("bits_per_byte", bits, higher=False),
            "group": group(few, 36),
        },
        "perplexity": {"one": perplexity(loss, None) | {"windows": {"sha256": "a"}, "window_losses": [loss]}},
        "probes": {"copying": probe([1.0] * (right // 2) + [0.0] * (20 - right // 2)), "json": probe([0.0] * 20)},
    }


MEASURED = {
    "unpruned": measured(40, 0.7, 0.5, 4, 2.5),
    "bi": measured(38, 0.9, 0.6, 4, 9.0),
    "ppl": measured(20, 1.4, 0.0, 0, 14.0),
}


@pytest.fixture
def report(tmp_path: Path) -> Report:
    store = Store(tmp_path / "runs")
    for metric in ("bi", "ppl"):
        results = {"evaluate_base": MEASURED["unpruned"], "evaluate_pruned": MEASURED[metric]}
        store.measured(settings(metric=metric), plan=plan(metric, 8), **results)
    store.close()
    return Report.of(tmp_path / "runs")


def expected(label: str) -> dict[str, float]:
    """Return the columns of a row: the value of each task, the mean of the two that are shares, the perplexity."""
    known = MEASURED[label]
    values = {name: each["value"] for name, each in known["tasks"].items()}
    average = (values["piqa"] + values["group"]) / 2
    return {"average": average, **values, "one": math.exp(known["perplexity"]["one"]["loss"])}


def test_csv_has_the_numbers_in_full(report: Report) -> None:
    for label in MEASURED:
        line = next(each for each in rows_of(report, "metrics") if label in each.values())
        for name, value in expected(label).items():
            assert float(line[name]) == pytest.approx(value), (label, name)


def rows_of(report: Report, key: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(report.csv()[f"{key}.csv"])))


def test_shares_are_in_percent_and_other_numbers_as_they_are_in_every_form(report: Report) -> None:
    kinds = {
        "average": "share",
        "piqa": "share",
        "group": "share",
        "cola": "number",
        "pile": "number",
        "one": "perplexity",
    }
    page, markdown = html.unescape(report.html()), report.markdown()
    table = next(each for each in report.tables if each.key == "metrics")
    for label in MEASURED:
        section = markdown.split(f"## {table.title}\n")[1]
        line = next(each for each in section.splitlines() if re.match(rf"\| \*?{label}\*? \|", each))
        row = next(each for each in table.rows if each.label == label)
        for column, cell in zip(table.columns, row.cells, strict=True):
            if column.label in kinds:
                text = shown(expected(label)[column.label], kinds[column.label])
                assert cell.text == text
                assert text in line
                assert f">{text}" in page
    assert "140.0" not in markdown, "bits per byte of 1.4 are no percentage"


def test_marks_are_those_of_exact_tests_and_of_the_metric_s_direction(report: Report) -> None:
    table = next(each for each in report.tables if each.key == "metrics")
    cells = {
        row.label: {column.label: cell for column, cell in zip(table.columns, row.cells, strict=True)}
        for row in table.rows
    }
    assert [cells[label]["pile"].judgement.place for label in ("bi", "ppl")] == [1, 0], "less is better"
    assert [cells[label]["cola"].judgement.place for label in ("bi", "ppl")] == [1, 0]
    for name in ("cola", "pile", "one"):  # no standard error: nothing is said
        assert all(cells[label][name].marks == "" for label in ("bi", "ppl"))
        assert all(cells[label][name].error == "" for label in cells)
    assert cells["ppl"]["piqa"].marks.startswith("↓")
    assert cells["bi"]["piqa"].marks == ""
    piqa, lost = cells["bi"]["piqa"].judgement.base, scipy.binomtest(0, 2).pvalue
    assert piqa
    assert piqa.p is not None
    assert piqa.p >= lost
    few = cells["ppl"]["group"].judgement.base
    assert few
    assert few.value == pytest.approx(-0.5), "of the mean that is shown"
