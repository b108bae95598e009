"""The report's rows against numbers worked out by hand, its words against its rows, and its page against hostile names."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import random
import re
import shutil
import sqlite3
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from scipy import stats

import stores
from shortstack import cli
from shortstack.charts.chart import Chart, Point, axis, front
from shortstack.errors import DataError, InputError, OutputError
from shortstack.machine.latex import PACKAGES, latex_text
from shortstack.machine.tables import Table, markdown_text
from shortstack.report import Report, write_report
from shortstack.report.figure import Figure
from shortstack.report.figures import figures
from shortstack.report.findings import Findings
from shortstack.report.judged import JudgedCell, ResultRow
from shortstack.report.labels import factors
from shortstack.report.results import Measure
from shortstack.report.significance import difference, places
from shortstack.report.summary import key_figures, lead, opening
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
    return next(each for each in report.tables if each.key == key)


def row(found: Table, label: str) -> ResultRow:
    return next(each for each in found.rows if each.label == label)


def cell(found: Table, label: str, column: str) -> JudgedCell:
    return row(found, label).cells[[each.label for each in found.columns].index(column)]


# Rows by hand


def test_rows_are_the_evaluations_and_their_average_with_its_standard_error(store: Store, tmp_path: Path) -> None:
    two_metrics(store)
    found = table(made(store, tmp_path), "metrics")
    assert [each.label for each in found.rows] == ["unpruned", "reverse", "bi"]
    compared = ["difference", "95 % interval", "p, Holm"]
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


def test_a_perplexity_is_compared_by_its_loss_and_less_is_better() -> None:
    ours, theirs = (
        Measure("perplexity", math.exp(v), None, (name,), higher=False, loss=v, loss_stderr=0.1)
        for v, name in ((2.0, "a"), (3.0, "b"))
    )
    assert difference(ours, theirs).value == pytest.approx(1.0)
    assert places([ours.better, theirs.better, -100.0]) == [1, 2, 0]


def test_an_infinite_perplexity_is_worse_than_any_finite_one() -> None:
    infinite = Measure("perplexity", math.inf, higher=False, loss=800.0)
    finite = Measure("perplexity", 1e9, higher=False, loss=math.log(1e9))
    assert places([infinite.better, finite.better]) == [0, 1]


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


def cuts(store: Store, amounts: dict[str, tuple[int, list[float]]], strategy: str = "one-shot") -> None:
    """A trial for each amount, with the layers that go and the outcomes."""
    for drop, (layers, outcomes) in amounts.items():
        cut = evaluated(outcomes, other=0.5 if outcomes is BASE else 0.0)
        known = settings(drop=drop, strategy=strategy)
        store.measured(known, evaluate_base=evaluated(BASE), plan=plan("bi", layers), evaluate_pruned=cut)


def test_the_lead_is_of_the_largest_cut_that_is_not_shown_to_be_worse(store: Store, tmp_path: Path) -> None:
    cuts(store, {"10%": (3, BASE), "25%": (8, BASE), "50%": (16, CUT)})
    cuts(store, {"25%": (8, CUT)}, "step 1")
    said = lead(findings(store, tmp_path))
    assert said.startswith("With 8 layers gone, pruned is best by the average, 62.5 ± ")
    assert ": 47.5 ± " in said, "18 of 40 and 20 of 40, on average"
    assert " points better, p < 0.001, than the next, step 1. " in said
    assert said.endswith("; with 16 layers gone every setting is.")


def test_a_larger_cut_that_some_test_misses_is_not_said_to_be_worth_keeping(store: Store, tmp_path: Path) -> None:
    cuts(store, {"10%": (3, CUT), "25%": (8, BASE), "50%": (16, CUT)})
    said = lead(findings(store, tmp_path))
    assert said.startswith("With 8 layers gone, pruned is best by the average, 62.5 ± ")
    assert "Whether it is worth keeping is open: " in said
    assert said.endswith(", where every setting without 3 layers is worse.")


def test_where_every_setting_is_worse_the_lead_says_by_how_much(store: Store, tmp_path: Path) -> None:
    cuts(store, {"10%": (3, CUT), "25%": (8, CUT)})
    said = lead(findings(store, tmp_path))
    assert said.startswith("With 3 layers gone, pruned is best by the average, 15.0 ± ")
    assert "It is 47.5 ± " in said, "half of 18 of 40 and of 20 of 40"
    assert said.endswith("%: keep it only where its size is worth that.")


@pytest.mark.parametrize(
    ("quality", "said"),
    [
        (1.0, "worth keeping: not shown to be worse"),
        (0.3, "It is not worth keeping: what it writes freely has collapsed."),
    ],
)
def test_what_has_collapsed_is_not_worth_keeping(quality: float, said: str, store: Store, tmp_path: Path) -> None:
    for metric in ("bi", "ppl"):
        known = {"plan": plan(metric, 3), "evaluate_pruned": evaluation(quality)}
        store.measured(settings(metric=metric), evaluate_base=evaluation(1.0), **known)
    found = lead(findings(store, tmp_path))
    assert said in found
    assert "; the next is" in found
    assert "within chance" in found


def test_of_one_window_it_is_said_that_nothing_is_known(store: Store, tmp_path: Path) -> None:
    for metric, loss in (("bi", 9.0), ("ppl", 14.0)):
        cut, base = ({"perplexity": {"t": perplexity(each, None)}} for each in (loss, 2.5))
        store.measured(settings(metric=metric), evaluate_base=base, plan=plan(metric, 8), evaluate_pruned=cut)
    report = made(store, tmp_path)
    assert "with no standard error to tell them apart" in lead(report.findings)
    assert "is not known: there is no standard error." in lead(report.findings)
    judged = [cell(table(report, "metrics"), "bi", name).value for name in ("difference", "95 % interval", "p, Holm")]
    assert judged == [-6.5, None, None]


def test_a_difference_stands_beside_its_interval_and_its_p(store: Store, tmp_path: Path) -> None:
    two_metrics(store)
    found = table(made(store, tmp_path), "metrics")
    change = cell(found, "reverse", "average").judgement.base
    assert change
    shown = [cell(found, "reverse", name) for name in ("difference", "95 % interval", "p, Holm")]
    reach = stats.t.ppf(0.975, change.freedom) * change.stderr
    assert [each.value for each in shown[::2]] == [change.value, change.p]
    assert shown[0].value == pytest.approx(-(0.45 + 0.25) / 2)
    assert shown[1].value == pytest.approx((change.value - reach, change.value + reach))
    assert cell(found, "unpruned", "difference").value is None


def test_a_trial_says_what_it_learnt_from_by_the_end_of_its_path(store: Store, tmp_path: Path) -> None:
    store.measured(settings(data="$DATA/c4.jsonl"), evaluate_pruned=evaluated(CUT))
    store.measured(settings(data="$DATA/other.txt"), evaluate_pruned=evaluated(CUT))
    page = made(store, tmp_path).html()
    assert [name in page for name in ("<dd>c4.jsonl</dd>", "<dd>other.txt</dd>", "<dd>$DATA")] == [True, True, False]


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


def test_what_is_not_calibrated_stands_in_each_calibrations_comparison(store: Store, tmp_path: Path) -> None:
    texts = [{"text": "pydoc", "samples": n, "length": 128, "seed": None} for n in (1, 10)]
    for known in (settings(), *(settings(metric="bi", calibration=text) for text in texts)):
        store.measured(known, evaluate_pruned=evaluated(CUT))
    found = table(made(store, tmp_path), "metrics")
    assert [[each.label for each in block.rows] for block in found.blocks] == [["reverse", "bi"]] * 2


def test_repair_gives_back_a_share_of_the_loss(store: Store, tmp_path: Path) -> None:
    repair = {
        "loss_unpruned": 2.0,
        "loss_before": 4.0,
        "loss_after": 2.5,
        "kept": True,
        "seconds": 5.0,
        "fits": [{}] * 3,
    }
    pruned = {**plan("bi", 8), "repair": repair}
    store.measured(settings(repair={"text": "pydoc"}), prune=pruned, evaluate_pruned=evaluated(CUT))
    found = table(made(store, tmp_path), "refits")
    assert [each.value for each in found.rows[0].cells[1:]] == pytest.approx(
        [math.exp(2.0), math.exp(4.0), math.exp(2.5), 0.75, 3, 5.0]
    )


def test_costs_count_each_step_once_and_what_sharing_saved(store: Store, tmp_path: Path) -> None:
    seconds = {"evaluate_base": 60, "evaluate_pruned": 30}
    for drop in ("25%", "50%"):
        known = settings(drop=drop)
        store.measured(known, seconds=seconds, evaluate_base=evaluated(BASE), evaluate_pruned=evaluated(CUT))
    found = table(made(store, tmp_path), "costs")
    shown = {column.label: each.value for column, each in zip(found.columns, found.rows[0].cells, strict=True)}
    assert (shown["steps"], shown["asked for"], shown["time"], shown["longest"], shown["saved"]) == (3, 4, 120, 60, 60)


def test_a_collapse_is_said_beside_the_probes(store: Store, tmp_path: Path) -> None:
    base = evaluation(1.0) | {"collapse": None}
    for drop, quality in (("25%", 0.8), ("50%", 0.3)):
        store.measured(settings(drop=drop), evaluate_base=base, evaluate_pruned=evaluation(quality))
    found = table(made(store, tmp_path), "probes")
    assert [each.cells[-1].value for each in found.rows] == [None, "not collapsed", "collapsed: different tokens"]
    assert found.rows[1].cells[1].value == pytest.approx(0.8**3)


def test_probes_are_told_apart_as_the_table_does(store: Store, tmp_path: Path) -> None:
    """By its standard error one probe differs beyond chance alone (p .02), and not once it is one of ten."""

    def probed(first: float) -> dict[str, Any]:
        known = {"stderr": 0.03, "n": 100, "chance": 0.0}
        others = {f"other {number}": {"value": 0.9, **known} for number in range(9)}
        return evaluation(1.0) | {"probes": {"first": {"value": first, **known}, **others}}

    store.measured(settings(), evaluate_base=probed(0.9), evaluate_pruned=probed(0.8))
    found = table(made(store, tmp_path), "probes")
    marked = [cell.judgement.base.worse for cell in found.rows[1].cells if cell.judgement.base]
    assert not any(marked)


def test_sizes_have_a_row_for_each_number_of_layers(store: Store, tmp_path: Path) -> None:
    profiles = {"profile": profile(22), "profile_base": profile(30)}
    for metric in ("reverse", "bi"):
        store.measured(settings(metric=metric), plan=plan(metric, 8), evaluate_pruned=evaluated(CUT), **profiles)
    found = table(made(store, tmp_path), "sizes")
    assert [each.label for each in found.rows] == ["unpruned", "8"]
    assert [cell(found, size, "weights").value for size in ("8", "unpruned")] == [
        profile(layers)["weight_bytes"] for layers in (22, 30)
    ]


def test_tables_without_a_second_level_are_left_out(store: Store, tmp_path: Path) -> None:
    store.measured(settings(), evaluate_pruned=evaluated(CUT))
    assert {each.key for each in made(store, tmp_path).tables} == {"costs", "settings"}


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


def test_the_opening_says_what_the_grid_is(tmp_path: Path) -> None:
    found = Report.of(stores.write(tmp_path, nasty=False, documents=20)).findings
    assert opening(found) == (
        "51 settings of demo that differ in drop (3), metric (6), calibration (4), strategy (2), repair (2), heal (4) and "
        "data (4), measured on 4 tasks, 2 perplexities and 2 probes. Where nothing else is said: calibrated on "
        "pydoc 10 x 128 and healed on alpaca."
    )
    assert key_figures(found)[0] == ("trials done", str(len(found.runs.trials)), "none failed")


# Stores that are odd


@pytest.mark.parametrize("trials", [1, 300])
def test_one_trial_and_three_hundred(tmp_path: Path, trials: int) -> None:
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


def test_what_a_killed_study_left_is_read_and_not_tidied(store: Store, tmp_path: Path) -> None:
    two_metrics(store)
    store.rows.commit()
    killed = shutil.copytree(tmp_path / "runs", tmp_path / "killed")  # the log beside the database is not merged yet
    before = {path.name: path.read_bytes() for path in killed.iterdir() if not path.name.endswith("-shm")}
    assert len(read(killed).trials) == 2
    assert {path.name: path.read_bytes() for path in killed.iterdir() if not path.name.endswith("-shm")} == before
    assert before["runs.sqlite-wal"]


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


def test_failed_trials_are_listed_with_their_tracebacks(tmp_path: Path) -> None:
    report = Report.of(stores.write(tmp_path, documents=20))
    assert report.markdown().partition("\n## What failed\n\n")[2].splitlines() == [
        f"- trial {trial.number}, in heal: TrainingError: &lt;b>loss&lt;/b> is NaN"
        for trial in read(tmp_path).trials
        if trial.state == "failed"
    ]
    page = report.html()
    section = page.split('id="failed"')[1].split("</section>")[0]
    assert "1 trial failed" in section
    assert "TrainingError: &lt;b&gt;loss&lt;/b&gt; is NaN" in section


# Names that are no names


def test_nothing_in_a_store_becomes_markup(tmp_path: Path) -> None:
    report = Report.of(stores.write(tmp_path, documents=20))
    page = report.html()
    assert page.count("<script>") == page.count("</script>") == 1
    assert "<img" not in page
    assert html.escape(stores.NASTY, quote=False)[:60] in page.replace("&#39;", "'")
    assert "<script>" not in report.markdown()
    assert latex_text(r"50%_\{") == r"50\%\_\textbackslash{}\{"
    assert latex_text("<a|b> --c") == r"\textless{}a\textbar{}b\textgreater{} -{}-c"
    assert latex_text("[4pt] a*b") == "{[}4pt] a{*}b", "a row's first letter is no argument of the line break before it"
    assert markdown_text("a|b\n<c>") == r"a\|b &lt;c>"


def test_a_page_may_run_its_own_script_only_and_reach_nothing(tmp_path: Path) -> None:
    page = Report.of(stores.write(tmp_path, trials=2, documents=20, nasty=False)).html()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    assert policy
    assert policy[1].startswith("default-src 'none'")
    assert re.search(r"script-src 'sha256-[\w+/=]{44}'", policy[1])
    assert not re.search(r'(?:src|href)="(?!#|data:,")', page)


# Figures


def drawn_of(store: Store, place: Path) -> dict[str, Figure]:
    return {each.key: each for each in figures(findings(store, place), lambda _: "")}


def test_a_study_of_one_setting_draws_its_stack_and_what_is_kept(store: Store, tmp_path: Path) -> None:
    repair = {
        "loss_unpruned": 2.0,
        "loss_before": 4.0,
        "loss_after": 2.5,
        "kept": True,
        "fits": [{"layer": 2}, {"layer": 2}],
    }
    gone = plan("bi", 8)
    pruned = {**gone, "removed": [3, 4], "repair": repair}
    store.measured(settings(), evaluate_base=evaluated(BASE), prune=pruned, evaluate_pruned=evaluated(CUT))
    found = drawn_of(store, tmp_path)
    svg = str(found["stack"].svg)
    assert [svg.count(f'class="layer {state}"') for state in ("removed", "refitted", "kept")] == [
        2,
        1,
        gone["layers"] - 3,
    ]
    assert "layer 2: refitted" in svg
    base, cut = sum(BASE) / len(BASE), sum(CUT) / len(CUT)
    assert {f"{base:.3f}", f"{cut:.3f}"} <= {text.split(": ")[1].split(" ")[0] for text in titles(found["shares"].svg)}


def test_what_healing_trained_is_outlined_where_it_was_the_last_layers(store: Store, tmp_path: Path) -> None:
    gone = {**plan("bi", 8), "removed": [3, 4]}
    known, found = settings(heal=stores.HEALS["partial"], last=2), healed("partial", 2.0)
    store.measured(known, evaluate_base=evaluated(BASE), prune=gone, heal=found, evaluate_healed=evaluated(CUT))
    figure = drawn_of(store, tmp_path)["stack"]
    assert str(figure.svg).count('class="layer kept trained"') == 2
    assert f"layer {gone['layers'] - 1}: kept, trained" in str(figure.svg)
    assert "outlined: trained" in figure.caption


def test_layers_that_healing_names_are_outlined_by_their_numbers_in_the_unpruned_model(
    store: Store, tmp_path: Path
) -> None:
    gone = {**plan("bi", 8), "removed": [3, 4]}
    found = healed("lora", 2.0) | {"trained_layers": [2, 3, 5]}
    store.measured(
        settings(heal=stores.HEALS["lora"]),
        evaluate_base=evaluated(BASE),
        prune=gone,
        heal=found,
        evaluate_healed=evaluated(CUT),
    )
    svg = str(drawn_of(store, tmp_path)["stack"].svg)
    assert re.findall(r"layer (\d+): kept, trained", svg) == ["2", "5", "7"]


def test_what_a_repair_tried_and_dropped_is_not_drawn(store: Store, tmp_path: Path) -> None:
    repair = {"loss_unpruned": 2.0, "loss_before": 4.0, "loss_after": 4.5, "kept": False, "fits": [{"layer": 2}]}
    store.measured(
        settings(),
        evaluate_base=evaluated(BASE),
        prune={**plan("bi", 8), "repair": repair},
        evaluate_pruned=evaluated(CUT),
    )
    assert "refitted" not in str(drawn_of(store, tmp_path)["stack"].svg)


def titles(svg: object) -> list[str]:
    return re.findall(r"<title>([^<]*: [^<]*)</title>", str(svg))


def test_a_healing_that_diverged_does_not_squash_the_others(store: Store, tmp_path: Path) -> None:
    for method, loss in (("partial", 2.0), ("lora", 2.1), ("full", 50.0)):
        heal = {"name": method, "method": method, "data": "pydoc"}
        store.measured(
            settings(heal=heal),
            evaluate_base=evaluated(BASE),
            heal=healed(method, loss),
            evaluate_healed=evaluated(CUT),
        )
    figure = drawn_of(store, tmp_path)["losses"]
    assert "At the upper edge: higher than the chart." in figure.caption
    heights = [float(y) for y in re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)"', str(figure.svg))]
    assert max(heights) - min(heights) > 30, "two lines of 2.8 nats are not one line at the bottom"


def test_what_lies_on_the_last_tick_is_no_triangle() -> None:
    value = (0.1 + 0.2) * 2  # a hair above 0.6
    chart = Chart("t", axis("x", [0, 1], str), axis("y", [0.1, value], str), [])
    assert not chart.beyond(Point(0, value, ""))
    assert chart.beyond(Point(0, 0.7, ""))


@pytest.mark.parametrize("seed", [0, 3, 4])
def test_of_many_equal_settings_none_is_told_apart(seed: int, store: Store, tmp_path: Path) -> None:
    """The best and the worst of many differ by chance: it is all pairs that are corrected for."""
    rng = random.Random(seed)
    for metric in ("bi", "ppl", "kl", "taylor", "random", "reverse", "angular"):
        cut = {"tasks": {"piqa": task([float(rng.random() < 0.5) for _ in range(40)])}}
        store.measured(settings(metric=metric), evaluate_base=evaluated(BASE), plan=plan("bi", 8), evaluate_pruned=cut)
    found = findings(store, tmp_path)
    (_, best), *_, (_, worst) = found.ranked(found.results)
    assert difference(best, worst).significant, "alone these two are told apart"
    assert "which is within chance of it" in lead(found)


def test_of_two_equal_points_of_a_front_both_are_drawn() -> None:
    points = [Point(1, 5, "a"), Point(1, 5, "b"), Point(1, 4, "c"), Point(2, 5, "d")]
    assert [each.title for each in front(points, less_x=True, less_y=False)] == ["a", "b"]


def test_a_front_is_what_no_other_point_beats() -> None:
    rng = random.Random(1)
    points = [Point(rng.random(), rng.random(), str(n)) for n in range(60)]
    beaten = {a.title for a in points for b in points if b.x <= a.x and b.y >= a.y and (b.x < a.x or b.y > a.y)}
    assert {each.title for each in front(points, less_x=True, less_y=False)} == {p.title for p in points} - beaten


@pytest.mark.parametrize(
    ("values", "log"),
    [([0.1, 0.9], False), ([5.0], False), ([0.0], False), ([11.0, 3e6], True), ([7.0, 7.2], True), ([], True)],
)
def test_an_axis_holds_its_values(values: list[float], log: bool) -> None:
    found = axis("x", values, str, log=log)
    assert found.low < found.high
    assert all(found.low <= value <= found.high for value in values)
    assert len(found.ticks) >= 2
    assert all(found.low <= tick <= found.high for tick in found.ticks)


def test_points_lie_where_their_numbers_are(store: Store, tmp_path: Path) -> None:
    """Layers removed 3, 8 and 15 on an axis from 0 to 15: the middle point is 5/12 of the way from the first to the last."""
    for drop, removed in (("10%", 3), ("25%", 8), ("50%", 15)):
        store.measured(settings(drop=drop), plan=plan("reverse", removed), evaluate_pruned=evaluated(CUT))
    (average, _) = figures(findings(store, tmp_path), lambda _: "")
    x = [float(each) for each in re.findall(r'<circle cx="([\d.]+)"', average.svg)]
    assert (x[1] - x[0]) / (x[2] - x[0]) == pytest.approx(5 / 12, abs=0.001)


def test_a_block_of_metrics_is_called_by_its_calibration(store: Store, tmp_path: Path) -> None:
    read_on = [{"text": "pydoc", "samples": samples, "length": 128, "seed": None} for samples in (5, 50)]
    for metric, calibration in (
        [("bi", each) for each in read_on] + [("ppl", each) for each in read_on] + [("random", None)]
    ):
        known = settings(metric=metric, calibration=calibration)
        store.measured(known, evaluate_base=evaluated(BASE), evaluate_pruned=evaluated(CUT))
    titles = [block.title for block in table(made(store, tmp_path), "metrics").blocks]
    assert len(titles) == len(set(titles)) == 2, titles


def test_orders_beside_the_first_are_folded(store: Store, tmp_path: Path) -> None:
    for samples in (1, 5, 10):
        known = settings(metric="bi", calibration={"text": "pydoc", "samples": samples, "length": 128, "seed": None})
        store.measured(known, score=stores.scores(["bi"], samples), evaluate_pruned=evaluated(CUT))
    drawn = figures(findings(store, tmp_path), lambda _: "")
    assert [each.folded for each in drawn if each.key.startswith("scores-")] == [False, True, True]


def test_every_point_says_its_numbers(tmp_path: Path) -> None:
    found = Report.of(stores.write(tmp_path, documents=20)).findings
    drawn = figures(found, lambda _: "")
    assert {each.key.split("-")[0] for each in drawn} == {"depth", "size", "speed", "scores", "losses"}
    for figure in drawn:
        series = figure.svg.split('class="series', 1)[-1]
        assert series.count("<title>") >= series.count("<circle") - series.count('class="dot"')
        assert "nan" not in figure.svg


# Other forms, and the verb


def test_markdown_latex_and_csv_have_every_row(tmp_path: Path) -> None:
    report = Report.of(stores.write(tmp_path, documents=20, nasty=False))
    markdown, latex, files = report.markdown(), report.latex(), report.csv()
    for each in report.tables:
        parsed = list(csv.reader(io.StringIO(files[f"{each.key}.csv"])))
        assert len(parsed) == 1 + len(each.rows)
        assert {len(line) for line in parsed} == {len(parsed[0])}
        rows = latex.split(rf"\label{{tab:{each.key}}}")[1].split(r"\endfoot")[1].split(r"\end{longtable}")[0]
        assert len(re.findall(r"\\\\$", rows, re.MULTILINE)) == len(each.rows)
        assert rows.count(r"\multicolumn") == sum(bool(block.title) for block in each.blocks)
        section = markdown.split(f"## {each.title}\n")[1].split("\n## ")[0]
        lines = [line for line in section.splitlines() if line.startswith("|")]
        assert len(lines) == 2 + len(each.rows) + sum(bool(block.title) for block in each.blocks)
        assert {len(re.split(r"(?<!\\)\|", line)) for line in lines} == {len(each.columns) + 2}
    exact = dict(zip(*list(csv.reader(io.StringIO(files["metrics.csv"])))[:2], strict=True))
    assert float(exact["average"]) == report.tables[0].rows[0].cells[1].value


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="pdflatex is not installed")
def test_latex_compiles_and_no_table_is_wider_or_longer_than_the_page(tmp_path: Path) -> None:
    body = Report.of(stores.write(tmp_path / "runs", documents=20)).latex()
    packages = "".join(rf"\usepackage{{{name}}}" for name in PACKAGES)
    source = rf"\documentclass{{article}}{packages}\begin{{document}}{body}\end{{document}}"
    (tmp_path / "t.tex").write_text(source)
    command = ["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"]
    subprocess.run(command, cwd=tmp_path, check=True, capture_output=True)
    log = (tmp_path / "t.log").read_text(encoding="utf-8", errors="replace")
    assert re.findall(r"Overfull .*|.*too large.*", log) == []


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
    runs = stores.write(tmp_path / "runs", documents=20, nasty=False)
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
    assert said["lead"] == lead(Report.of(runs).findings)
    assert [each["key"] for each in said["tables"]] == [each.key for each in Report.of(runs).tables]
    monkeypatch.setattr(sys, "argv", ["shortstack", "report", str(runs), "--latex", "--markdown"])
    with pytest.raises(SystemExit) as stopped:
        cli.main()
    assert stopped.value.code == 2


def test_a_report_needs_no_torch(tmp_path: Path) -> None:
    runs = stores.write(tmp_path / "runs", trials=2, documents=20, nasty=False)
    code = (
        "import sys\nfrom shortstack.cli import main\n"
        "try:\n    main()\nfinally:\n    assert not {'torch', 'transformers'} & set(sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, "report", str(runs)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (runs / "report.html").exists()


def test_marks_of_a_table_are_those_that_its_cells_have(tmp_path: Path) -> None:
    for each in Report.of(stores.write(tmp_path, documents=200, nasty=False)).tables:
        shown = {mark for each_row in each.rows for each_cell in each_row.cells for mark in each_cell.marks}
        assert set(each.marks) == shown


def test_an_evaluation_of_the_fixture_is_paired(tmp_path: Path) -> None:
    """The stores of these tests do what real ones do: errors of a difference are smaller than those of its parts."""
    ours, theirs = (evaluation(quality)["tasks"]["piqa"]["outcomes"] for quality in (0.9, 1.0))
    apart = statistics.stdev(a - b for a, b in zip(ours, theirs, strict=True))
    assert apart < math.hypot(statistics.stdev(ours), statistics.stdev(theirs))
