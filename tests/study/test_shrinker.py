"""shrink: the whole line into one folder that is a plain checkpoint, with its report and card; killed, it goes on."""

import html
import json
import re
import shutil
from dataclasses import fields

import pytest
import torch
import yaml
from transformers import AutoModelForCausalLM

from shortstack.checkpoint import Checkpoint
from shortstack.errors import (
    DataError,
    DiskFullError,
    InputError,
    OutputError,
    ShortstackError,
    ShortstackWarning,
    as_option,
    parameter,
)
from shortstack.evaluation import EvaluationText
from shortstack.machine.device import Compute
from shortstack.machine.formats import show_layers
from shortstack.machine.locks import OutputLock
from shortstack.planning.layer_sets import parse_layers
from shortstack.pruning import verify
from shortstack.study import ShrinkOptions, shrink
from shortstack.study.keeping import Share
from shortstack.study.kinds import HealStep, PruneStep
from shortstack.study.making import Making
from shortstack.study.shrinker import shrink_each
from studies import inline, make_data

pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("own_cache")
RECIPE = """
title: small
plan: {metric: ppl, drop: 2}
heal: {method: lora, rank: 2, epochs: 1, max_length: 32, batch_size: 4, lr: 0.01, seed: 3}
"""


@pytest.fixture
def tiny(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return make_data(tmp_path)


def shrunk(tiny, out="out", model="model", **changes):
    text = str(tiny / "text.txt")
    usual = {"recipe": str(tiny / "recipe.yaml"), "data": str(tiny / "lines.jsonl"), "text": text, "perplexity": text}
    compute = changes.pop("compute", Compute())
    options = ShrinkOptions(**{**usual, "samples": 4, "length": 16, "probe_items": 0, **changes})
    return shrink(str(tiny / model), tiny / out, options, compute=compute, launcher=inline)


def test_a_recipe_gives_a_checkpoint_with_its_card_and_report(tiny):
    made = shrunk(tiny)
    checkpoint = Checkpoint.open(tiny / "out")
    assert checkpoint.anatomy.layers == 4
    assert verify(checkpoint).ok
    assert checkpoint.weights_sha256 == made.steps["heal"]["weights_sha256"]
    page = html.unescape((tiny / "out" / "report.html").read_text(encoding="utf-8"))
    assert page.startswith("<!")
    assert all(text in page for said in made.beside.answers for text in said.values())
    assert (
        json.loads((tiny / "out" / "shrink.json").read_text())["steps"]["plan"]["removed"]
        == made.steps["plan"]["removed"]
    )
    assert not (tiny / "out.study").exists()
    card = (tiny / "out" / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert "base_model" not in front  # it is a folder here
    assert "| layers | 6 | 4 |" in card
    assert "$ shortstack heal pruned" in card
    assert "recipe.yaml says how." in card
    assert [set(said) for said in made.beside.answers] == [{"prompt", "unpruned", "shortened"}] * 3
    assert {name for name in made.steps if name.startswith("evaluate")} == {"evaluate_base", "evaluate_healed"}
    assert made.verdict in card.replace("&#34;", '"').replace("&gt;", ">").replace("&#39;", "'")


def test_the_report_sets_the_cut_beside_the_last_layers(tiny):
    """Against a forward pass of transformers for each point."""

    def loss(folder, skipped=()):
        model = AutoModelForCausalLM.from_pretrained(folder)
        kept = [each for number, each in enumerate(model.model.layers) if number not in skipped]
        model.model.layers = torch.nn.ModuleList(kept)
        with torch.no_grad():
            return float(model(input_ids=ids, labels=ids, use_cache=False).loss)

    made = shrunk(tiny)
    tails, removed = made.beside.tails, made.steps["plan"]["removed"]
    unpruned, text = Checkpoint.open(tiny / "model"), EvaluationText(str(tiny / "text.txt"), samples=64)
    (windows,) = text.read(unpruned.tokenizer(), 0, at_least=1).values()
    ids = windows.ids[:2]
    assert (tails.samples, tails.length) == tuple(ids.shape)
    assert (tails.removed, tails.cut_removed) == ((0, 1, 2, 3), 2)
    cuts = [list(range(6 - amount, 6)) for amount in tails.removed]
    expected = [loss(unpruned.directory, cut) for cut in (*cuts, removed)]
    assert [*tails.losses, tails.cut_loss] == pytest.approx(expected, rel=1e-4)
    assert tails.made_loss == pytest.approx(loss(tiny / "out"), rel=1e-4)
    page = (tiny / "out" / "report.html").read_text(encoding="utf-8")
    assert 'id="depth"' in page
    assert "the last 3 layers cut: perplexity" in html.unescape(page)


def test_each_of_several_cuts_has_a_page_about_itself(tiny):
    text = str(tiny / "text.txt")
    usual = {"recipe": str(tiny / "recipe.yaml"), "data": str(tiny / "lines.jsonl"), "text": text, "perplexity": text}
    options = ShrinkOptions(**usual, samples=4, length=16, probe_items=0)
    outs = {"1": tiny / "one", "2": tiny / "two"}
    for made in shrink_each(str(tiny / "model"), outs, options, launcher=inline):
        page = html.unescape((made.output / "report.html").read_text(encoding="utf-8"))
        assert f"6 layers without {show_layers(made.steps['plan']['removed'])}" in page
        assert page.count('id="kept"') == 1
        assert "the last 3 layers cut: perplexity" in page


def test_best_compares_cuts_once_repaired_and_heals_the_one_of_the_lowest_loss(tiny):
    made = shrunk(tiny, recipe="best", drop="2")
    assert len(made.compared) > 1
    best = min(made.compared, key=made.compared.__getitem__)
    assert made.steps["plan"]["removed"] == list(parse_layers(best))
    assert f"{made.compared[best]:.4f}" in made.why
    assert made.steps["heal"]["method"] == "lora"
    card = (tiny / "out" / "README.md").read_text(encoding="utf-8")
    assert all(f"| {cut} | " in card for cut in made.compared)


def test_what_is_wrong_is_said_before_anything_is_written(tiny):
    (tiny / "few.jsonl").write_text('{"text": "one line"}\n', encoding="utf-8")
    (tiny / "folder").mkdir()
    for wrong, said in (
        ({"data": str(tiny / "few.jsonl")}, "held out"),
        ({"data": str(tiny / "typo.jsonl")}, r"typo\.jsonl"),
        ({"text": str(tiny / "typo.txt")}, r"typo\.txt"),
        ({"perplexity": str(tiny / "typo.txt")}, r"typo\.txt"),
        ({"drop": "6"}, "6"),
        ({"length": 4096}, "4096"),
        ({"keep": "95%", "drop": "2"}, "nothing else that says how much goes"),
        ({"keep": "lots"}, "a share between 0% and 100%"),
        ({"keep": "0.0%"}, "a share between 0% and 100%"),
        ({"tasks": "piqa"}, "tasks='piqa': expected the folder of its documents, to plan the minutes"),
        ({"tasks": "piqua"}, r"did you mean piqa\?"),
        ({"tasks": "piqa", "keep": "95%"}, "the folder of its documents"),
        ({"samples": 300}, "text: .*text.txt: expected 300 windows of 16 tokens, found text for 72 of them"),
        ({"compute": Compute(device="mps")}, "device: expected one of cpu"),
        ({"out": "model/out"}, "outside the input"),
    ):
        with pytest.raises(ShortstackError, match=said) as raised:
            shrunk(tiny, **wrong)
        check_options_of_shrink(raised.value)
    assert not list(tiny.glob("*.study"))
    assert not (tiny / "model" / "out").exists()


def check_options_of_shrink(error):
    """An error names no option that shrink does not have."""
    groups = (ShrinkOptions, Compute)
    known = {f"--{each.name.replace('_', '-')}" for group in groups for each in fields(group)} | {"--output"}
    assert set(re.findall(r"--[a-z-]+", " ".join(error.spelled(as_option)))) <= known


def test_what_a_step_refuses_is_said_once_in_words_of_shrink(tiny, monkeypatch):
    def refuse(*_args, **_options):
        raise DataError(parameter("held_out"), expected="fewer", found="9", fix=f"write {parameter('held_out', 2)}")

    monkeypatch.setattr("shortstack.healing.heal", refuse)
    with pytest.raises(DataError) as raised:
        shrunk(tiny)
    check_options_of_shrink(raised.value)
    said = str(raised.value)
    assert said.startswith("held out: expected fewer, found 9.")
    assert "a recipe of your own with another held out: recipe=FILE" in said
    assert not re.search("[0-9a-f]{64}", said)


def test_ways_out_that_shrink_has_stay(tiny, monkeypatch):
    def refuse(*_args, **_options):
        fix = f"free some space, take another disk, or add {parameter('no_cache', True)}"
        raise DiskFullError("the cache", expected="100 MB", found="1 MB", fix=fix)

    monkeypatch.setattr("shortstack.healing.heal", refuse)
    with pytest.raises(DiskFullError, match=r"free some space, or take another disk\.$") as raised:
        shrunk(tiny)
    check_options_of_shrink(raised.value)


def test_one_process_makes_an_output_and_what_it_left_behind_goes(tiny):
    with OutputLock(tiny / "out"), pytest.raises(OutputError, match=r"no other process is making.*shortstack watch"):
        shrunk(tiny)
    assert not (tiny / "out.study").exists()
    shrunk(tiny)
    (tiny / "out.study").mkdir()  # as of a process killed once its output had its name
    with pytest.raises(OutputError, match="it exists"):
        shrunk(tiny)
    assert not (tiny / "out.study").exists()
    (tiny / "other.study").mkdir()
    (tiny / "other").mkdir()
    with pytest.raises(OutputError, match="it exists"):
        shrunk(tiny, out="other")
    assert (tiny / "other.study").exists(), "what is there is no output of shrink"


def test_the_largest_cut_that_keeps_enough_is_made(tiny, monkeypatch):
    """A model that keeps .9, .8, ... of what it had without one layer, two, ...; the first guess is four."""
    monkeypatch.setattr("shortstack.study.making.first_amount", lambda _costs, _share: 4)
    monkeypatch.setattr("shortstack.study.making.kept", lost_by_layers)
    made = shrunk(tiny, keep="75%")
    assert [(each.layers, round(each.share.value, 6)) for each in made.tried] == [(4, 0.6), (2, 0.8), (3, 0.7)]
    assert Checkpoint.open(tiny / "out").anatomy.layers == 4
    assert len(made.steps["plan"]["removed"]) == 2
    with pytest.raises(ShortstackError, match=r"found without 1 layer 90\.0% ± 1\.0% of the words") as raised:
        shrunk(tiny, "other", keep="95%")
    check_options_of_shrink(raised.value)
    assert not (tiny / "other").exists()
    ran = []
    monkeypatch.setattr(PruneStep, "run", _counted(PruneStep.run, ran))
    shrunk(tiny, "other", keep="85%")
    assert ran == ["prune"], "without 1 and 4 layers it was made by the first call"
    assert Checkpoint.open(tiny / "other").anatomy.layers == 5


def lost_by_layers(_base, last):
    return {"words": Share(1 - 0.1 * (6 - Checkpoint.open(last["model"]).anatomy.layers), 0.01)}


def test_a_result_says_how_fast_it_is_and_what_int8_would_give(tiny):
    made = shrunk(tiny)
    beside = made.beside
    assert beside.bytes == Checkpoint.open(tiny / "out").weight_bytes
    assert beside.speed["decode"]["low"] <= beside.speed["decode"]["value"] <= beside.speed["decode"]["high"]
    assert f"It writes {beside.speed['decode']['value']:.2f} times as fast" in made.verdict
    text = str(tiny / "text.txt")
    unpruned = made.steps["evaluate_base"]["perplexity"][text]["value"]
    if beside.int8.perplexity:  # torchao is there
        assert beside.int8.bytes < Checkpoint.open(tiny / "model").weight_bytes
        assert beside.int8.perplexity[text] == pytest.approx(unpruned, rel=0.05)
        assert beside.int8.perplexity[text] != unpruned
    assert made.planned > 0


def test_the_report_and_the_card_begin_with_the_verdict(tiny):
    made = shrunk(tiny)
    page = html.unescape((tiny / "out" / "report.html").read_text(encoding="utf-8"))
    assert f'<p class="lead">{made.verdict}' in page


def test_texts_of_other_lengths_are_measured_on_as_many_windows_and_that_is_said(tiny):
    long = tiny / "long.txt"
    long.write_text((tiny / "text.txt").read_text(encoding="utf-8") * 3, encoding="utf-8")
    texts = f"{tiny / 'text.txt'},{long}"
    with pytest.warns(ShortstackWarning, match=r"text\.txt has 2 windows of 512 tokens: every text is measured"):
        made = shrunk(tiny, perplexity=texts)
    found = made.steps["evaluate_healed"]["perplexity"]
    assert {each["windows"]["samples"] for each in found.values()} == {2}
    whole = shrunk(tiny, "whole", perplexity=texts, perplexity_samples="all").steps["evaluate_healed"]["perplexity"]
    assert [each["windows"]["samples"] for each in whole.values()] == [2, 6]


def test_the_first_guess_of_another_model_is_not_taken(tiny, monkeypatch):
    scored, costs = [], Making._costs
    monkeypatch.setattr(Making, "_costs", lambda self, progress: scored.append(1) or costs(self, progress))
    monkeypatch.setattr("shortstack.study.making.first_amount", lambda _costs, _share: 4)
    monkeypatch.setattr("shortstack.study.making.kept", lambda _base, _last: {"words": Share(0.5, 0.0)})
    for model, keep in (("model", "99.5%"), ("model", "99%"), ("other", "99%")):
        if model == "other":
            shutil.copytree(tiny / "model", tiny / "other")
        with pytest.raises(ShortstackError, match=f"keep='{keep}': expected a cut that keeps so much by every measure"):
            shrunk(tiny, keep=keep, model=model)
    assert len(scored) == 2, "another share needs no other scores, another model does"


@pytest.mark.parametrize("nameless", [".", "/", ""])
def test_an_output_without_a_name_is_refused(nameless, tiny, monkeypatch):
    monkeypatch.chdir(tiny)
    with pytest.raises(OutputError, match="it exists"):
        shrink(str(tiny / "model"), nameless, ShrinkOptions(recipe=str(tiny / "recipe.yaml"), data="pydoc"))


def test_minutes_that_are_too_few_are_said_before_work_begins(tiny, monkeypatch):
    with pytest.warns(ShortstackWarning, match="is needed for the least .* where 0.6 s was given"):
        shrunk(tiny, minutes=0.01)


def test_what_failed_is_said_and_a_second_call_goes_on_with_other_options_too(tiny, monkeypatch):
    healed = []
    monkeypatch.setattr("shortstack.healing.heal", lambda *_args, **_options: healed.append(1) or 1 / 0)
    with pytest.raises(ShortstackError, match=r"shrink: heal: expected every step to end, found .*division by zero"):
        shrunk(tiny)
    assert not (tiny / "out").exists()
    monkeypatch.undo()
    ran = []
    monkeypatch.setattr(HealStep, "run", _counted(HealStep.run, ran))
    monkeypatch.setattr(PruneStep, "run", _counted(PruneStep.run, ran))
    recipe = (tiny / "recipe.yaml").read_text(encoding="utf-8")
    (tiny / "recipe.yaml").write_text(recipe.replace("lr: 0.01", "lr: 0.02"), encoding="utf-8")
    made = shrunk(tiny)
    assert healed == [1]
    assert ran == ["heal"]
    assert Checkpoint.open(tiny / "out").weights_sha256 == made.steps["heal"]["weights_sha256"]


def _counted(run, ran):
    """A step's run() that says so."""
    return lambda step, *rest: ran.append(step.kind) or run(step, *rest)


def test_an_output_that_exists_data_that_lacks_and_ends_that_stay_are_refused(tiny):
    with pytest.raises(OutputError):
        shrunk(tiny, "model")
    with pytest.raises(InputError, match="drop: expected a count"):
        shrunk(tiny, drop="lots")
    with pytest.raises(InputError, match="data: expected what the recipe"):
        shrunk(tiny, data=None)
    (tiny / "recipe.yaml").write_text(RECIPE.replace("drop: 2", "drop: 2, keep_last: 1"), encoding="utf-8")
    with pytest.raises(InputError, match="keep_last"):
        shrunk(tiny)
    with pytest.raises(InputError, match="keep='50%': expected no share"):
        shrink_each("demo", {"1": tiny / "one", "2": tiny / "two"}, ShrinkOptions(keep="50%"))


def test_a_missing_library_is_said_before_anything_is_computed(tiny, monkeypatch):
    monkeypatch.setattr("shortstack.machine.options.find_spec", lambda _name: None)
    with pytest.raises(InputError, match=r"shortstack\[lora\]"):
        shrunk(tiny, data="pydoc")
    assert not (tiny / "out.study").exists()
