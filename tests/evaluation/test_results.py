"""Results: comparisons, averages, and what their table shows."""

import math
import re
from dataclasses import replace

import pytest

from evaluations import ITEMS, evaluation, repetition, text
from shortstack.cli.console import show_result
from shortstack.errors import DataError
from shortstack.evaluation import EvalResult, TaskResult
from shortstack.evaluation.suites import SUITES
from shortstack.machine.formats import MINUS


def result(metric: str, value: float, outcomes=(1.0, 0.0), *, better: bool = True, chance=0.5) -> TaskResult:
    known = chance, better, tuple(map(str, range(len(outcomes)))), outcomes
    return TaskResult(metric, value, 0.1, 2, "1", 0, False, "float32", *known)


@pytest.fixture
def shown(monkeypatch, capsys):
    def show(found):
        monkeypatch.setenv("COLUMNS", "200")
        show_result(found)
        return " ".join(capsys.readouterr().out.split())

    return show


def test_probes_are_paired_item_by_item():
    base = replace(evaluation({}, (ITEMS, ITEMS)), model="base")
    found = evaluation({}, (ITEMS - 6, ITEMS), repeated=0.9).compare_to(base)
    assert found.against == {}
    assert found.to_dict()["base"]["model"] == "base"
    pair = found.probes_against["0"]
    assert (pair.difference, pair.p) == (-6 / ITEMS, pytest.approx(2 * 0.5**6))
    assert pair.p_holm == pytest.approx(2 * pair.p), "repetition is surer"
    assert found.probes_against["1"].difference == 0
    repeated = found.probes_against["repetition"]
    assert repeated.difference == pytest.approx(-0.8), "less is better"
    assert repeated.p == pytest.approx(2 * 0.5**8), "the sign test: each text repeats more"
    mean, table = found.table().rows[-1], found.table()
    difference = mean.cells[[column.label for column in table.columns].index("difference")]
    errors = [found.probes_against[name].stderr for name in "01"]
    assert mean.label == "generation probes"
    assert difference.value == pytest.approx(-3 / ITEMS), "each probe counts the same"
    assert difference.stderr == pytest.approx(math.hypot(*errors) / 2)


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (evaluation({}, (3,)), EvalResult("base")),
        (EvalResult("m", {"a.txt": None}), EvalResult("base", {"b.txt": None})),
        (EvalResult("m", tasks={"a": result("acc", 1)}), EvalResult("base", tasks={"b": result("acc", 1)})),
    ],
    ids=["probes", "texts", "tasks"],
)
def test_results_of_other_measures_are_not_compared(ours, theirs):
    with pytest.raises(DataError):
        ours.compare_to(theirs)


def test_retention_above_chance_is_by_the_level_of_each_task():
    levels = {"a": 0.25, "b": 0.5, "c": None}
    ours, theirs = (
        EvalResult("m", tasks={name: result("acc", 1, right, chance=chance) for name, chance in levels.items()})
        for right in ((1.0, 1.0, 1.0, 0.0) * 10, (1.0,) * 40)
    )
    kept = {name: pair.retention_above_chance for name, pair in ours.compare_to(theirs).against.items()}
    assert kept == {"a": pytest.approx(100 * 0.5 / 0.75), "b": pytest.approx(50), "c": None}


def test_averages_are_of_whole_suites_or_of_all_shares(shown):
    paper = {name: result("acc", 0.1 * number) for number, name in enumerate(SUITES["paper"], start=1)}
    found = EvalResult("m", tasks={**paper, "gsm8k": result("exact_match", 0.0)})
    assert found.to_dict()["averages"] == found.averages == {"paper": pytest.approx(0.45)}
    assert re.search(r"Average, paper │ mean of shares │ 0\.4500 │ 0\.4500 ", shown(found.compare_to(found)))
    some = EvalResult("m", tasks={name: paper[name] for name in ("piqa", "arc_easy")})
    assert some.averages == {"tasks": pytest.approx(0.5)}
    fewer = replace(some, base=EvalResult("base", tasks={**some.tasks, "boolq": result("acc", 0.9)}))
    assert [cell.value for cell in fewer.table().rows[-1].cells[2:4]] == [pytest.approx(0.5)] * 2, "both of the same"
    language = {"wikitext": result("word_perplexity", 30.0), "lambada_openai": result("acc", 0.5)}
    assert EvalResult("m", tasks=language).averages == {}, "a single share"


def test_perplexities_of_other_tokens_do_not_compare():
    windows = {digest: text(2.0).windows | {"sha256": digest, "bos": False} for digest in "ab"}
    one, same, other = (EvalResult("m", {"t": replace(text(2.0), windows=windows[digest])}) for digest in "aab")
    assert not one.compare_to(same).table().notes
    assert "t: the two were measured on other tokens" in " ".join(one.compare_to(other).table().notes)


def test_table_names_the_unit_of_differences_and_what_is_not_compared(shown):
    pages = result("word_perplexity", 30.0, (-3.0, -3.8), better=False)
    whole = result("mcc", 0.4, (math.nan, math.nan))
    ours = {"wikitext": pages, "own": result("brier_score", 0.3, (-0.3, -0.3), better=False), "cola": whole}
    theirs = {**ours, "wikitext": replace(pages, value=20.0, outcomes=(-2.5, -3.5))}
    found = EvalResult("m", tasks=ours, probes={"repetition": repetition(0.5)})
    found = found.compare_to(EvalResult("base", tasks=theirs, probes={"repetition": repetition(0.1)}))
    table = shown(found)
    assert re.search(rf"wikitext │ word_perplexity │ 30.0000 ± \S+ │ 20.0000 ± 0.1000 │ .* │ {MINUS}0.4000", table)
    assert "are of the log-likelihood in nats per word, higher is better." in table
    for name, metric in (("own", "brier_score"), ("repetition", "repeated 4-grams")):
        assert f"{name}: of {metric} less is better; the difference and its interval have the sign turned." in table
    assert "cola: not compared, since mcc is one number for all documents" in table
    assert [*found.against] == ["wikitext", "own"]
