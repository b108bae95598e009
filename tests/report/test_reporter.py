"""The report's rows against numbers worked out by hand, its figures and forms, and its page against hostile names."""

import csv
import html
import io
import json
import math
import re
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from scipy import stats

import stores
from command import ended
from shortstack.errors import OutputError
from shortstack.machine.formats import shown
from shortstack.report import Report, write_report
from shortstack.report.figures import figures
from shortstack.report.labels import factors
from shortstack.runs.records import Conclusion, read
from stores import HEALS, Store, healed, perplexity, plan, probe, profile, settings, task

BASE = [1.0] * 30 + [0.0] * 10  # 75 %
CUT = [1.0] * 12 + [0.0] * 28  # 30 %: 18 answers lost, none gained
HEALED = [1.0] * 24 + [0.0] * 16  # 60 %: 6 lost, none gained


def evaluated(outcomes, *, other=0.5, loss=2.0):
    second = [1.0] * round(40 * other) + [0.0] * (40 - round(40 * other))
    return {"tasks": {"piqa": task(outcomes), "arc": task(second)}, "perplexity": {"text": perplexity(loss, 0.1)}}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


@pytest.fixture
def made(store, tmp_path):
    """Return the report of what the test stored."""

    def report():
        store.close()
        return Report.of(tmp_path / "runs")

    return report


def table(report, key):
    return next(table for table in report.tables if table.key == key)


def cell(found, label, heading):
    row = next(row for row in found.rows if row.label == label)
    return row.cells[[column.label for column in found.columns].index(heading)]


def two_metrics(store):
    for metric, outcomes, other, loss in (("reverse", CUT, 0.25, 3.0), ("bi", HEALED, 0.5, 2.1)):
        cut = evaluated(outcomes, other=other, loss=loss)
        known = settings(metric=metric)
        store.measured(known, evaluate_base=evaluated(BASE), plan=plan(metric, 8), evaluate_pruned=cut)


# Tables


def test_rows_have_values_averages_and_paired_tests(store, made):
    two_metrics(store)
    report = made()
    found = table(report, "metrics")
    assert [row.label for row in found.rows] == ["base model", "reverse", "bi"]
    head = ["metric", "average", "change", "95% interval", "p, Holm", "piqa", "arc", "text", "layers removed"]
    assert [column.label for column in found.columns] == head
    average, errors = cell(found, "reverse", "average"), [statistics.stdev(CUT), statistics.stdev([1] * 10 + [0] * 30)]
    assert average.value == pytest.approx((0.30 + 0.25) / 2)
    assert average.stderr == pytest.approx(math.hypot(*errors) / math.sqrt(40) / 2)
    text = cell(found, "bi", "text")
    assert (text.value, text.stderr) == (pytest.approx(math.exp(2.1)), pytest.approx(math.exp(2.1) * 0.1))
    assert cell(found, "reverse", "layers removed").value == "22-29"
    lost = cell(found, "reverse", "piqa")
    # 18 answers lost and none gained: McNemar's exact p is 2 / 2^18. Two of the block's 8 comparisons are surer.
    assert (lost.marks, lost.place) == ("↓", 0)
    assert lost.why.startswith(
        f"against the base model: {shown(-18 / 40, 'points')} points (p < 0.001, McNemar's exact"
    )
    assert cell(found, "bi", "piqa").place == 1
    assert cell(found, "bi", "arc").marks == "", "p is 1"
    assert cell(found, "reverse", "p, Holm").value == pytest.approx(7 * _p_of_average(), rel=1e-6)


def _p_of_average():
    """Of the mean of two tasks: Welch's degrees of freedom."""
    lost = [[a - b for a, b in zip(CUT, BASE, strict=True)], [-1.0] * 10 + [0.0] * 30]
    variances = [statistics.variance(each) / 40 / 4 for each in lost]
    freedom = sum(variances) ** 2 / sum(variance**2 / 39 for variance in variances)
    return 2 * stats.t.sf((0.45 + 0.25) / 2 / math.sqrt(sum(variances)), freedom)


