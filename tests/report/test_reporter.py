"""The report's rows against numbers worked out by hand, its words against its rows, and its page against hostile names."""

from __future__ import annotations

import csv
import html
import io
import json
import math
import re
import sqlite3
import statistics
from pathlib import Path

import pytest

import stores
from command import ended
from shortstack.errors import DataError, InputError, OutputError
from shortstack.machine.formats import shown
from shortstack.report import Report, write_report
from shortstack.report.figures import figures
from shortstack.report.labels import factors
from shortstack.runs.records import read
from stores import Store, evaluation, healed, perplexity, plan, profile, settings, task

BASE = [1.0] * 30 + [0.0] * 10  # 75 %
CUT = [1.0] * 12 + [0.0] * 28  # 30 %: 18 answers lost, none gained
HEALED = [1.0] * 24 + [0.0] * 16  # 60 %: 6 lost, none gained


def evaluated(outcomes, *, other=0.5, loss=2.0):
    second = [1.0] * round(40 * other) + [0.0] * (40 - round(40 * other))
    return {"tasks": {"piqa": task(outcomes), "arc": task(second)}, "perplexity": {"text": perplexity(loss, 0.1)}}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


def made(store, folder):
    store.close()
    return Report.of(folder / "runs")


def two_metrics(store):
    """The tail and another metric at the same drop, beside the unpruned model."""
    for metric, outcomes, other, loss in (("reverse", CUT, 0.25, 3.0), ("bi", HEALED, 0.5, 2.1)):
        cut = evaluated(outcomes, other=other, loss=loss)
        known = settings(metric=metric)
        store.measured(known, evaluate_base=evaluated(BASE), plan=plan(metric, 8), evaluate_pruned=cut)


def table(report, key):
    return next(table for table in report.tables if table.key == key)


def cell(found, label, heading):
    row = next(row for row in found.rows if row.label == label)
    return row.cells[[column.label for column in found.columns].index(heading)]


def test_settings_stand_under_their_model(store, tmp_path):
    for model in ("small", "large"):
        known = {"evaluate_base": evaluated(BASE), "plan": plan("bi", 8), "evaluate_pruned": evaluated(CUT)}
        store.measured(settings(model=model, metric="bi"), **known)
        store.measured(settings(model=model, metric="reverse"), **known | {"plan": plan("reverse", 8)})
    blocks = table(made(store, tmp_path), "settings").blocks
    assert [block.title for block in blocks] == ["small", "large"]
    assert [[row.base for row in block.rows] for block in blocks] == [[True, False, False]] * 2


# Rows by hand


def test_rows_are_the_evaluations_and_their_average_with_its_standard_error(store, tmp_path):
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


def test_best_second_and_marks_follow_from_paired_tests(store, tmp_path):
    two_metrics(store)
    found = table(made(store, tmp_path), "metrics")
    lost = cell(found, "reverse", "piqa")
    assert cell(found, "bi", "piqa").judgement.place == 1
    assert lost.judgement.place == 0, "of two rows none is called second"
    # 18 answers lost and none gained: McNemar's exact p is 2 / 2^18. Of the block's 8 comparisons with the unpruned model
    # two are surer, the average and the perplexity of the same row, so that Holm multiplies it by 6.
    assert lost.judgement.base.p == pytest.approx(6 * 2 / 2**18)
    assert lost.marks == "↓"
    assert lost.judgement.base.how == "McNemar's exact test"
    assert lost.judgement.base.value == pytest.approx(-18 / 40)
    same = cell(found, "bi", "arc")
    assert same.judgement.base.p == 1
    assert "↓" not in same.marks


