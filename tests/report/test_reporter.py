"""The report's rows against numbers worked out by hand, its words against its rows, and its page against hostile names."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import random
import re
import sqlite3
import statistics
import sys
from pathlib import Path
from typing import Any

import pytest

import stores
from shortstack import cli
from shortstack.errors import DataError, InputError, OutputError
from shortstack.machine.tables import Table
from shortstack.report import Report, write_report
from shortstack.report.figures import figures
from shortstack.report.findings import Findings
from shortstack.report.labels import factors
from shortstack.report.measures import Measure, difference, places
from shortstack.report.tables import JudgedCell, ResultRow
from shortstack.runs.records import read
from stores import Store, evaluation, healed, perplexity, plan, profile, settings, task

BASE = [1.0] * 30 + [0.0] * 10  # 75 %
CUT = [1.0] * 12 + [0.0] * 28  # 30 %: 18 answers lost, none gained
HEALED = [1.0] * 24 + [0.0] * 16  # 60 %: 6 lost, none gained


def evaluated(outcomes: list[float], *, other: float = 0.5, loss: float = 2.0) -> dict[str, Any]:
    second = [1.0] * round(40 * other) + [0.0] * (40 - round(40 * other))
    return {"tasks": {"piqa": task(outcomes), "arc": task(second)}, "perplexity": {"text": perplexity(loss, 0.1)}}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "runs")


def made(store: Store, folder: Path) -> Report:
    store.close()
    return Report.of(folder / "runs")


def two_metrics(store: Store) -> None:
    """The tail and another metric at the same drop, beside the unpruned model."""
    for metric, outcomes, other, loss in (("reverse", CUT, 0.25, 3.0), ("bi", HEALED, 0.5, 2.1)):
        cut = evaluated(outcomes, other=other, loss=loss)
        known = settings(metric=metric)
        store.measured(known, evaluate_base=evaluated(BASE), plan=plan(metric, 8), evaluate_pruned=cut)


def table(report: Report, key: str) -> Table:
    return next(table for table in report.tables if table.key == key)


def cell(found: Table, label: str, heading: str) -> JudgedCell:
    row: ResultRow = next(row for row in found.rows if row.label == label)
    return row.cells[[column.label for column in found.columns].index(heading)]


# Rows by hand


def test_rows_are_the_evaluations_and_their_average_with_its_standard_error(store: Store, tmp_path: Path) -> None:
    two_metrics(store)
    found = table(made(store, tmp_path), "metrics")
    assert [each.label for each in found.rows] == ["unpruned", "reverse", "bi"]
    compared = ["change", "95% interval", "p, Holm"]
    head = ["metric", "average", *compared, "piqa", "arc", "text", "layers removed"]
    assert [each.label for each in found.columns] == head
    average = cell(found, "reverse", "average")
    errors = [statistics.stdev(CUT) / math.sqrt(40), statistics.stdev([1.0] * 10 + [0.0] * 30) / math.sqrt(40)]
    assert average.value == pytest.approx((0.30 + 0.25) / 2)
    assert average.stderr == pytest.approx(math.hypot(*errors) / 2)
    assert (average.text, average.error) == ("27.5", f"{100 * math.hypot(*errors) / 2:.1f}")
    assert cell(found, "bi", "text").value == pytest.approx(math.exp(2.1))
    assert cell(found, "bi", "text").stderr == pytest.approx(math.exp(2.1) * 0.1)
    assert cell(found, "reverse", "layers removed").value == "22-29"


def test_best_second_and_marks_follow_from_paired_tests(store: Store, tmp_path: Path) -> None:
    two_metrics(store)
    found = table(made(store, tmp_path), "metrics")
    lost = cell(found, "reverse", "piqa")
    assert cell(found, "bi", "piqa").judgement.place == 1
    assert lost.judgement.place == 0, "of two rows none is called second"
    # 18 answers lost and none gained: McNemar's exact p is 2 / 2^18. Of the block's 8 comparisons with the unpruned model
    # two are surer, the average and the perplexity of the same row, so that Holm multiplies it by 6.
    assert lost.judgement.base
    assert lost.judgement.base.p == pytest.approx(6 * 2 / 2**18)
    assert lost.marks == "↓"
    assert lost.judgement.base.how == "McNemar's exact test"
    assert lost.judgement.base.value == pytest.approx(-18 / 40)
    same = cell(found, "bi", "arc")
    assert same.judgement.base
    assert same.judgement.base.p == 1
    assert "↓" not in same.marks


def test_without_outcomes_standard_errors_decide_and_that_is_said() -> None:
    ours, theirs = (Measure("share", v, 0.03, (name,)) for v, name in ((0.5, "a"), (0.6, "b")))
    found = difference(ours, theirs)
    assert found.how == "standard errors alone"
    assert found.stderr == pytest.approx(0.03 * math.sqrt(2))
    assert found.p == pytest.approx(2 * (1 - statistics.NormalDist().cdf(0.1 / (0.03 * math.sqrt(2)))))


def test_a_perplexity_is_compared_by_its_loss_and_an_infinite_one_is_the_worst() -> None:
    two, three = (
        Measure("perplexity", math.exp(v), None, (name,), higher=False, loss=v, loss_stderr=0.1)
        for v, name in ((2.0, "a"), (3.0, "b"))
    )
    infinite = Measure("perplexity", math.inf, higher=False, loss=800.0)
    assert difference(two, three).value == pytest.approx(1.0)
    assert places([two.better, three.better, infinite.better]) == [1, 2, 0]


def test_documents_are_paired_by_name_not_by_place() -> None:
    names, values = [f"d{n}" for n in range(50)], [float(n % 3 == 0) for n in range(50)]
    shuffled = random.Random(0).sample(range(50), 50)
    ours = Measure("share", 0.3, 0.1, ("a",), outcomes=dict(zip(names, values, strict=True)))
    theirs = Measure("share", 0.3, 0.1, ("b",), outcomes={names[n]: values[n] for n in shuffled})
    found = difference(ours, theirs)
    assert (found.value, found.p) == (0, 1)


def test_seeds_of_a_setting_are_one_row_with_both_variances(store: Store, tmp_path: Path) -> None:
    for seed, outcomes in ((0, CUT), (1, HEALED)):
        store.measured(settings(seed=seed), evaluate_pruned={"tasks": {"piqa": task(outcomes)}})
    (found,) = findings(store, tmp_path).results
    measure = found.measures["task:piqa"]
    documents = [statistics.variance(each) / 40 for each in (CUT, HEALED)]
    assert measure.value == pytest.approx((0.3 + 0.6) / 2)
    assert measure.stderr == pytest.approx(math.sqrt(statistics.mean(documents) + statistics.variance([0.3, 0.6]) / 2))
    assert len(measure.steps) == 2
    assert measure.outcomes
    assert measure.outcomes["d15"] == 0.5  # right in one seed, wrong in the other


def findings(store: Store, folder: Path) -> Findings:
    return made(store, folder).findings


def test_an_average_is_missing_where_a_task_is(store: Store, tmp_path: Path) -> None:
    store.measured(settings(metric="bi"), evaluate_pruned=evaluated(CUT))
    store.measured(settings(metric="reverse"), evaluate_pruned={"tasks": {"piqa": task(CUT)}})
    found = table(made(store, tmp_path), "metrics")
    assert cell(found, "bi", "average").value == pytest.approx(0.4)
    assert cell(found, "reverse", "average").text == "–"  # noqa: RUF001
    assert cell(found, "reverse", "arc").text == "–"  # noqa: RUF001


def test_infinite_and_absent_numbers_are_told_apart(store: Store, tmp_path: Path) -> None:
    for drop, loss, value in (("25%", 800.0, None), ("50%", None, None), ("60%", math.nan, math.nan)):
        data = {"perplexity": {"text": {"value": value, "loss": loss, "loss_stderr": None, "tokens": 10}}}
        store.measured(settings(drop=drop), plan=plan("bi", 3), evaluate_pruned=data)
    report = made(store, tmp_path)
    assert [each.cells[1].text for each in table(report, "settings").rows] == ["∞", "NaN", "NaN"]
    assert report.html().count('data-v="inf"') == 1


def test_healing_stands_beside_what_it_healed(store: Store, tmp_path: Path) -> None:
    for method, outcomes in (("partial", HEALED), ("lora", CUT)):
        store.measured(
            settings(heal=stores.HEALS[method]),
            seconds={"heal": 100},
            evaluate_base=evaluated(BASE),
            evaluate_pruned=evaluated(CUT),
            heal=healed(method, 2.0),
            evaluate_healed=evaluated(outcomes),
        )
    found = table(made(store, tmp_path), "healing")
    assert [each.label for each in found.rows] == ["unpruned", "pruned, not healed", "last 3", "lora"]
    assert cell(found, "last 3", "trained").value == 38_938_176
    assert cell(found, "lora", "time").value == 100


def test_what_is_not_calibrated_stands_in_each_calibrations_block(store: Store, tmp_path: Path) -> None:
    read_on = [{"text": "pydoc", "samples": samples, "length": 128, "seed": None} for samples in (5, 50)]
    for metric, text in [("bi", each) for each in read_on] + [("ppl", each) for each in read_on] + [("random", None)]:
        store.measured(settings(metric=metric, calibration=text), evaluate_pruned=evaluated(CUT))
    blocks = table(made(store, tmp_path), "metrics").blocks
    assert [sorted(each.label for each in block.rows) for block in blocks] == [["bi", "ppl", "random"]] * 2
    assert len({block.title for block in blocks}) == 2


@pytest.mark.parametrize("state", ["running", "failed"])
def test_a_trial_that_has_not_healed_shows_no_figures_of_the_cut_as_healed(
    store: Store, tmp_path: Path, state: str
) -> None:
    shared = {"evaluate_base": evaluated(BASE), "evaluate_pruned": evaluated(CUT)}
    store.measured(settings(), **shared)
    store.measured(settings(heal=stores.HEALS["partial"]), **shared, evaluate_healed=evaluated(HEALED))
    store.measured(settings(heal=stores.HEALS["lora"]), **shared, state=state)
    found = findings(store, tmp_path).results
    assert [each.role for each in found] == ["evaluate_pruned", "evaluate_healed"]
    assert [each.measures["task:piqa"].value for each in found] == [0.3, 0.6]


def test_a_collapse_is_said_beside_the_probes(store: Store, tmp_path: Path) -> None:
    base = evaluation(1.0) | {"collapse": None}
    for drop, quality in (("25%", 0.8), ("50%", 0.3)):
        store.measured(settings(drop=drop), evaluate_base=base, evaluate_pruned=evaluation(quality))
    found = table(made(store, tmp_path), "probes")
    assert [each.cells[-1].value for each in found.rows] == [None, "not collapsed", "collapsed: different tokens"]
    assert found.rows[1].cells[1].value == pytest.approx(0.8**3)


def test_sizes_have_a_row_for_each_number_of_layers(store: Store, tmp_path: Path) -> None:
    profiles = {"profile": profile(22), "profile_base": profile(30)}
    for metric in ("reverse", "bi"):
        store.measured(settings(metric=metric), plan=plan(metric, 8), evaluate_pruned=evaluated(CUT), **profiles)
    found = table(made(store, tmp_path), "sizes")
    assert [each.label for each in found.rows] == ["unpruned", "8"]
    assert [cell(found, size, "weights").value for size in ("8", "unpruned")] == [
        profile(layers)["weight_bytes"] for layers in (22, 30)
    ]


# Words


def test_healings_are_called_by_their_names_where_those_tell_them_apart() -> None:
    first, second = ({"name": "a", "method": "lora", "learning_rate": lr, "data": "alpaca"} for lr in (1e-4, 1e-5))
    assert [each["heal"] for each in factors([settings(heal=first), settings(heal=second)])] == [
        "lora (learning rate 0.0001)",
        "lora (learning rate 1e-05)",
    ]
    other = {**first, "name": "b", "data": "dolly"}
    found = factors([settings(heal=first), settings(heal=other)])
    assert [(each["heal"], each["data"]) for each in found] == [("lora", "alpaca"), ("lora", "dolly")]


# Stores that are odd


@pytest.mark.parametrize("trials", [1, 20])
def test_one_trial_and_many(tmp_path: Path, trials: int) -> None:
    report = Report.of(stores.write(tmp_path, trials=trials, documents=20, nasty=False))
    assert sum(len(each.trials) for each in report.findings.results) == trials
    assert len(re.findall(r'class="entry" id="t\d+"', report.html())) == trials


def test_an_empty_store_says_so(store: Store, tmp_path: Path) -> None:
    report = made(store, tmp_path)
    assert "no trial yet" in report.html()
    assert report.tables == []


def test_a_store_that_is_being_written_is_read_and_left_alone(store: Store, tmp_path: Path) -> None:
    two_metrics(store)
    store.rows.commit()
    store.trial(settings(drop="50%"), {}, state="running")  # in a transaction that is open
    found = read(tmp_path / "runs")
    assert len(found.trials) == 2
    store.close()
    assert len(read(tmp_path / "runs").trials) == 3


def test_outcomes_that_are_not_of_the_documents_are_refused(store: Store, tmp_path: Path) -> None:
    short = task(CUT) | {"documents": ["d1"]}
    store.measured(settings(), evaluate_pruned={"tasks": {"piqa": short}})
    with pytest.raises(DataError, match="an outcome of each document, found 40 of 1"):
        made(store, tmp_path)


def test_a_folder_without_a_store_and_a_file_that_is_none_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="the folder of a study"):
        read(tmp_path)
    (tmp_path / "runs.sqlite").write_text("not a database, however long this text may be made to be")
    with pytest.raises(DataError, match="not a database"):
        read(tmp_path)
    (tmp_path / "runs.sqlite").unlink()
    sqlite3.connect(tmp_path / "runs.sqlite").execute("CREATE TABLE meta(key, value)")
    with pytest.raises(DataError, match="no such table"):
        read(tmp_path)


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Report:
    """A study with everything in it, and with what goes wrong."""
    return Report.of(stores.write(tmp_path_factory.mktemp("grid"), documents=20))


def test_failed_trials_are_listed_with_their_tracebacks(grid: Report) -> None:
    assert grid.markdown().partition("\n## What failed\n\n")[2].splitlines() == [
        f"- trial {trial.number}, in heal: TrainingError: &lt;b>loss&lt;/b> is NaN"
        for trial in grid.findings.runs.trials
        if trial.state == "failed"
    ]
    section = grid.html().split('id="failed"')[1].split("</section>")[0]
    assert "1 trial failed" in section
    assert "TrainingError: &lt;b&gt;loss&lt;/b&gt; is NaN" in section


def test_nothing_in_a_store_becomes_markup_and_a_page_reaches_nothing(grid: Report) -> None:
    page = grid.html()
    assert page.count("<script>") == page.count("</script>") == 1
    assert "<img" not in page
    assert html.escape(stores.NASTY, quote=False)[:60] in page.replace("&#39;", "'")
    assert "<script>" not in grid.markdown()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy
    assert policy[1].startswith("default-src 'none'")
    assert re.search(r"script-src 'sha256-[\w+/=]{44}'", policy[1])
    assert not re.search(r'(?:src|href)="(?!#|data:,")', page)


# Figures


def test_every_figure_is_drawn_and_every_point_says_its_numbers(grid: Report) -> None:
    drawn = figures(grid.findings)
    assert [each.title.partition(",")[0] for each in drawn] == [
        "average (%) against layers removed",
        "perplexity on wikitext against layers removed",
    ] * (len(drawn) // 2)
    for figure in drawn:
        assert figure.svg.count("<title>") >= figure.svg.count("<circle") > 5
        assert "nan" not in figure.svg


# Other forms, and the verb


def test_markdown_and_csv_have_every_row(grid: Report) -> None:
    markdown, files = grid.markdown(), grid.csv()
    for each in grid.tables:
        parsed = list(csv.reader(io.StringIO(files[f"{each.key}.csv"])))
        assert len(parsed) == 1 + len(each.rows)
        assert {len(line) for line in parsed} == {len(parsed[0])}
        section = markdown.split(f"## {each.title}\n")[1].split("\n## ")[0]
        lines = [line for line in section.splitlines() if line.startswith("|")]
        assert len(lines) == 2 + len(each.rows) + sum(bool(block.title) for block in each.blocks)
        assert {len(re.split(r"(?<!\\)\|", line)) for line in lines} == {len(each.columns) + 2}


def test_a_report_is_replaced_and_nothing_else_is(tmp_path: Path) -> None:
    runs = stores.write(tmp_path / "runs", trials=1, documents=20, nasty=False)
    output = write_report(runs, tmp_path / "report.html")
    first = output.read_text(encoding="utf-8")
    assert write_report(runs, output).read_text(encoding="utf-8") == first
    (tmp_path / "mine.html").write_text("<!doctype html>mine")
    with pytest.raises(OutputError, match="it exists"):
        write_report(runs, tmp_path / "mine.html")


def test_the_verb_writes_a_page_and_says_what_was_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    runs = stores.write(tmp_path / "runs", trials=4, documents=20, nasty=False)
    monkeypatch.setattr(sys, "argv", ["shortstack", "report", str(runs), "--json", "--csv", str(tmp_path / "csv")])
    with pytest.raises(SystemExit):
        cli.main()
    assert json.loads(capsys.readouterr().out)["output"] is None
    monkeypatch.setattr(sys, "argv", ["shortstack", "report", str(runs), "--json"])
    with pytest.raises(SystemExit):
        cli.main()
    said = json.loads(capsys.readouterr().out)
    assert Path(said["output"]) == runs / "report.html"
    assert said["trials"] == {"done": len(read(runs).trials), "running": 0, "failed": 0, "waiting": 0}
    assert said["lead"] == Report.of(runs).opening.lead
    assert [each["key"] for each in said["tables"]] == [each.key for each in Report.of(runs).tables]
    monkeypatch.setattr(sys, "argv", ["shortstack", "report", str(runs), "--markdown", "--json"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2