def test_seeds_of_a_setting_are_one_row_with_both_variances(store, made):
    for seed, outcomes in ((0, CUT), (1, HEALED)):
        store.measured(settings(seed=seed), evaluate_pruned={"tasks": {"piqa": task(outcomes)}})
    (found,) = made().findings.results
    measure = found.measures["task:piqa"]
    documents = [statistics.variance(each) / 40 for each in (CUT, HEALED)]
    assert measure.value == pytest.approx((0.3 + 0.6) / 2)
    spread = statistics.variance([0.3, 0.6]) / 2
    assert measure.estimate.stderr == pytest.approx(math.sqrt(statistics.mean(documents) + spread))
    assert measure.sample.outcomes["d15"] == 0.5, "right in one seed, wrong in the other"


def test_missing_and_infinite_numbers_are_told_apart(store, made):
    store.measured(settings(metric="bi"), evaluate_pruned=evaluated(CUT))
    store.measured(settings(metric="reverse"), evaluate_pruned={"tasks": {"piqa": task(CUT)}})
    for drop, loss, value in (("30%", 800.0, None), ("50%", None, None), ("60%", math.nan, math.nan)):
        data = {"perplexity": {"text": {"value": value, "loss": loss, "loss_stderr": None, "tokens": 10}}}
        store.measured(settings(drop=drop), plan=plan("bi", 3), evaluate_pruned=data)
    report = made()
    metrics, every = table(report, "metrics"), table(report, "settings")
    assert cell(metrics, "bi", "average").value == pytest.approx(0.4)
    assert cell(metrics, "reverse", "average").value is None
    assert [cell(every, row.label, "text").text for row in every.rows[2:]] == ["∞", "NaN", "NaN"]
    assert report.html().count('data-v="inf"') == 1


@pytest.mark.parametrize("objective", ["sft", "distill"])
def test_healing_stands_beside_what_it_healed(objective, store, made):
    for method, outcomes in (("partial", HEALED), ("lora", CUT)):
        result = {**healed(method, 2.0), "objective": objective if method == "lora" else "sft"}
        both = {"evaluate_base": evaluated(BASE), "evaluate_pruned": evaluated(CUT)}
        after = {"heal": result, "evaluate_healed": evaluated(outcomes)}
        store.measured(settings(heal=HEALS[method]), seconds={"heal": 100}, **both, **after)
    found = table(made(), "healing")
    assert [row.label for row in found.rows] == ["base model", "pruned, not healed", "last 3", "lora"]
    assert (cell(found, "last 3", "trained").value, cell(found, "lora", "time").value) == (38_938_176, 100)
    loss, taught = healed("lora", 2.0)["loss"]["held_out"], "held-out KL from the teacher"
    assert cell(found, "last 3", "held-out loss").value == loss
    assert (taught in [column.label for column in found.columns]) == (objective == "distill")
    if objective == "distill":
        assert [cell(found, name, taught).value for name in ("last 3", "lora")] == [None, loss], "they do not compare"


def test_what_is_not_calibrated_stands_in_each_calibrations_block(store, made):
    texts = [{"text": "pydoc", "samples": samples, "length": 128, "seed": None} for samples in (5, 50)]
    for metric, text in [(metric, text) for metric in ("bi", "ppl") for text in texts] + [("random", None)]:
        store.measured(settings(metric=metric, calibration=text), evaluate_pruned=evaluated(CUT))
    blocks = table(made(), "metrics").blocks
    assert [sorted(row.label for row in block.rows) for block in blocks] == [["bi", "ppl", "random"]] * 2


@pytest.mark.parametrize("state", ["running", "failed"])
def test_a_trial_that_has_not_healed_shows_nothing_as_healed(state, store, made):
    shared = {"evaluate_base": evaluated(BASE), "evaluate_pruned": evaluated(CUT)}
    store.measured(settings(), **shared)
    store.measured(settings(heal=HEALS["partial"]), **shared, evaluate_healed=evaluated(HEALED))
    store.measured(settings(heal=HEALS["lora"]), **shared, state=state)
    found = made().findings.results
    assert [result.role for result in found] == ["evaluate_pruned", "evaluate_healed"]
    assert [result.measures["task:piqa"].value for result in found] == [0.3, 0.6]