def test_seeds_of_a_setting_are_one_row_with_both_variances(store, tmp_path):
    for seed, outcomes in ((0, CUT), (1, HEALED)):
        store.measured(settings(seed=seed), evaluate_pruned={"tasks": {"piqa": task(outcomes)}})
    (found,) = made(store, tmp_path).findings.results
    measure = found.measures["task:piqa"]
    documents = [statistics.variance(each) / 40 for each in (CUT, HEALED)]
    assert measure.value == pytest.approx((0.3 + 0.6) / 2)
    assert measure.stderr == pytest.approx(math.sqrt(statistics.mean(documents) + statistics.variance([0.3, 0.6]) / 2))
    assert len(measure.steps) == 2
    assert measure.outcomes["d15"] == 0.5  # right in one seed, wrong in the other


def test_an_average_is_missing_where_a_task_is(store, tmp_path):
    store.measured(settings(metric="bi"), evaluate_pruned=evaluated(CUT))
    store.measured(settings(metric="reverse"), evaluate_pruned={"tasks": {"piqa": task(CUT)}})
    found = table(made(store, tmp_path), "metrics")
    assert cell(found, "bi", "average").value == pytest.approx(0.4)
    assert cell(found, "reverse", "average").text == "–"  # noqa: RUF001
    assert cell(found, "reverse", "arc").text == "–"  # noqa: RUF001


def test_infinite_and_absent_numbers_are_told_apart(store, tmp_path):
    for drop, loss, value in (("25%", 800.0, None), ("50%", None, None), ("60%", math.nan, math.nan)):
        data = {"perplexity": {"text": {"value": value, "loss": loss, "loss_stderr": None, "tokens": 10}}}
        store.measured(settings(drop=drop), plan=plan("bi", 3), evaluate_pruned=data)
    report = made(store, tmp_path)
    assert [each.cells[1].text for each in table(report, "settings").rows] == ["∞", "NaN", "NaN"]
    assert report.html().count('data-v="inf"') == 1


def test_healing_stands_beside_what_it_healed(store, tmp_path):
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
    assert "held-out KL from the teacher" not in [column.label for column in found.columns], "nobody taught"


def test_losses_of_other_objectives_stand_in_columns_of_their_own(store, tmp_path):
    for method, objective in (("partial", "sft"), ("lora", "distill")):
        result = {**healed(method, 2.0), "objective": objective}
        store.measured(settings(heal=stores.HEALS[method]), heal=result, evaluate_healed=evaluated(HEALED))
    found = table(made(store, tmp_path), "healing")
    loss = healed("lora", 2.0)["loss"]["held_out"]
    assert [cell(found, "last 3", f"held-out {kind}").value for kind in ("loss", "KL from the teacher")] == [loss, None]
    assert [cell(found, "lora", f"held-out {kind}").value for kind in ("loss", "KL from the teacher")] == [None, loss]


def test_what_is_not_calibrated_stands_in_each_calibrations_block(store, tmp_path):
    read_on = [{"text": "pydoc", "samples": samples, "length": 128, "seed": None} for samples in (5, 50)]
    for metric, text in [("bi", each) for each in read_on] + [("ppl", each) for each in read_on] + [("random", None)]:
        store.measured(settings(metric=metric, calibration=text), evaluate_pruned=evaluated(CUT))
    blocks = table(made(store, tmp_path), "metrics").blocks
    assert [sorted(each.label for each in block.rows) for block in blocks] == [["bi", "ppl", "random"]] * 2
    assert len({block.title for block in blocks}) == 2


@pytest.mark.parametrize("state", ["running", "failed"])
def test_a_trial_that_has_not_healed_shows_no_figures_of_the_cut_as_healed(store, tmp_path, state):
    shared = {"evaluate_base": evaluated(BASE), "evaluate_pruned": evaluated(CUT)}
    store.measured(settings(), **shared)
    store.measured(settings(heal=stores.HEALS["partial"]), **shared, evaluate_healed=evaluated(HEALED))
    store.measured(settings(heal=stores.HEALS["lora"]), **shared, state=state)
    found = made(store, tmp_path).findings.results
    assert [each.role for each in found] == ["evaluate_pruned", "evaluate_healed"]
    assert [each.measures["task:piqa"].value for each in found] == [0.3, 0.6]


