"""Results as a prompt, a notebook and pandas show them."""

from __future__ import annotations

import csv
import html
import io
import re

import pytest
import torch
from markdown_it import MarkdownIt

import shortstack as ss
from shortstack.cli.console import show_result
from shortstack.machine.formats import MISSING, show_layers
from shortstack.machine.tables import Table, markdown_text
from zoo import tiny

TOKENS = ss.Tokens.given(torch.randint(3, 90, (4, 12), generator=torch.Generator().manual_seed(1)))
FP32 = ss.Compute(dtype="float32")


def cells(text):
    """The rows of a table of HTML."""
    rows = text.split("<tr>")[1:]
    return [[html.unescape(cell) for cell in re.findall("<t[dh][^>]*>(.*?)</t[dh]>", row)] for row in rows]


def test_cells_are_escaped_and_numbers_are_as_people_read_them():
    table = Table.of("<b>", ("name", "value"), [("<script>", 1234.5), ("&", 7), ("none", None), ("yes", True)])
    assert "<script>" not in table.html()
    assert "<caption>&lt;b&gt;</caption>" in table.html()
    assert cells(table.html()) == [
        ["name", "value"],
        ["<script>", "1,234"],
        ["&", "7"],
        ["none", MISSING],
        ["yes", "yes"],
    ]


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    checkpoint = ss.Checkpoint.open(tiny("llama"))
    scores = ss.score(checkpoint, TOKENS, metrics=["bi", "ppl"], compute=FP32)
    plan = ss.select_layers(scores, metric="ppl", drop=2)
    pruned = ss.prune(checkpoint, plan, tmp_path_factory.mktemp("cut") / "out")
    return {
        "Scores": scores,
        "Plan": plan,
        "DepthCurve": ss.depth_curve(checkpoint, TOKENS, compute=FP32),
        "Verification": ss.verify(pruned),
        "Profile": ss.profile(pruned, against=checkpoint, timing=ss.Timing("1", prompt=4, new_tokens=2, repeats=1)),
    }


def test_a_result_is_one_short_line_and_a_table(results):
    for name, result in results.items():
        assert re.fullmatch(rf"<{name}: .{{5,200}}>", repr(result))
        head, *rows = cells(result.table().html())
        assert result.table().html() in result._repr_html_()
        frame = result.to_pandas()
        assert [name for name in frame.columns if not name.endswith(" s.e.")] == [
            column.label for column in result.table().columns
        ]
        assert head == [column.heading for column in result.table().columns]
        assert len(frame) == len(rows)


def test_every_form_of_a_table_has_its_rows_and_numbers(results, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "60")
    for result in results.values():
        table = result.table()
        texts = [[cell.text for cell in row.cells] for row in table.rows]
        markdown = [line.strip("| ").split(" | ") for line in table.markdown().splitlines()[2:]]
        assert len(markdown) == len(texts)
        for row, words in zip(markdown, texts, strict=True):
            assert all(each.startswith(markdown_text(text)) for each, text in zip(row, words, strict=True))
        _, *values = csv.reader(io.StringIO(table.csv()))
        assert [row[1] for row in values] == [str(row.cells[0].value) for row in table.rows]
        show_result(result)
        lines = capsys.readouterr().out.splitlines()
        assert all(any(text in line for line in lines) for row in texts for text in row[:2])
        assert max(map(len, (line for line in lines if line.startswith("│")))) <= 60


def test_text_in_markdown_is_no_markup():
    harm = "~~old~~ see https://evil.example or www.evil.example $a$ @me `code` [x](//y) <b> # no"
    tokens = (
        MarkdownIt("commonmark").enable(["table", "strikethrough"]).parse(f"| {markdown_text(harm)} | |\n|---|---|\n")
    )
    inline = [child for token in tokens for child in token.children or ()]
    assert {child.type for child in inline} == {"text"}
    assert "".join(child.content for child in inline) == harm
    assert not re.search(r"(?<!\\)[~@$]|\w://|www\.", markdown_text(harm)), "what GitHub and pandoc make markup of"


def test_the_values_of_a_table_are_those_of_the_result(results):
    scores, plan, curve = results["Scores"], results["Plan"], results["DepthCurve"]
    frame = scores.to_pandas()
    assert tuple(frame["ppl"]) == scores.scores["ppl"]
    assert tuple(frame["bi"]) == scores.scores["bi"]
    saved = plan.to_pandas().set_index("plan")
    assert list(saved.loc["layers"]) == [8, 6, 6 / 8 - 1]
    assert plan.table().notes == ["removed: " + show_layers(plan.removed), "kept: " + show_layers(plan.kept)]
    assert list(curve.to_pandas()["loss"]) == [depth.loss for depth in curve.depths]
    profile = results["Profile"].to_pandas().set_index("counted")
    assert list(profile.loc["parameters"]) == [
        results["Profile"].counts.parameters.total,
        results["Profile"].against.counts.parameters.total,
        results["Profile"].counts.parameters.total / results["Profile"].against.counts.parameters.total,
    ]
    decode = profile.loc["decode, tokens/s, batch 1"]
    assert decode.iloc[0] == results["Profile"].speed[0].decode_tokens_per_s


def test_an_evaluation_is_a_row_for_each_text(tmp_path):
    from zoo import speaking

    folder = speaking(tmp_path / "model")
    text, quiet = ss.EvaluationText("pydoc", length=32, samples=2), ss.GenerationChecks(probes=True, probe_items=2)
    found = ss.evaluate(folder, text=text, generation=quiet, compute=FP32)
    frame, text = found.to_pandas().set_index(["measured", "metric"]), found.perplexity["pydoc"]
    assert list(frame.loc[("pydoc", "nats per token"), ["value", "value s.e.", "n"]]) == [
        text.loss,
        text.loss_stderr,
        text.tokens,
    ]
    assert frame.loc[("pydoc", "perplexity"), "value"] == text.value
    assert {name for name, _ in frame.index} == {"pydoc", "generation probes"}, "two items each are too few for rows"
    assert re.fullmatch(r"<Evaluation: .{5,200}>", repr(found))


def test_a_checkpoint_is_a_short_line():
    assert len(repr(ss.Checkpoint.open(tiny("llama")))) < 400


def test_scores_and_plans_are_loaded_as_they_were_saved(results, tmp_path):
    results["Scores"].save(tmp_path / "scores.json")
    results["Plan"].save(tmp_path / "plan.json")
    assert ss.Scores.load(tmp_path / "scores.json").scores == results["Scores"].scores
    assert ss.Plan.load(tmp_path / "plan.json") == results["Plan"]
    with pytest.raises(ss.errors.DataError, match=r"plan\.json"):
        ss.Scores.load(tmp_path / "plan.json")
