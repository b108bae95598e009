"""The opening of a report, against numbers worked out here: keep it or not, and which setting."""

from __future__ import annotations

import math
import random
from dataclasses import replace

import pytest
from scipy import stats

from shortstack.report import Report
from shortstack.report.measures import difference
from shortstack.report.reporter import done, scope
from shortstack.runs.records import Conclusion, read
from stores import HEALS, Store, evaluation, healed, perplexity, plan, probe, settings, task

RIGHT = [1.0] * 30 + [0.0] * 10  # 75 %
CUT = [1.0] * 12 + [0.0] * 28  # 18 answers lost, none gained


def of_two_tasks(outcomes, other):
    second = [1.0] * round(40 * other) + [0.0] * (40 - round(40 * other))
    return {"tasks": {"piqa": task(outcomes), "arc": task(second)}}


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "runs")


def found(store, folder):
    store.close()
    return read(folder / "runs")


def said(store, folder):
    return Report.of(found(store, folder)).opening.lead


def cuts(store, amounts, per_round=None):
    """A trial for each number of layers, with its outcomes."""
    for layers, outcomes in amounts.items():
        cut = of_two_tasks(outcomes, 0.5 if outcomes is RIGHT else 0.0)
        known = settings(drop=str(layers), layers_per_round=per_round)
        base = of_two_tasks(RIGHT, 0.5)
        store.measured(known, evaluate_base=base, plan=plan("bi", layers), evaluate_pruned=cut)


# Of several settings: which


def test_it_is_of_the_largest_cut_that_is_not_shown_to_be_worse(store, tmp_path):
    cuts(store, {3: RIGHT, 8: RIGHT, 16: CUT})
    cuts(store, {8: CUT}, 1)
    report = Report.of(found(store, tmp_path))
    first, second = report.opening.lead.split(". ")
    assert first.startswith("With 8 layers removed, pruned is best, average 62.5 ± ")
    assert "; the next, 1 at a time, is 47.5 points worse (95% interval " in first, "18 of 40 and 20 of 40, on average"
    assert first.endswith("), which is more than noise")
    assert second.startswith("It is worth keeping as far as this study can tell: it is 0.0 points apart")
    assert second.endswith("; with 16 layers removed every setting is worse.")
    table = report.tables[0]
    assert table is report.opening.table
    names = ["unpruned", "8 layers: pruned", "8 layers: 1 at a time", "3 layers: pruned", "16 layers: pruned"]
    assert [row.label for row in table.rows] == names
    assert table.rows[2].cells[2].value == pytest.approx(-(0.45 + 0.5) / 2)


@pytest.mark.parametrize(
    ("amounts", "words"),
    [
        (
            {3: CUT, 8: RIGHT, 16: CUT},
            ["8 layers removed", "unclear whether to keep it", "every setting with 3 layers removed is worse."],
        ),
        ({3: CUT, 8: CUT}, ["3 layers removed", "only if the smaller size is worth it: it is 47.5 points worse"]),
    ],
)
def test_what_is_worse_is_said_to_be(store, tmp_path, amounts, words):
    cuts(store, amounts)
    lead = said(store, tmp_path)
    assert [word for word in words if word not in lead] == []


@pytest.mark.parametrize(
    ("quality", "words"),
    [
        (1.0, "It is worth keeping as far as this study can tell"),
        (0.3, "It is not worth keeping: its generated text has collapsed."),
    ],
)
def test_what_has_collapsed_is_not_worth_keeping(quality, words, store, tmp_path):
    for metric in ("bi", "ppl"):
        known = {"plan": plan(metric, 3), "evaluate_pruned": evaluation(quality)}
        store.measured(settings(metric=metric), evaluate_base=evaluation(1.0), **known)
    assert words in said(store, tmp_path)


def test_a_healing_that_is_called_as_its_data_keeps_its_name(store, tmp_path):
    for name, data, outcomes in (("alpaca", "alpaca", RIGHT), ("chats", "chats", CUT)):
        heal = {"name": name, "method": "lora", "data": data, "num_train_epochs": 1 + (name == "chats")}
        known = {"evaluate_base": of_two_tasks(RIGHT, 0.5), "evaluate_healed": of_two_tasks(outcomes, 0.5)}
        store.measured(settings(heal=heal), **known)
    findings = Report.of(found(store, tmp_path)).findings
    assert {findings.name(each) for each in findings.results} == {"alpaca", "chats · chats"}