def test_a_collapse_is_said_beside_the_probes(store, tmp_path):
    base = evaluation(1.0) | {"collapse": None}
    for drop, quality in (("25%", 0.8), ("50%", 0.3)):
        store.measured(settings(drop=drop), evaluate_base=base, evaluate_pruned=evaluation(quality))
    found = table(made(store, tmp_path), "probes")
    assert [each.cells[-1].value for each in found.rows] == [None, "not collapsed", "collapsed: different tokens"]
    assert found.rows[1].cells[1].value == pytest.approx(0.8**3)


def test_a_collapse_with_any_seed_is_said(store, tmp_path):
    for seed, quality in enumerate((0.8, 0.3)):
        store.measured(settings(seed=seed), evaluate_base=evaluation(1.0), evaluate_pruned=evaluation(quality))
    found = table(made(store, tmp_path), "probes")
    assert found.rows[-1].cells[-1].value == "collapsed: different tokens"


def test_speeds_of_different_numbers_of_threads_are_said_not_to_compare(store, tmp_path):
    profiles = {"profile": {**profile(22), "threads": 2}, "profile_base": {**profile(30), "threads": 1}}
    store.measured(settings(), plan=plan("bi", 8), evaluate_pruned=evaluated(CUT), **profiles)
    caption = table(made(store, tmp_path), "sizes").caption
    assert "taken with different numbers of threads: they do not compare" in caption


@pytest.mark.parametrize("differs", ["host", "device", None])
def test_speeds_of_one_machine_alone_are_said_to_be_of_one(differs, store, tmp_path):
    known = profile(22) | {"device": "cpu", "threads": 2}
    profiles = {"profile": {**known, "device": "cuda"} if differs == "device" else known, "profile_base": known}
    store.measured(settings(), plan=plan("bi", 8), evaluate_pruned=evaluated(CUT), **profiles)
    if differs == "host":
        (trial,) = store.store.trials()
        store.store.end(trial["steps"]["profile"], "done", {"host": "node-2"})
    apart = {name: f", taken with different {name}s" for name in ("machine", "device")}
    said = apart.get({"host": "machine"}.get(differs, differs), " on one machine")
    assert f"Speeds are medians{said}" in table(made(store, tmp_path), "sizes").caption


def test_sizes_have_a_row_for_each_number_of_layers(store, tmp_path):
    profiles = {"profile": profile(22), "profile_base": profile(30)}
    for metric in ("reverse", "bi"):
        store.measured(settings(metric=metric), plan=plan(metric, 8), evaluate_pruned=evaluated(CUT), **profiles)
    found = table(made(store, tmp_path), "sizes")
    assert [each.label for each in found.rows] == ["unpruned", "8"]
    for size, layers in (("8", 22), ("unpruned", 30)):
        assert cell(found, size, "weights").value == profile(layers)["weight_bytes"]


# Words


def test_healings_are_called_by_their_names_where_those_tell_them_apart():
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
def test_one_trial_and_many(tmp_path, trials):
    report = Report.of(stores.write(tmp_path, trials=trials, documents=20, nasty=False))
    assert sum(len(each.trials) for each in report.findings.results) == trials
    assert len(re.findall(r'class="entry" id="t\d+"', report.html())) == trials


def test_an_empty_store_says_so(store, tmp_path):
    report = made(store, tmp_path)
    assert "no trial yet" in report.html()
    assert report.tables == []


def test_outcomes_that_are_not_of_the_documents_are_refused(store, tmp_path):
    short = task(CUT) | {"documents": ["d1"]}
    store.measured(settings(), evaluate_pruned={"tasks": {"piqa": short}})
    with pytest.raises(DataError, match="an outcome of each document, found 40 of 1"):
        made(store, tmp_path)