@pytest.mark.parametrize("differs", ["device", "threads", None])
def test_sizes_say_whether_speeds_compare(differs, store, made):
    known, other = {"device": "cpu", "threads": 2}, {"device": "cuda", "threads": 1}
    changed = known | ({differs: other[differs]} if differs else {})
    steps = {"profile": profile(22) | changed, "profile_base": profile(30) | known}
    for metric in ("reverse", "bi"):
        store.measured(settings(metric=metric), plan=plan(metric, 8), evaluate_pruned=evaluated(CUT), **steps)
    found = table(made(), "sizes")
    assert [row.label for row in found.rows] == ["base model", "8"]
    assert cell(found, "8", "weights").value == profile(22)["weight_bytes"]
    assert ("they do not compare" in found.caption) == (differs is not None)


def group(few, many):
    """A group whose tasks count the same: so many right of four, and of thirty-six."""
    documents = [*(f"few/{n}" for n in range(4)), *(f"many/{n}" for n in range(36))]
    outcomes = [1.0] * few + [0.0] * (4 - few) + [1.0] * many + [0.0] * (36 - many)
    return task(outcomes) | {"documents": documents, "macro": True, "value": (few / 4 + many / 36) / 2}


def whole(metric, value, *, higher):
    """A metric of all documents together, which has no standard error."""
    known = task([0.0] * 40, metric) | {"value": value, "stderr": None, "higher_is_better": higher}
    return known | {"outcomes": [None] * 40}


@pytest.fixture
def odd(store, made):
    """Shares, and numbers of which more or less is better, with and without a standard error."""
    rows = {"unpruned": (40, 0.7, 0.5, 4, 2.5), "bi": (38, 0.9, 0.6, 4, 9.0), "ppl": (20, 1.4, 0.0, 0, 14.0)}
    measured = {
        name: {
            "tasks": {
                "piqa": task([1.0] * right + [0.0] * (40 - right)),
                "cola": whole("mcc", mcc, higher=True),
                "pile": whole("bits_per_byte", bits, higher=False),
                "group": group(few, 36),
            },
            "perplexity": {"one": perplexity(loss, None) | {"windows": {"sha256": "a"}, "window_losses": [loss]}},
        }
        for name, (right, bits, mcc, few, loss) in rows.items()
    }
    for metric in ("bi", "ppl"):
        both = {"evaluate_base": measured["unpruned"], "evaluate_pruned": measured[metric]}
        store.measured(settings(metric=metric), plan=plan(metric, 8), **both)
    return made(), measured


def test_every_form_has_the_same_numbers(odd):
    report, measured = odd
    found, page, markdown = table(report, "metrics"), html.unescape(report.html()), report.markdown()
    lines = list(csv.DictReader(io.StringIO(report.csv()["metrics.csv"])))
    for label, data in measured.items():
        label = "base model" if label == "unpruned" else label
        line = next(line for line in markdown.splitlines() if re.match(rf"\| \*?{label}\*? \|", line))
        in_full = next(line for line in lines if label in line.values())
        values = {name: result["value"] for name, result in data["tasks"].items()}
        values |= {"average": (values["piqa"] + values["group"]) / 2, "one": data["perplexity"]["one"]["value"]}
        for name, value in values.items():
            kind = {"cola": "number", "pile": "number", "one": "perplexity"}.get(name, "share")
            text = shown(value, kind)
            assert cell(found, label, name).text == text
            assert text in line
            assert f">{text}" in page
            assert float(in_full[name]) == pytest.approx(value)


def test_marks_follow_the_metrics_direction(odd):
    report, _ = odd
    found = table(report, "metrics")
    for name in ("pile", "cola"):
        assert [cell(found, label, name).place for label in ("bi", "ppl")] == [1, 0], "less of pile, more of cola"
    for name in ("cola", "pile", "one"):  # no standard error: nothing is said
        cells = [cell(found, label, name) for label in ("base model", "bi", "ppl")]
        assert all(each.marks == each.error == "" for each in cells)
    assert cell(found, "ppl", "piqa").marks.startswith("↓")
    assert cell(found, "bi", "piqa").marks == ""


