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
    values = {name: result["value"] for name, result in known["tasks"].items()}
    average = (values["piqa"] + values["group"]) / 2
    return {"average": average, **values, "one": math.exp(known["perplexity"]["one"]["loss"])}


def test_shares_are_in_percent_and_other_numbers_as_they_are_in_every_form(report: Report) -> None:
    kinds = dict.fromkeys(("average", "piqa", "group"), "share") | dict.fromkeys(("cola", "pile"), "number")
    kinds["one"] = "perplexity"
    page, markdown = html.unescape(report.html()), report.markdown()
    table = next(table for table in report.tables if table.key == "metrics")
    lines = list(csv.DictReader(io.StringIO(report.csv()["metrics.csv"])))
    for label in MEASURED:
        section = markdown.split(f"## {table.title}\n")[1]
        line = next(line for line in section.splitlines() if re.match(rf"\| \*?{label}\*? \|", line))
        row = next(row for row in table.rows if row.label == label)
        in_full = next(line for line in lines if label in line.values())
        for column, cell in zip(table.columns, row.cells, strict=True):
            if column.label in kinds:
                value = expected(label)[column.label]
                text = shown(value, kinds[column.label])
                assert cell.text == text
                assert text in line
                assert f">{text}" in page
                assert float(in_full[column.label]) == pytest.approx(value)
    assert "140.0" not in markdown, "bits per byte of 1.4 are no percentage"


def test_marks_are_those_of_exact_tests_and_of_the_metric_s_direction(report: Report) -> None:
    table = next(table for table in report.tables if table.key == "metrics")
    labels = [column.label for column in table.columns]
    cells = {row.label: dict(zip(labels, row.cells, strict=True)) for row in table.rows}
    assert [cells[label]["pile"].judgement.place for label in ("bi", "ppl")] == [1, 0], "less is better"
    assert [cells[label]["cola"].judgement.place for label in ("bi", "ppl")] == [1, 0]
    for name in ("cola", "pile", "one"):  # no standard error: nothing is said
        assert all(row[name].marks == row[name].error == "" for row in cells.values())
    assert cells["ppl"]["piqa"].marks.startswith("↓")
    assert cells["bi"]["piqa"].marks == ""
    few = cells["ppl"]["group"].judgement.base
    assert few
    assert few.value == pytest.approx(-0.5), "of the mean that is shown"