def test_of_one_window_it_is_said_that_nothing_is_known(store, tmp_path):
    for metric, loss in (("bi", 9.0), ("ppl", 14.0)):
        cut, base = ({"perplexity": {"t": perplexity(value, None)}} for value in (loss, 2.5))
        store.measured(settings(metric=metric), evaluate_base=base, plan=plan(metric, 8), evaluate_pruned=cut)
    report = Report.of(found(store, tmp_path))
    assert "has no standard error to tell them apart" in report.opening.lead
    assert "is not known: there is no standard error." in report.opening.lead
    for table, row in ((report.tables[0], 1), (report.tables[1], 1)):
        change, interval = table.rows[row].cells[2:4]
        assert (change.value, interval.value) == (pytest.approx(math.exp(6.5)), None), "a factor of the perplexity"


def test_of_many_equal_settings_none_is_told_apart(store, tmp_path):
    """The best and the worst of many differ by chance; the best is compared with the next."""
    rng = random.Random(0)
    for metric in ("bi", "ppl", "kl", "taylor", "random", "reverse", "angular"):
        cut = {"tasks": {"piqa": task([float(rng.random() < 0.5) for _ in range(40)])}}
        store.measured(settings(metric=metric), evaluate_base=evaluation(1.0), plan=plan("bi", 8), evaluate_pruned=cut)
    report = Report.of(found(store, tmp_path))
    findings = report.findings
    (_, best), *_, (_, worst) = findings.ranked(findings.results)
    assert difference(best, worst).significant, "alone these two are told apart"
    assert "), which may be noise. " in report.opening.lead


def test_options_are_named_only_where_they_tell_settings_apart(store, tmp_path):
    for rates in ((1e-4, 1e-4), (1e-4, 1e-5)):
        for method, rate in zip(("lora", "full"), rates, strict=True):
            heal = {"name": "", "method": method, "learning_rate": rate, "data": "pydoc"}
            known = {"plan": plan("bi", 3), "heal": healed(method, 2.0), "evaluate_healed": evaluation(0.9)}
            store.measured(settings(heal=heal), evaluate_base=evaluation(1.0), **known)
    runs = found(store, tmp_path)
    alike = Report.of(replace(runs, trials=runs.trials[:2])).opening.lead
    assert "lora is best" in alike
    assert "(learning rate" in Report.of(runs).opening.lead


# Of one setting: keep it


@pytest.fixture
def one(store, tmp_path):
    """As shrink leaves it: perplexity 3 times that of the unpruned model, 10 of 40 probe items right instead of 20."""

    def measured(loss, right, outcomes):
        items = [1.0] * right + [0.0] * (20 - right)
        texts = {"a": perplexity(2.0), "/b/c.txt": perplexity(loss)}
        probes = {"copying": probe(items), "json": probe([0.0] * 20)}
        return {"perplexity": texts, "probes": probes} | {"tasks": {"arc": task(outcomes)}}

    gone = {**plan("bi", 8), "removed": [3, 4], "bytes": {"before": 1000, "after": 750}}
    repair = {"loss_unpruned": 2.0, "loss_before": 4.0, "loss_after": 2.5, "kept": True, "fits": [{"layer": 2}] * 2}
    speed = {"decode": {"value": 1.5, "low": 1.25, "high": 1.75, "confidence": 0.94}}
    steps = {"evaluate_base": measured(2.0, 20, RIGHT), "prune": {**gone, "repair": repair}, "speed": speed}
    after = {"heal": healed("lora", 2.0) | {"trained_layers": [2, 3, 5]}}
    last = measured(2.0 + math.log(3), 10, CUT)
    store.measured(settings(heal=HEALS["lora"]), **steps, **after, evaluate_healed=last)
    runs = found(store, tmp_path)
    answers = ({"prompt": "<Who?>", "unpruned": "I.", "shortened": "You."},)
    conclusion = Conclusion(
        "Do not keep it.", ("For these reasons.", "And <these>."), answers, "shortstack shrink <demo>"
    )
    return replace(runs, title="shrink demo", conclusion=conclusion)