def test_a_folder_without_a_store_and_a_file_that_is_none_are_refused(tmp_path):
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
def grid(tmp_path_factory):
    """A study with everything in it, and with what goes wrong."""
    return Report.of(stores.write(tmp_path_factory.mktemp("grid"), documents=20))


def test_failed_trials_are_listed_with_their_tracebacks(grid):
    assert grid.markdown().partition("\n## What failed\n\n")[2].splitlines() == [
        f"- trial {trial.number}, in heal: TrainingError: &lt;b>loss&lt;/b> is NaN"
        for trial in grid.findings.runs.trials
        if trial.state == "failed"
    ]
    section = grid.html().split('id="failed"')[1].split("</section>")[0]
    assert "1 trial failed" in section
    assert "TrainingError: &lt;b&gt;loss&lt;/b&gt; is NaN" in section


def test_nothing_in_a_store_becomes_markup_and_a_page_reaches_nothing(grid):
    page = grid.html()
    assert page.count("<script>") == page.count("</script>") == 1
    assert "<img" not in page
    assert html.escape(stores.NASTY, quote=False)[:60] in page.replace("&#39;", "'")
    assert "<script>" not in grid.markdown()
    policy = r"""Content-Security-Policy" content="default-src 'none'[^"]*script-src 'sha256-[\w+/=]{44}'"""
    assert re.search(policy, page)
    assert not re.search(r'(?:src|href)="(?!#|data:,")', page)


# Figures