# One setting, as shrink leaves it


@pytest.fixture
def one(store, tmp_path):
    """Perplexity 3 times the base model's, 10 of 40 probe items right instead of 20."""

    def measured(loss, right, outcomes):
        probes = {"copying": probe([1.0] * right + [0.0] * (20 - right)), "json": probe([0.0] * 20)}
        repetition = task([-0.1] * 8, "repeated 4-grams") | {"higher_is_better": False, "value": 0.1}
        texts = {"a": perplexity(2.0), "/b/c.txt": perplexity(loss)}
        return {"perplexity": texts, "probes": {**probes, "repetition": repetition}, "tasks": {"arc": task(outcomes)}}

    gone = {**plan("bi", 8), "removed": [3, 4], "bytes": {"before": 1000, "after": 750}}
    prune = {**gone, "repair": {"kept": True, "fits": [{"layer": 2}] * 2}}
    speed = {"decode": {"value": 1.5, "low": 1.25, "high": 1.75, "confidence": 0.94}}
    steps = {"evaluate_base": measured(2.0, 20, BASE), "prune": prune, "speed": speed}
    after = {"heal": healed("lora", 2.0) | {"trained_layers": [2, 3, 5]}}
    store.measured(settings(heal=HEALS["lora"]), **steps, **after, evaluate_healed=measured(2 + math.log(3), 10, CUT))
    store.close()
    answers = ({"prompt": "<Who?>", "base model": "I.", "pruned model": "You."},)
    conclusion = Conclusion("Do not keep it.", ("Because of <this>.",), answers, "shortstack shrink <demo>")
    return replace(read(tmp_path / "runs"), title="shrink demo", conclusion=conclusion)


def test_table_of_one_setting_has_each_measure_and_its_change(one):
    found, *others = Report.of(one).tables
    assert [other.key for other in others] == ["probes"]
    rows = {row.label: [cell.value for cell in row.cells[1:]] for row in found.rows}
    measured = ["arc (%)", "perplexity on a", "perplexity on c.txt", "repetition", "generation probes (%)"]
    assert [*rows] == [*measured, "weights", "decoding speed"]
    lost = [cut - right for cut, right in zip(CUT, BASE, strict=True)]
    interval = stats.t.interval(0.95, 39, loc=-0.45, scale=stats.sem(lost))
    assert rows["arc (%)"] == [0.75, 0.3, pytest.approx(-0.45), pytest.approx(interval)]
    reach = stats.norm.ppf(0.975) * math.hypot(0.02, 0.02)
    factor = pytest.approx((3 * math.exp(-reach), 3 * math.exp(reach)))
    assert rows["perplexity on c.txt"][2:] == [pytest.approx(3), factor]
    assert rows["generation probes (%)"][:3] == [0.5, 0.25, -0.25]
    assert rows["weights"][:3] == [1000, 750, -0.25]
    assert rows["decoding speed"][2:] == [1.5, (1.25, 1.75)]


def test_figures_of_one_setting_show_what_is_kept_and_its_layers(one):
    kept, layers = figures(Report.of(one).findings)
    for words in ("arc: 40% kept", "likelihood of a: 100% kept", "likelihood of c.txt: 33% kept", "probes: 50% kept"):
        assert words in kept.svg
    counts = [layers.svg.count(f'class="layer {state}') for state in ("removed", "refitted", "kept")]
    assert counts == [2, 1, 27]
    for words in ("layer 2: refitted, trained", "layer 3: removed", "layer 5: kept, trained", "layer 7: kept, trained"):
        assert words in layers.svg


def test_page_has_verdict_figures_table_answers_and_origin_in_order(one):
    page = Report.of(one).html()
    parts = ["Do not keep it.", "Because of &lt;this&gt;.", 'id="figures"', 'id="kept"', "&lt;Who?&gt;", 'id="origin"']
    places = [page.index(part) for part in parts]
    assert places == sorted(places)
    assert "<code>shortstack shrink &lt;demo&gt;</code>" in page


# Words