def test_one_setting_is_kept_or_not_with_its_price(one):
    report = Report.of(one)
    assert report.opening.lead.startswith(
        "Do not keep it: its perplexity on c.txt is 3.00 times the unpruned model's and 25% of its generation probes are "
        "right instead of 50%. Without 2 of 30 layers it takes 750 B instead of 1.0 kB (25% less), writes 1.50 times as "
        "fast (1.25 to 1.75) and is 45.0 points worse on arc (95% interval "
    )
    page = report.html()
    in_order = [
        "For these reasons.",
        "And &lt;these&gt;.",
        "&lt;Who?&gt;",
        "<code>shortstack shrink &lt;demo&gt;</code>",
    ]
    places = [page.index('class="lead"'), *map(page.index, in_order)]
    assert places == sorted(places)


def test_its_table_has_each_measure_with_the_interval_of_its_change(one):
    rows = {row.label: row.cells for row in Report.of(one).tables[0].rows}
    measures = ["arc (%)", "perplexity on a", "perplexity on c.txt", "generation probes (%)"]
    assert list(rows) == [*measures, "weights", "decoding speed"]
    lost = [cut - right for cut, right in zip(CUT, RIGHT, strict=True)]
    low, high = stats.t.interval(0.95, len(lost) - 1, loc=-0.45, scale=stats.sem(lost))
    assert [cell.value for cell in rows["arc (%)"][1:]] == [0.75, 0.3, pytest.approx(-0.45), pytest.approx((low, high))]
    reach = stats.norm.ppf(0.975) * math.hypot(0.02, 0.02)
    change, interval = rows["perplexity on c.txt"][3:]
    assert change.value == pytest.approx(3)
    assert interval.value == pytest.approx((3 * math.exp(-reach), 3 * math.exp(reach)))
    assert [cell.value for cell in rows["generation probes (%)"][1:4]] == [0.5, 0.25, -0.25]
    assert [cell.value for cell in rows["weights"][1:4]] == [1000, 750, -0.25]
    assert [cell.value for cell in rows["decoding speed"][3:]] == [1.5, (1.25, 1.75)]


def test_its_picture_has_the_share_that_is_kept_and_its_layers_are_drawn(one):
    report = Report.of(one)
    assert report.opening.figure
    drawn = str(report.opening.figure.svg)
    for words in ("arc: 40% kept", "likelihood of a: 100% kept", "likelihood of c.txt: 33% kept", "probes: 50% kept"):
        assert words in drawn
    page = report.html()
    assert [page.count(f'class="layer {state}') for state in ("removed", "refitted", "kept")] == [2, 1, 27]
    for words in ("layer 2: refitted, trained", "layer 3: removed", "layer 5: kept, trained", "layer 7: kept, trained"):
        assert words in page
    dropped = one.trials[0].steps["prune"].result | {"repair": {"kept": False, "fits": [{"layer": 2}]}}
    trial = one.trials[0]
    steps = {**trial.steps, "prune": replace(trial.steps["prune"], result=dropped)}
    assert "layer refitted" not in Report.of(replace(one, trials=(replace(trial, steps=steps),))).html()


# Below it


def test_what_was_studied(store, tmp_path):
    text = {"text": "pydoc", "samples": 10, "length": 128, "seed": None}
    for metric, calibration in (("bi", text), ("ppl", text), ("reverse", None)):
        for heal in (None, HEALS["lora"]):
            known = {"evaluate_pruned": evaluation(0.9), "evaluate_healed": evaluation(0.95)}
            store.measured(settings(metric=metric, calibration=calibration, heal=heal), **known)
    findings = Report.of(found(store, tmp_path)).findings
    assert scope(findings) == (
        "6 settings of demo that differ in metric (3), calibration (2), heal (2) and data (2), measured on 4 tasks, "
        "2 perplexities and 2 probes. Where nothing else is said: calibrated on pydoc 10 x 128 and healed on alpaca."
    )
    assert done(findings.runs).startswith("Trials: 6 done. ")