def test_every_figure_is_drawn_and_every_point_says_its_numbers(grid):
    drawn = figures(grid.findings)
    assert [each.title.partition(",")[0] for each in drawn] == [
        "average (%) against layers removed",
        "perplexity on wikitext against layers removed",
    ] * (len(drawn) // 2)
    for figure in drawn:
        assert figure.svg.count("<title>") >= figure.svg.count("<circle") > 5
        assert "nan" not in figure.svg


# Forms of results that are odd

GROUP = [*(f"few/{n}" for n in range(4)), *(f"many/{n}" for n in range(36))]


def whole(metric, value, *, higher):
    """A metric of all documents together, which has no standard error."""
    known = task([0.0] * 40, metric) | {"value": value, "stderr": None, "higher_is_better": higher}
    return known | {"outcomes": [None] * 40}


def group(few, many):
    """A group whose tasks count the same: so many right of four, and of thirty-six."""
    outcomes = [1.0] * few + [0.0] * (4 - few) + [1.0] * many + [0.0] * (36 - many)
    return task(outcomes) | {"documents": GROUP, "macro": True, "value": (few / 4 + many / 36) / 2}


def measured(right, bits, mcc, few, loss):
    """right: of forty; loss: of the one window."""
    return {
        "tasks": {
            "piqa": task([1.0] * right + [0.0] * (40 - right)),
            "cola": whole("mcc", mcc, higher=True),
            "pile": whole("bits_per_byte", bits, higher=False),
            "group": group(few, 36),
        },
        "perplexity": {"one": perplexity(loss, None) | {"windows": {"sha256": "a"}, "window_losses": [loss]}},
    }


MEASURED = {
    "unpruned": measured(40, 0.7, 0.5, 4, 2.5),
    "bi": measured(38, 0.9, 0.6, 4, 9.0),
    "ppl": measured(20, 1.4, 0.0, 0, 14.0),
}


@pytest.fixture
def odd(store, tmp_path):
    for metric in ("bi", "ppl"):
        results = {"evaluate_base": MEASURED["unpruned"], "evaluate_pruned": MEASURED[metric]}
        store.measured(settings(metric=metric), plan=plan(metric, 8), **results)
    return made(store, tmp_path)


def expected(label):
    """Return the columns of a row: the value of each task, the mean of the two that are shares, the perplexity."""
    known = MEASURED[label]
    values = {name: result["value"] for name, result in known["tasks"].items()}
    average = (values["piqa"] + values["group"]) / 2
    return {"average": average, **values, "one": math.exp(known["perplexity"]["one"]["loss"])}


def test_shares_are_in_percent_and_other_numbers_as_they_are_in_every_form(odd):
    kinds = dict.fromkeys(("average", "piqa", "group"), "share") | dict.fromkeys(("cola", "pile"), "number")
    kinds["one"] = "perplexity"
    page, markdown = html.unescape(odd.html()), odd.markdown()
    found = table(odd, "metrics")
    lines = list(csv.DictReader(io.StringIO(odd.csv()["metrics.csv"])))
    for label in MEASURED:
        section = markdown.split(f"## {found.title}\n")[1]
        line = next(line for line in section.splitlines() if re.match(rf"\| \*?{label}\*? \|", line))
        in_full = next(line for line in lines if label in line.values())
        for name, kind in kinds.items():
            value = expected(label)[name]
            text = shown(value, kind)
            assert cell(found, label, name).text == text
            assert text in line
            assert f">{text}" in page
            assert float(in_full[name]) == pytest.approx(value)
    assert "140.0" not in markdown, "bits per byte of 1.4 are no percentage"


def test_marks_are_those_of_exact_tests_and_of_the_metric_s_direction(odd):
    found = table(odd, "metrics")
    for name in ("pile", "cola"):
        places = [cell(found, label, name).place for label in ("bi", "ppl")]
        assert places == [1, 0], "less is better of pile, more of cola"
    for name in ("cola", "pile", "one"):  # no standard error: nothing is said
        cells = [cell(found, label, name) for label in MEASURED]
        assert all(each.marks == each.error == "" for each in cells)
    assert cell(found, "ppl", "piqa").marks.startswith("↓")
    assert cell(found, "bi", "piqa").marks == ""
    few = cell(found, "ppl", "group").judgement.base
    assert few.value == pytest.approx(-0.5), "of the mean that is shown"


# Other forms, and the verb


def test_markdown_and_csv_have_every_row(grid):
    markdown, files = grid.markdown(), grid.csv()
    for each in grid.tables:
        parsed = list(csv.reader(io.StringIO(files[f"{each.key}.csv"])))
        assert len(parsed) == 1 + len(each.rows)
        assert {len(line) for line in parsed} == {len(parsed[0])}
        section = markdown.split(f"## {each.title}\n")[1].split("\n## ")[0]
        lines = [line for line in section.splitlines() if line.startswith("|")]
        assert len(lines) == 2 + len(each.rows) + sum(bool(block.title) for block in each.blocks)
        assert {len(re.split(r"(?<!\\)\|", line)) for line in lines} == {len(each.columns) + 2}


def test_a_report_is_replaced_and_nothing_else_is(tmp_path):
    runs = stores.write(tmp_path / "runs", trials=1, documents=20, nasty=False)
    output = write_report(runs, tmp_path / "report.html")
    first = output.read_text(encoding="utf-8")
    assert write_report(runs, output).read_text(encoding="utf-8") == first
    (tmp_path / "mine.html").write_text("<!doctype html>mine")
    with pytest.raises(OutputError, match="it exists"):
        write_report(runs, tmp_path / "mine.html")


def test_the_verb_writes_a_page_and_says_what_was_found(tmp_path):
    runs = stores.write(tmp_path / "runs", trials=4, documents=20, nasty=False)
    assert json.loads(ended("report", runs, "--json", "--csv", tmp_path / "csv").stdout)["output"] is None
    said, report = json.loads(ended("report", runs, "--json").stdout), Report.of(runs)
    assert Path(said["output"]) == runs / "report.html"
    assert said["trials"] == {"done": len(report.findings.runs.trials), "running": 0, "failed": 0, "waiting": 0}
    assert said["lead"] == report.opening.lead
    assert [each["key"] for each in said["tables"]] == [each.key for each in report.tables]
    assert ended("report", runs, "--markdown", "--json").exit_code == 2