def test_healings_have_their_names_where_those_tell_them_apart():
    first, second = ({"name": "a", "method": "lora", "learning_rate": lr, "data": "alpaca"} for lr in (1e-4, 1e-5))
    found = factors([settings(heal=first), settings(heal=second)])
    assert [each["heal"] for each in found] == ["lora (learning rate 0.0001)", "lora (learning rate 1e-05)"]
    found = factors([settings(heal=first), settings(heal={**first, "name": "b", "data": "dolly"})])
    assert [(each["heal"], each["data"]) for each in found] == [("lora", "alpaca"), ("lora", "dolly")]
    assert factors([settings(heal=first), settings(heal={**second, "name": "b"})])[0]["heal"] == "a"


# Whole studies


@pytest.fixture(scope="module")
def grid(tmp_path_factory):
    """A study with everything in it, and with what goes wrong."""
    return Report.of(stores.write(tmp_path_factory.mktemp("grid"), documents=20))


def test_figures_of_a_study_are_what_is_kept_and_quality_against_depth(grid):
    kept, *drawn = figures(grid.findings)
    assert kept.title.startswith("What is kept of average")
    assert {figure.title.partition(",")[0] for figure in drawn} == {
        "average (%) against layers removed",
        "perplexity on wikitext against layers removed",
    }
    for figure in drawn:
        assert figure.svg.count("<title>") >= figure.svg.count("<circle") > 5
        assert "nan" not in figure.svg


def test_failed_trials_have_their_tracebacks(grid):
    assert "TrainingError: &lt;b>loss&lt;/b> is NaN" in grid.markdown().partition("\n## What failed\n\n")[2]
    section = grid.html().split('id="failed"')[1].split("</section>")[0]
    assert "1 trial failed" in section
    assert "TrainingError: &lt;b&gt;loss&lt;/b&gt; is NaN" in section


def test_nothing_in_a_store_becomes_markup_and_a_page_reaches_nothing(grid):
    page = grid.html()
    assert page.count("<script>") == page.count("</script>") == 1
    assert "<img" not in page
    assert html.escape(stores.NASTY, quote=False)[:60] in page.replace("&#39;", "'")
    assert "<script>" not in grid.markdown()
    assert re.search(r"""default-src 'none'[^"]*script-src 'sha256-[\w+/=]{44}'""", page)
    assert not re.search(r'(?:src|href)="(?!#|data:,")', page)


def test_markdown_and_csv_have_every_row(grid):
    markdown, files = grid.markdown(), grid.csv()
    for each in grid.tables:
        parsed = list(csv.reader(io.StringIO(files[f"{each.key}.csv"])))
        assert len(parsed) == 1 + len(each.rows)
        assert {len(line) for line in parsed} == {len(parsed[0])}
        section = markdown.split(f"## {each.title}\n")[1].split("\n## ")[0]
        lines = [line for line in section.splitlines() if line.startswith("|")]
        assert len(lines) == 2 + len(each.rows) + sum(bool(block.title) for block in each.blocks)


def test_a_report_is_replaced_and_nothing_else_is(tmp_path):
    runs = stores.write(tmp_path / "runs", trials=1, documents=20, nasty=False)
    output = write_report(runs, tmp_path / "report.html")
    first = output.read_text(encoding="utf-8")
    assert write_report(runs, output).read_text(encoding="utf-8") == first
    (tmp_path / "mine.html").write_text("<!doctype html>mine")
    with pytest.raises(OutputError):
        write_report(runs, tmp_path / "mine.html")


def test_verb_writes_a_page_and_lists_the_tables(tmp_path):
    runs = stores.write(tmp_path / "runs", trials=4, documents=20, nasty=False)
    assert json.loads(ended("report", runs, "--json", "--csv", tmp_path / "csv").stdout)["output"] is None
    found, report = json.loads(ended("report", runs, "--json").stdout), Report.of(runs)
    assert Path(found["output"]) == runs / "report.html"
    assert found["trials"] == {"done": 4, "running": 0, "failed": 0, "waiting": 0}
    assert found["scope"] == report.scope
    assert [each["key"] for each in found["tables"]] == [each.key for each in report.tables]
    assert ended("report", runs, "--markdown", "--json").exit_code == 2
