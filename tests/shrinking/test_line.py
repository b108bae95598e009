"""shrink: the whole line into one folder that is a plain checkpoint, with its report and card; killed, it goes on."""

import errno
import html
import itertools
import json
import shlex
import shutil
import sys
from contextlib import contextmanager
from dataclasses import fields, replace

import pytest
import yaml

from command import ended
from documents import data_folder
from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.record import skipped_layers
from shortstack.cli import main
from shortstack.data import Tokens
from shortstack.data.mixture import parse_sources
from shortstack.errors import (
    DataError,
    InputError,
    OutputError,
    ShortstackError,
    ShortstackWarning,
)
from shortstack.healing.pacing import Pacing
from shortstack.machine import files
from shortstack.machine.clock import Clock
from shortstack.machine.device import Compute
from shortstack.machine.formats import show_layers
from shortstack.machine.locks import OutputLock
from shortstack.machine.progress import silent
from shortstack.planning.layer_sets import parse_layers
from shortstack.profiling import Timing
from shortstack.pruning import verify
from shortstack.shrinking import ShrinkOptions, clock, line, measuring, reference, shrink, shrink_each
from shortstack.shrinking.checks import check_shrink
from shortstack.shrinking.clock import STAGE, Amounts
from shortstack.shrinking.measuring import Measurement
from shortstack.shrinking.preview import preview_shrink
from shortstack.shrinking.retention import Share
from shortstack.shrinking.route import Route
from studies import make_data

pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("own_cache")
RECIPE = """
title: small
plan: {metric: ppl, drop: 2}
heal: {method: lora, lora_r: 2, max_steps: 3, max_length: 32, per_device_train_batch_size: 4, learning_rate: 0.01, seed: 3}
"""


@pytest.fixture(autouse=True)
def beside_it_little_is_timed_and_written(monkeypatch):
    monkeypatch.setattr("shortstack.shrinking.reference.TIMING", Timing((1,), prompt=8, new_tokens=2, repeats=2))
    monkeypatch.setattr("shortstack.shrinking.reference.ANSWER_TOKENS", 8)


@pytest.fixture
def tiny(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return make_data(tmp_path)


def options_of(tiny, **changes):
    text = str(tiny / "text.txt")
    usual = {"recipe": str(tiny / "recipe.yaml"), "data": str(tiny / "lines.jsonl"), "text": text, "perplexity": text}
    return ShrinkOptions(**{**usual, "samples": 4, "length": 16, "probe_items": 0, **changes})


def shrunk(tiny, out="out", model="model", **changes):
    compute = changes.pop("compute", Compute())
    return shrink(str(tiny / model), tiny / out, options_of(tiny, **changes), compute=compute)


def heals_by_ticks(monkeypatch):
    """Heal by a clock that goes on by a second whenever it is looked at, however fast the machine is."""
    heal = line.heal
    monkeypatch.setattr(line, "LEAST_HEALING", -1.0)
    ticking = {"now": itertools.count().__next__}
    monkeypatch.setattr(line, "heal", lambda *args, **how: heal(*args, **{**how, "clock": Clock(120.0, **ticking)}))


def removed_from(tiny, out):
    return sorted(skipped_layers(Checkpoint.open(tiny / out), Checkpoint.open(tiny / "model")))


def sources_repaired_on(monkeypatch):
    """The sources of the windows of each repair from now on."""
    read, repair = [], line.repair

    def noted(source, removed, text, **how):
        repaired = repair(source, removed, text, **how)
        read.append([kind["source"] for kind in repaired.tokens.get("kinds", [repaired.tokens])])
        return repaired

    monkeypatch.setattr(line, "repair", noted)
    return read


def counted(monkeypatch, *names):
    """The names of the line's verbs, in the order in which they are called from now on."""
    called = []
    for name in names:
        room = measuring if name == "evaluate" else line
        verb = getattr(room, name)
        monkeypatch.setattr(
            room, name, lambda *args, _name=name, _verb=verb, **options: called.append(_name) or _verb(*args, **options)
        )
    return called


def test_a_recipe_gives_a_checkpoint_with_its_card_and_report(tiny):
    made = shrunk(tiny)
    checkpoint = Checkpoint.open(tiny / "out")
    assert checkpoint.anatomy.layers == 4
    assert verify(checkpoint).ok
    assert list(made.plan.removed) == removed_from(tiny, "out")
    page = html.unescape((tiny / "out" / "report.html").read_text(encoding="utf-8"))
    assert page.startswith("<!")
    assert f'<p class="lead">{made.verdict.rstrip(".")}: its perplexity on text.txt is ' in page
    assert all(f"<li>{reason}</li>" in page for reason in made.reasons)
    assert page.count(made.command) == 1
    assert all(text in page for said in made.answers for text in said.values())
    summary = json.loads((tiny / "out" / "shrink.json").read_text())
    assert summary["steps"]["plan"]["removed"] == list(made.plan.removed)
    assert set(summary["steps"]) == {"evaluate_base", "plan", "prune", "heal", "evaluate_healed"}
    assert not list(tiny.glob("out.*"))
    assert (made.last.model, made.healing.output) == (str(tiny / "out"), tiny / "out")
    assert ".partial" not in (tiny / "out" / "shrink.json").read_text() + page
    card = (tiny / "out" / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert "base_model" not in front  # it is a folder here
    assert "| layers | 6 | 4 |" in card
    assert "$ shortstack heal pruned" in card
    assert "recipe.yaml determines which layers are removed." in card
    assert [set(said) for said in made.answers] == [{"prompt", "unpruned", "shortened"}] * 3
    plain = html.unescape(card).replace("\\", "")
    assert all(
        said in plain
        for said in (made.verdict, *(f"\n- {reason}\n".replace(f"{tiny}/", "") for reason in made.reasons))
    )
    assert str(tiny) not in plain, "it may be uploaded"
    assert "| | unpruned | shortened |" in card
    assert any(reason.startswith("Healing: 3 steps, ") for reason in made.reasons)
    assert "shrink.json" not in {path.name for path in checkpoint.side_files()}, "it is of this checkpoint alone"


def test_best_compares_cuts_once_repaired_and_heals_the_one_of_the_lowest_loss(tiny, monkeypatch):
    heals_by_ticks(monkeypatch)
    monkeypatch.setattr(line, "forward_speed", lambda *_, **__: 5000.0)  # finalists, whatever else the machine does
    made = shrunk(tiny, recipe="best", drop="2", minutes=0.6)
    compared = made.plan.compared
    assert len(compared) > 1
    best = min(compared, key=compared.__getitem__)
    assert made.plan.removed == parse_layers(best)
    assert f"{compared[best]:.4f}" in made.why
    assert made.healing.method == "lora"
    taught = Checkpoint.open(tiny / "out").record["healing"]["teacher"]
    assert taught == Checkpoint.open(tiny / "model").identity
    card = (tiny / "out" / "README.md").read_text(encoding="utf-8")
    assert all(f"| {cut} | " in card for cut in compared)


def test_the_recipe_beside_it_makes_the_same_weights_without_a_clock(tiny, monkeypatch):
    heals_by_ticks(monkeypatch)
    made = shrunk(tiny, recipe="best", drop="2", minutes=0.6)
    stated = yaml.safe_load((tiny / "out" / "recipe.yaml").read_text())
    assert (stated["heal"]["max_steps"], stated["plan"]["drop"]) == (made.healing.history.steps, 2)
    assert stated["heal"]["learning_rate"] == made.healing.history.settings["learning_rate"]
    heals = next(
        line for line in (tiny / "out" / "README.md").read_text(encoding="utf-8").splitlines() if "stack heal" in line
    )
    assert all(f"--{name} {stated['heal'][name.replace('-', '_')]}" in heals for name in ("max-steps", "replanned"))
    assert "no healing" not in made.left_out
    again = shrunk(tiny, "again", recipe=str(tiny / "out" / "recipe.yaml"), drop="2", minutes=60)
    options = options_of(tiny, recipe=str(tiny / "out" / "recipe.yaml"), minutes=15.0)
    assert preview_shrink(str(tiny / "model"), tiny / "other", options).seconds == 900, (
        "typed, though it is the default"
    )
    weights = [Checkpoint.open(tiny / out).weights_sha256 for out in ("out", "again")]
    assert weights[0] == weights[1]
    assert again.plan == made.plan


def test_what_heals_repairs_too_and_the_repeated_run_reads_the_same(tiny, monkeypatch):
    heals_by_ticks(monkeypatch)
    text, other = tiny / "text.txt", tiny / "other.txt"
    read = sources_repaired_on(monkeypatch)
    other.write_text(" ".join(reversed(text.read_text(encoding="utf-8").split())), encoding="utf-8")
    made = shrunk(tiny, recipe="best", drop="2", minutes=0.6, data=str(other))
    assert read == [[str(text), str(other)]]
    assert yaml.safe_load(made.recipe)["plan"]["repair_text"] == f"{text},{other}"
    again = shrunk(tiny, "again", recipe=str(tiny / "out" / "recipe.yaml"), drop="2", data=None)
    weights = [Checkpoint.open(each.output).weights_sha256 for each in (made, again)]
    assert weights[0] == weights[1]


def test_layers_are_chosen_on_data_that_is_named_and_the_repeated_run_chooses_on_the_same(tiny, monkeypatch):
    heals_by_ticks(monkeypatch)
    other = tiny / "other.txt"
    other.write_text((tiny / "text.txt").read_text(encoding="utf-8"), encoding="utf-8")
    asked, choose = [], line.choose

    def noted(source, choice, text, **how):
        asked.append(text.text)
        return choose(source, choice, text, **how)

    monkeypatch.setattr(line, "choose", noted)
    made = shrunk(tiny, recipe="best", drop="2", minutes=0.6, text=None, length=64, data=str(other))
    assert parse_sources(asked[0])[-1].source == str(other)
    again = shrunk(tiny, "again", recipe=str(tiny / "out" / "recipe.yaml"), drop="2", text=None, length=64, data=None)
    assert asked[1] == asked[0]
    assert again.plan == made.plan


def test_data_with_too_few_texts_is_not_chosen_on_nor_is_any_beside_a_text_that_is_typed(tiny):
    data, model = tiny / "ten.jsonl", str(tiny / "model")
    records = ({"text": f"{number} " + "some words of a text that is long enough " * 12} for number in range(10))
    data.write_text("".join(f"{json.dumps(record)}\n" for record in records), encoding="utf-8")

    def looked_at(**changes):
        found = preview_shrink(
            model, tiny / "out", options_of(tiny, recipe="best", drop="2", length=64, data=str(data), **changes)
        )
        *notes, own = found.notes
        assert own.startswith(f"It heals on {data} and on none of the recipe's own texts: add ,self,copying=0.5,drills")
        return found.amounts.text, found.amounts.repair_text, tuple(notes)

    both = f"mix,{data}"
    assert looked_at(text=None, samples=10) == (both, both, ())
    few = f"Layers are not chosen on {data}: it has fewer than 11 texts of 64 tokens."
    assert looked_at(text=None, samples=11) == ("mix", both, (few,))
    assert looked_at(text="mix") == ("mix", both, ())
    beside = options_of(tiny, recipe="best", drop="2", length=64, data=f"{data},drills")
    assert preview_shrink(model, tiny / "out", beside).notes == (), "its own texts are among them"


def test_records_too_short_to_repair_on_heal_alone_and_that_is_said(tiny, monkeypatch):
    heals_by_ticks(monkeypatch)
    short, text = tiny / "short.jsonl", str(tiny / "text.txt")
    short.write_text('{"text": "a few words"}\n' * 40, encoding="utf-8")
    read = sources_repaired_on(monkeypatch)
    made = shrunk(tiny, recipe="best", drop="2", minutes=0.6, data=str(short))
    assert read == [[text]]
    few = f"The cut is not repaired on {short}: it has fewer than 8 texts of 16 tokens."
    assert few in made.reasons
    assert not any("text to repair on" in said for said in made.left_out), "not for want of time"
    recipe = yaml.safe_load(made.recipe)
    del recipe["plan"]["repair_text"]
    (tiny / "without.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert few in shrunk(tiny, "again", recipe=str(tiny / "without.yaml"), drop="2", data=str(short)).reasons


def test_data_whose_name_a_list_takes_apart_heals_alone_and_that_is_said(tiny, monkeypatch, capsys):
    text, data = tiny / "text.txt", tiny / "a,b.txt"
    data.write_text(text.read_text(encoding="utf-8"), encoding="utf-8")
    options = options_of(tiny, recipe="best", drop="2", data=str(data))
    assert options_of(tiny, perplexity=str(data)).texts == [str(data)]
    said = f"The cut is not repaired on {data}: a name with a comma or = cannot stand in a list of texts."
    assert said in preview_shrink(str(tiny / "model"), tiny / "out", options).notes
    small = ["--drop", "2", "--samples", "4", "--probe-items", "0", "--dry-run"]
    words = [tiny / "model", "-o", tiny / "out", "--data", data, "--text", text, "--perplexity", text, *small]
    monkeypatch.setattr("sys.argv", ["shortstack", "shrink", *map(str, words)])
    with pytest.raises(SystemExit, match="0"):
        main()
    assert said in " ".join(capsys.readouterr().out.split())


def test_data_that_was_repaired_on_is_not_said_to_be_unused(tiny, monkeypatch):
    monkeypatch.setattr(line, "LEAST_HEALING", 1e9)
    other = tiny / "other.txt"
    other.write_text(" ".join(reversed((tiny / "text.txt").read_text(encoding="utf-8").split())), encoding="utf-8")
    made = shrunk(tiny, recipe="best", drop="2", minutes=0.6, data=str(other))
    assert made.repair
    assert "It was not healed: the minutes were too few." in made.reasons


def test_data_that_layers_were_chosen_on_is_not_said_to_be_unused(tiny, monkeypatch):
    monkeypatch.setattr(line, "LEAST_HEALING", 1e9)
    monkeypatch.setattr(line, "REPAIRED_BY", -1.0)
    other = tiny / "other.txt"
    other.write_text((tiny / "text.txt").read_text(encoding="utf-8"), encoding="utf-8")
    made = shrunk(tiny, recipe="best", drop="2", minutes=0.6, text=None, length=64, data=str(other))
    assert not made.repair
    assert made.reasons[0] == "It was not healed: the minutes were too few."
    made = shrunk(tiny, "typed", recipe="best", drop="2", minutes=0.6, data=str(other))
    unused = f"It was not healed: the minutes were too few; the data {other} was not used."
    assert unused in made.reasons


def test_what_there_was_no_time_for_is_no_step_of_the_report_and_the_next_one_is_to_heal_by_the_recipe(
    tiny, monkeypatch
):
    by_clock(tiny)
    monkeypatch.setattr(line, "LEAST_HEALING", 1e9)
    monkeypatch.setattr(line, "COMPARED_BY", -1.0)
    given = {"recipe": tiny / "recipe.yaml", "data": tiny / "lines.jsonl", "text": tiny / "text.txt"}
    words = [word for name, value in given.items() for word in (f"--{name}", value)]
    words += ["--perplexity", tiny / "text.txt", "--samples", 4, "--probe-items", 0, "-o", tiny / "out"]
    ran = ended("shrink", tiny / "model", *words)
    assert ran.exit_code == 0, ran.stderr
    told = shlex.split(ran.stderr.rpartition("Next: ")[2])
    assert told[:2] == ["shortstack", "heal"]
    assert told[told.index("--recipe") + 1] == str(tiny / "recipe.yaml")
    page = (tiny / "out" / "report.html").read_text(encoding="utf-8")
    assert "prune, done" in page
    assert "speed, done" not in page


@pytest.mark.parametrize(("free", "windows"), [(0, 256), (10**12, 1024)])
def test_a_repair_on_all_windows_is_for_machines_with_memory_for_it(free, windows, tiny, monkeypatch):
    monkeypatch.setattr("shortstack.shrinking.checks.available_memory", lambda _device: free)
    monkeypatch.setattr(line, "forward_speed", lambda *_, **__: 1e9)
    options = options_of(tiny, recipe="best", drop="2", text="copying", data="copying")
    assert preview_shrink(str(tiny / "model"), tiny / "out", options).amounts.repair == windows
    stated = "plan: {strategy: repaired-blocks, repair: true, repair_samples: 300}\n"
    (tiny / "stated.yaml").write_text(stated, encoding="utf-8")
    options = options_of(tiny, recipe=str(tiny / "stated.yaml"), drop="2", text="copying", data=None)
    found = preview_shrink(str(tiny / "model"), tiny / "out", options)
    assert (found.amounts.repair, found.notes) == (300, ()), "a number of the recipe is taken as it is"


def test_with_hours_layers_are_chosen_on_as_many_windows_as_repair_holds_and_the_texts_have(tiny, monkeypatch):
    monkeypatch.setattr(line, "forward_speed", lambda *_, **__: 1e9)
    (tiny / "stated.yaml").write_text("plan: {strategy: repaired-blocks, repair: true, repair_samples: 48}\n")
    (tiny / "twenty.txt").write_text(" ".join(f"word{number}" for number in range(20 * 16)), encoding="utf-8")

    def windows(text, **changes):
        options = options_of(tiny, recipe=str(tiny / "stated.yaml"), text=text, samples=None, data=None, **changes)
        return preview_shrink(str(tiny / "model"), tiny / "out", options).amounts.windows

    assert windows("copying", drop="2") == 48, "choosing holds six streams, as repair does"
    assert windows("copying", min_quality="50%") == 6 * 48 // (6 + 2), "and with all six layers as a block eight"
    text = str(tiny / "twenty.txt")
    there = len(Tokens.read(text, Checkpoint.open(tiny / "model").tokenizer(), samples=None, length=16).ids)
    assert windows(text, drop="2") == min(there, 48)


def test_a_killed_run_goes_on_where_the_data_has_become_less(tiny, monkeypatch):
    monkeypatch.setattr(line, "forward_speed", lambda *_, **__: 1e9)
    text, lines = (
        tiny / "many.jsonl",
        '{"text": "words of a text that is long enough for a window of sixteen tokens"}\n',
    )
    text.write_text(40 * lines, encoding="utf-8")
    how = {"recipe": "best", "drop": "2", "minutes": 0.6, "text": str(text), "samples": None, "data": "copying"}
    with monkeypatch.context() as killed:
        killed.setattr(line, "choose", lambda *_, **__: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            shrunk(tiny, **how)
    text.write_text(20 * lines, encoding="utf-8")
    assert yaml.safe_load(shrunk(tiny, **how).recipe)["plan"]["samples"] == 20


def test_what_is_wrong_is_said_before_anything_is_written(tiny):
    (tiny / "few.jsonl").write_text('{"text": "one line"}\n', encoding="utf-8")
    many = (tiny / "recipe.yaml").read_text(encoding="utf-8").replace("heal: {", "heal: {held_out: 2000, ")
    (tiny / "many.yaml").write_text(many, encoding="utf-8")
    named = tiny / "named.yaml"
    named.write_text("plan: {layers: 2-3}\n", encoding="utf-8")
    for wrong, said in (
        ({"data": str(tiny / "few.jsonl")}, "held out"),
        (
            {"recipe": str(tiny / "many.yaml")},
            r"or write a recipe that holds out fewer than the 2000 samples of .*many\.yaml",
        ),
        ({"data": str(tiny / "typo.jsonl")}, r"typo\.jsonl"),
        ({"text": str(tiny / "typo.txt")}, r"typo\.txt"),
        ({"perplexity": str(tiny / "typo.txt")}, r"typo\.txt"),
        ({"drop": "6"}, "6"),
        ({"drop": "lots"}, "drop: expected a count"),
        ({"data": None}, "data: expected what the recipe"),
        ({"length": 4096}, "4096"),
        (
            {"min_quality": "95%", "drop": "2"},
            "min_quality: expected min_quality or drop, not both, found drop as well",
        ),
        ({"memory": "60000B", "drop": "2"}, "memory: expected memory or drop, not both"),
        ({"min_quality": "lots"}, "a share above 0% and below 100%"),
        ({"min_quality": "0.0%"}, "a share above 0% and below 100%"),
        ({"recipe": str(named), "drop": "1"}, "expected a recipe that chooses layers, beside drop"),
        ({"recipe": str(named), "memory": "60000B"}, "expected a recipe that chooses layers, beside memory"),
        ({"recipe": str(named), "min_quality": "90%"}, "expected a recipe that chooses layers, beside min_quality"),
        ({"tasks": "piqua"}, "did you mean piqa"),
        (
            {"tasks": "piqa", "limit": 1, "data_dir": str(data_folder(tiny / "data"))},
            "two documents of piqa or more",
        ),
        ({"limit": 5}, "limit: expected tasks to measure on"),
        ({"data_dir": "/nowhere"}, "data_dir: expected tasks to measure on"),
        ({"tasks": "piqa", "data_dir": "/nowhere"}, "data_dir: expected a folder"),
        ({"probe_items": 1}, "probe_items: expected at least 2"),
        ({"perplexity_samples": 0}, "perplexity_samples: expected at least 1"),
        ({"recipe": "paper-iterative-last3"}, "recipe: expected a recipe that cuts once"),
        ({"samples": 300}, "text: .*text.txt: expected 300 windows of 16 tokens, found text for 72 of them"),
        ({"compute": Compute(device="mps")}, "device: expected one of cpu"),
        ({"out": "model/out"}, "outside the input"),
        ({"out": "text.txt"}, "it exists"),
        ({"minutes": 0.001}, "minutes: expected at least"),
    ):
        with pytest.raises(ShortstackError, match=said) as raised:
            shrunk(tiny, **wrong)
        check_options_of_shrink(raised.value)
    assert not [*tiny.glob("out*.partial")]
    assert not (tiny / "model" / "out").exists()


def check_options_of_shrink(error):
    """An error names no option that shrink does not have."""
    assert error.option in {each.name for group in (ShrinkOptions, Compute) for each in fields(group)} | {"output", ""}


def test_what_a_stage_refuses_is_said_once_in_words_of_shrink(tiny, monkeypatch):
    def refuse(*_args, **_options):
        raise DataError("9", expected="fewer", fix="hold out 2", option="held_out")

    monkeypatch.setattr(line, "heal", refuse)
    with pytest.raises(DataError) as raised:
        shrunk(tiny)
    check_options_of_shrink(raised.value)
    assert str(raised.value) == "recipe: held_out: expected fewer, found 9. To fix it: hold out 2."


def test_one_process_makes_an_output(tiny):
    with OutputLock(tiny / "out"), pytest.raises(OutputError, match="no other process is making"):
        shrunk(tiny)
    assert not list(tiny.glob("out*"))


def test_a_run_that_failed_goes_on_with_other_options_too(tiny, monkeypatch):
    monkeypatch.setattr(line, "heal", lambda *_args, **_options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        shrunk(tiny)
    assert not (tiny / "out").exists()
    assert (tiny / "out.partial").exists()
    monkeypatch.undo()
    called = counted(monkeypatch, "evaluate", "choose", "prune", "heal")
    recipe = (tiny / "recipe.yaml").read_text(encoding="utf-8")
    (tiny / "recipe.yaml").write_text(recipe.replace("learning_rate: 0.01", "learning_rate: 0.02"), encoding="utf-8")
    shrunk(tiny)
    assert called == ["heal", "evaluate"], "what the rate of healing does not touch is used"
    assert not list(tiny.glob("out.*"))


def test_a_run_that_goes_on_has_the_time_that_is_left(tiny, monkeypatch):
    monkeypatch.setattr(line, "choose", lambda *_args, **_options: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        shrunk(tiny)
    used = json.loads((tiny / "out.partial" / "clock.json").read_text())
    (tiny / "out.partial" / "clock.json").write_text(json.dumps({"used": used["used"] + 700}))
    monkeypatch.undo()
    assert shrunk(tiny).seconds > 700


def test_the_folder_of_a_run_is_never_without_the_note_by_which_it_is_known(tiny, monkeypatch):
    folder, save, without = tiny / "out.partial", clock.save_json, []

    def saving(path, data):
        without.append(folder.exists() and not (folder / "clock.json").exists())
        save(path, data)
        without.append(folder.exists() and not (folder / "clock.json").exists())

    monkeypatch.setattr(clock, "save_json", saving)
    shrunk(tiny)
    assert without
    assert not any(without)


def test_several_cuts_share_what_does_not_depend_on_the_cut_and_a_kill_loses_none(tiny, monkeypatch):
    outs = {"1": tiny / "one", "2": tiny / "two"}
    renamed = line.rename_new

    def killed(made, out):
        if out.name == "two":
            raise KeyboardInterrupt
        renamed(made, out)

    monkeypatch.setattr(line, "rename_new", killed)
    called = counted(monkeypatch, "evaluate", "choose", "prune", "heal")
    with pytest.raises(KeyboardInterrupt):
        shrink_each(str(tiny / "model"), outs, options_of(tiny))
    assert called == ["evaluate", *(["choose", "prune", "heal", "evaluate"] * 2)], "the unpruned model is measured once"
    assert (tiny / "one" / "shrink.json").exists()
    assert not (tiny / "two").exists()
    before = (tiny / "one" / "shrink.json").read_bytes()
    monkeypatch.setattr(line, "rename_new", renamed)
    called.clear()
    both = shrink_each(str(tiny / "model"), outs, options_of(tiny))
    assert called == [], "only the name was missing"
    assert [len(each.plan.removed) for each in both] == [1, 2]
    assert (tiny / "one" / "shrink.json").read_bytes() == before
    for made in both:
        page = html.unescape((made.output / "report.html").read_text(encoding="utf-8"))
        assert f"6 layers without {show_layers(made.plan.removed)}" in page
        assert page.count('id="kept"') == 1
    assert not list(tiny.glob("*.partial"))
    with pytest.raises(OutputError, match="it exists"):
        shrink_each(str(tiny / "model"), outs, options_of(tiny))
    with pytest.raises(InputError, match="only one target size or quality for each"):
        shrink_each(str(tiny / "model"), outs, options_of(tiny, min_quality="50%"))


def test_a_cut_that_failed_leaves_the_one_before_it(tiny, monkeypatch):
    outs = {"1": tiny / "one", "2": tiny / "two"}
    heal, calls = line.heal, []
    monkeypatch.setattr(
        line, "heal", lambda *args, **how: heal(*args, **how) if not calls.append(1) and len(calls) < 2 else 1 / 0
    )
    with pytest.raises(ZeroDivisionError):
        shrink_each(str(tiny / "model"), outs, options_of(tiny))
    assert Checkpoint.open(tiny / "one").anatomy.layers == 5
    monkeypatch.setattr(line, "heal", heal)
    assert [each.output for each in shrink_each(str(tiny / "model"), outs, options_of(tiny))] == list(outs.values())
    assert Checkpoint.open(tiny / "two").anatomy.layers == 4


def test_the_largest_cut_that_keeps_enough_is_made(tiny, monkeypatch):
    """A model that keeps .9, .8, ... of what it had without one layer, two, ...; the first guess is four."""
    lost_by_layers(monkeypatch)
    made = shrunk(tiny, min_quality="75%")
    assert [(each.layers, round(each.share.value, 6)) for each in made.tried] == [(4, 0.6), (2, 0.8), (3, 0.7)]
    assert len(made.plan.removed) == 2 == len(removed_from(tiny, "out"))
    with pytest.raises(ShortstackError, match=r"found without 1 layer 90\.0% ± 1\.0% of the words") as raised:
        shrunk(tiny, "other", min_quality="95%")
    check_options_of_shrink(raised.value)
    assert not (tiny / "other").exists()
    called = counted(monkeypatch, "prune")
    shrunk(tiny, "other", min_quality="85%")
    assert called == ["prune"], "without 1 and 4 layers it was made by the call before"
    assert Checkpoint.open(tiny / "other").anatomy.layers == 5


def test_where_time_ends_the_best_cut_that_kept_enough_is_delivered(tiny, monkeypatch):
    lost_by_layers(monkeypatch, first=1)
    monkeypatch.setattr(line, "clock_of", lambda seconds, _file, before: Stopping(seconds))
    made = shrunk(tiny, min_quality="75%")
    assert [each.layers for each in made.tried] == [1]
    assert Checkpoint.open(tiny / "out").anatomy.layers == 5


def test_after_a_run_that_kept_nothing_what_was_late_is_decided_anew(tiny, monkeypatch):
    lost_by_layers(monkeypatch, first=3)
    with monkeypatch.context() as patched:
        patched.setattr(line, "clock_of", lambda seconds, _file, before: Stopping(seconds))
        with pytest.raises(ShortstackError, match="found without 3 layers"):
            shrunk(tiny, min_quality="85%")
    assert len(shrunk(tiny, min_quality="85%").plan.removed) == 1


def test_after_a_run_that_kept_nothing_a_cut_that_had_no_time_to_heal_heals(tiny, monkeypatch):
    by_clock(tiny)
    lost_by_layers(monkeypatch, first=1)
    heals_by_ticks(monkeypatch)
    with monkeypatch.context() as patched:
        patched.setattr(Pacing, "begin", lambda *_: False)
        with pytest.raises(ShortstackError, match="found without 1 layer"):
            shrunk(tiny, min_quality="95%")
    assert shrunk(tiny, min_quality="85%").healing.history.steps > 0


def test_after_a_run_that_kept_nothing_a_cut_is_asked_what_the_unpruned_model_is_asked_then(tiny, monkeypatch):
    lost_by_layers(monkeypatch, first=1)
    with monkeypatch.context() as patched:
        patched.setattr(line, "PROBED_BY", 0.0)
        with pytest.raises(ShortstackError, match="found without 1 layer"):
            shrunk(tiny, min_quality="95%")
    made = shrunk(tiny, min_quality="85%")
    assert made.base.probes
    assert made.last.probes


def test_a_cut_of_a_search_does_not_stand_for_one_that_has_all_the_minutes(tiny, monkeypatch):
    by_clock(tiny)
    lost_by_layers(monkeypatch, first=1)
    heals_by_ticks(monkeypatch)
    with pytest.raises(ShortstackError, match="found without 1 layer"):
        shrunk(tiny, min_quality="95%")
    called = counted(monkeypatch, "choose", "prune", "heal")
    shrunk(tiny, drop="1")
    assert called == ["heal"], "which takes the time; what is chosen and cut is the same"


def test_no_more_layers_are_tried_than_the_recipe_lets_go(tiny, monkeypatch):
    recipe = (tiny / "recipe.yaml").read_text(encoding="utf-8")
    (tiny / "recipe.yaml").write_text(recipe.replace("drop: 2", "keep_first: 2, keep_last: 2"), encoding="utf-8")
    lost_by_layers(monkeypatch, first=1)
    assert [each.layers for each in shrunk(tiny, min_quality="75%").tried] == [1, 2]


def test_a_model_whose_code_is_trusted_stays_so_to_the_end(tiny, monkeypatch):
    opened, checkpoint = [], Checkpoint.open(tiny / "model", trust_remote_code=True)
    monkeypatch.setattr(
        Checkpoint,
        "derived",
        lambda source, folder, _derived=Checkpoint.derived: (
            opened.append(folder.name.split("-")[0]) or _derived(source, folder)
        ),
    )
    shrink(checkpoint, tiny / "out", options_of(tiny))
    assert opened == ["pruned", "healed"]
    assert checkpoint.derived(tiny / "out").trust_remote_code


def test_what_an_unfinished_run_has_on_the_disk_is_not_asked_for_again(tiny, monkeypatch):
    asked = []
    writer = line.check_shrink.__globals__["CheckpointWriter"]
    monkeypatch.setattr(
        "shortstack.shrinking.checks.CheckpointWriter",
        lambda *args, nbytes, **how: asked.append(nbytes) or writer(*args, nbytes=nbytes, **how),
    )
    with killed_in(monkeypatch, "speed", lambda *_: True):
        shrunk(tiny)
    there = sum(path.stat().st_size for path in (tiny / "out.partial").rglob("*") if path.is_file())
    preview_shrink(str(tiny / "model"), tiny / "out", options_of(tiny))
    shrunk(tiny)
    assert there > 0
    assert asked == [asked[0], *[max(0, asked[0] - there)] * 2]


@pytest.mark.parametrize(
    ("limit", "fit", "asked"),
    [
        (None, 200, {"mmlu": 3, "piqa": 200}),
        (None, 40, {"mmlu": 1, "piqa": 40}),
        (90, 90, {"mmlu": 90, "piqa": 90}),  # of each subject, as it was typed
        (90, 60, {"mmlu": 1, "piqa": 60}),
        (0.5, 0.5, {"mmlu": 0.5, "piqa": 0.5}),
    ],
)
def test_a_group_is_asked_as_many_documents_in_all_as_a_task(limit, fit, asked):
    options, hands = ShrinkOptions(tasks="mmlu,piqa", limit=limit), Clock(60.0)
    how = {"options": options, "amounts": Amounts(documents=fit), "compute": Compute(), "progress": silent}
    found = Measurement(None, "unpruned", **how, until=hands, writing=hands, parts={"mmlu": 57, "piqa": 1}).tasks
    assert {task.tasks: task.limit for task in found} == asked


def test_a_share_of_documents_is_fitted_into_the_time_too(tiny, monkeypatch):
    options = options_of(tiny, tasks="piqa", limit=1.0, data_dir=str(data_folder(tiny / "data")), minutes=1.0)
    documents = []
    for speed in (1e3, 1e9):
        monkeypatch.setattr(line, "forward_speed", lambda *_, speed=speed, **__: speed)
        documents.append(preview_shrink(str(tiny / "model"), tiny / "out", options).amounts.documents)
    assert documents[0] in range(2, 7), "of twelve"
    assert documents[1] == 1.0


class Stopping(Clock):
    """One that has little left once it was asked for a first trial's time."""

    def next(self, share):
        found = super().next(share)
        self._began -= 0.8 * self.seconds
        return found


def lost_by_layers(monkeypatch, first=4):
    monkeypatch.setattr(line, "first_amount", lambda _costs, _share: first)
    monkeypatch.setattr(
        line.Line,
        "measured",
        lambda self, checkpoint, name, until, _measured=line.Line.measured: Labelled.of(
            _measured(self, checkpoint, name, until), checkpoint.anatomy.layers
        ),
    )
    monkeypatch.setattr(line, "kept", lambda _base, last: {"words": Share(1 - 0.1 * (6 - last.layers), 0.01)})


class Labelled:
    """Return what was measured, with the number of layers of what it was measured of."""

    @staticmethod
    def of(measured, layers):
        object.__setattr__(measured.evaluation, "layers", layers)
        return measured


def test_the_first_guess_of_another_model_is_not_taken(tiny, monkeypatch):
    called = counted(monkeypatch, "score")
    monkeypatch.setattr(line, "kept", lambda _base, _last: {"words": Share(0.5, 0.0)})
    for model, share in (("model", "99.5%"), ("model", "99%"), ("other", "99%")):
        if model == "other":
            shutil.copytree(tiny / "model", tiny / "other")
            config = json.loads((tiny / "other" / "config.json").read_text())
            (tiny / "other" / "config.json").write_text(json.dumps({**config, "rope_theta": 5000.0}))
        with pytest.raises(ShortstackError, match=f"min_quality: expected a cut that keeps {share} by every measure"):
            shrunk(tiny, min_quality=share, model=model)
    assert called == ["score", "score"], "another share needs no other scores, another model does"


def test_a_result_says_how_fast_it_is(tiny):
    made = shrunk(tiny)
    decode = made.speed.decode
    assert decode.low <= decode.value <= decode.high
    assert any(reason.startswith(f"Speed: decoding is {decode.value:.2f} times as fast") for reason in made.reasons)


def test_texts_of_other_lengths_are_measured_on_as_many_windows_and_that_is_said(tiny):
    long = tiny / "long.txt"
    long.write_text((tiny / "text.txt").read_text(encoding="utf-8") * 3, encoding="utf-8")
    texts = f"{tiny / 'text.txt'},{long}"
    with pytest.warns(ShortstackWarning, match=r"text\.txt has 2 windows of 512 tokens: every text is measured"):
        made = shrunk(tiny, perplexity=texts)
    assert {each.windows["samples"] for each in made.last.perplexity.values()} == {2}


@pytest.mark.parametrize("nameless", [".", "/", ""])
def test_an_output_without_a_name_is_refused(nameless, tiny, monkeypatch):
    monkeypatch.chdir(tiny)
    with pytest.raises(OutputError, match="it exists"):
        shrink(str(tiny / "model"), nameless, options_of(tiny))


@pytest.mark.parametrize("begins", [False, True], ids=["before it begins", "before the first step"])
def test_with_little_time_nothing_heals_and_that_is_said(begins, tiny, monkeypatch):
    recipe = (tiny / "recipe.yaml").read_text(encoding="utf-8")
    (tiny / "recipe.yaml").write_text(recipe.replace("max_steps: 3, ", ""), encoding="utf-8")
    monkeypatch.setattr(line, "LEAST_HEALING", -1.0 if begins else 1e9)
    monkeypatch.setattr(Pacing, "begin", lambda *_: False)
    made = shrunk(tiny)
    assert made.healing is None
    assert "no healing" in made.left_out
    unused = f"It was not healed: the minutes were too few; the data {tiny / 'lines.jsonl'} was not used."
    assert unused in made.reasons
    assert not any("repair" in said for said in made.left_out), "the recipe has none"
    assert made.steps()["evaluate_pruned"]["perplexity"]
    assert Checkpoint.open(tiny / "out").record["verb"] == "prune"
    assert "heal" not in yaml.safe_load(made.recipe)


def test_where_it_is_late_nothing_is_repaired_or_written_and_that_is_said_and_repeated(tiny, monkeypatch):
    recipe = (tiny / "recipe.yaml").read_text(encoding="utf-8").replace("drop: 2", "drop: 2, repair: true")
    (tiny / "recipe.yaml").write_text(recipe, encoding="utf-8")
    for name in ("REPAIRED_BY", "PROBED_BY"):
        monkeypatch.setattr(line, name, 0.0)
    made = shrunk(tiny, probe_items=2)
    assert {"no repair", "what the unpruned model writes"} <= {*made.left_out}
    assert not made.repair
    assert not made.base.probes
    assert not made.last.probes, "there would be nothing to hold them against"
    assert made.table()
    assert yaml.safe_load(made.recipe)["plan"]["repair"] is False
    told, text = [], str(tiny / "text.txt")
    options = ShrinkOptions(recipe=str(tiny / "out" / "recipe.yaml"), perplexity=text, probe_items=0)
    monkeypatch.setattr(line, "forward_speed", None)  # no speed is measured: nothing goes by the clock
    again = shrink(str(tiny / "model"), tiny / "again", options, progress=lambda stage, *_, note="": told.append(stage))
    assert Checkpoint.open(again.output).weights_sha256 == Checkpoint.open(made.output).weights_sha256
    assert {"checking", "choosing layers"} <= {*told}
    assert STAGE not in told, "the share of the time that has passed"


def test_where_measuring_the_text_took_all_the_time_left_the_probes_are_left_out_and_that_is_said(tiny, monkeypatch):
    measured = line.Line.measured

    def late(self, checkpoint, name, until):
        return measured(self, checkpoint, name, Clock(0.0) if name == "shortened" else until)

    monkeypatch.setattr(line.Line, "measured", late)
    made = shrunk(tiny, probe_items=2)
    assert made.base.probes
    assert not made.last.probes
    assert made.last.perplexity
    assert {"probes of the shortened model", "what the shortened model writes freely"} <= {*made.left_out}


def test_probes_are_given_up_in_their_middle_where_the_time_is_over(tiny, monkeypatch):
    measured, told = line.Line.measured, []

    def late(self, checkpoint, name, until):
        if name == "unpruned":
            return replace(measured(self, checkpoint, name, until), seconds=1e9)
        return measured(self, checkpoint, name, Clock(8.0, now=itertools.count().__next__))  # each look takes a second

    monkeypatch.setattr(line.Line, "measured", late)
    evaluate = measuring.evaluate

    def counting(checkpoint, config, **how):
        def progress(stage, done, total, *, note=""):
            told.append((stage, done))
            how["progress"](stage, done, total, note=note)

        return evaluate(checkpoint, config, **{**how, "progress": progress})

    monkeypatch.setattr(measuring, "evaluate", counting)
    made = shrunk(tiny, probe_items=2)
    assert made.base.probes
    assert not made.last.probes
    assert {"probes of the shortened model", "answers of the shortened model"} <= {*made.left_out}
    assert told[-1][0] != "measuring perplexity", "probes were begun"


def test_a_killed_run_with_tasks_goes_on_and_asks_anew_where_documents_have_changed(tiny, monkeypatch):
    folder = data_folder(tiny / "data")
    tasks = {"tasks": "piqa", "data_dir": str(folder)}
    choose = line.choose

    def killed(*_args, **_how):
        raise KeyboardInterrupt

    monkeypatch.setattr(line, "choose", killed)
    with pytest.raises(KeyboardInterrupt):
        shrunk(tiny, **tasks)
    monkeypatch.setattr(line, "choose", choose)
    called = counted(monkeypatch, "evaluate")
    made = shrunk(tiny, **tasks)
    assert len(called) == 2, "the text and the task of the shortened model"
    assert made.base.tasks["piqa"].n == made.last.tasks["piqa"].n == 12
    monkeypatch.setattr(line, "choose", killed)
    with pytest.raises(KeyboardInterrupt):
        shrunk(tiny, "other", **tasks)
    monkeypatch.setattr(line, "choose", choose)
    documents = folder / "piqa" / "validation.jsonl"
    documents.write_text("".join(documents.read_text(encoding="utf-8").splitlines(keepends=True)[:8]), encoding="utf-8")
    assert shrunk(tiny, "other", **tasks).base.tasks["piqa"].n == 8


def test_a_run_that_is_refused_leaves_no_folder_behind(tiny):
    for out, options in (("model/sub/deep/out", {}), ("new/deep/out", {"drop": "6"}), ("new/out", {"minutes": 1e-6})):
        with pytest.raises(ShortstackError):
            shrunk(tiny, out, **options)
    assert not (tiny / "model" / "sub").exists()
    assert not (tiny / "new").exists()


def test_a_dry_run_goes_by_the_clock_of_the_run(tiny):
    with pytest.raises(InputError, match="minutes"):
        preview_shrink(str(tiny / "model"), tiny / "out", options_of(tiny, minutes=1e-6))


def test_a_model_that_says_nothing_is_not_kept(tiny, monkeypatch):
    monkeypatch.setattr(
        line.reference,
        "answers",
        lambda checkpoint, **_: ("a", "b", "c") if checkpoint.directory.name == "model" else ("a", "", "c"),
    )
    made = shrunk(tiny)
    assert made.verdict == "Do not keep it."
    assert made.reasons[0].startswith("It gives no answer to a prompt")


def test_answers_for_which_no_time_was_left_are_nowhere(tiny, monkeypatch):
    measured, late = line.Line.measured, "shortened"

    def measure(self, checkpoint, name, until):
        return measured(self, checkpoint, name, Clock(0.0) if name == late else until)

    monkeypatch.setattr(line.Line, "measured", measure)
    made = shrunk(tiny)
    assert {f"answers of the {late} model", f"probes of the {late} model"} <= {*made.left_out}
    assert (bool(made.base.probes), made.last.probes) == (True, {})
    assert [set(said) for said in made.answers] == [{"prompt", "unpruned", "shortened"} - {late}] * 3
    card = (tiny / "out" / "README.md").read_text(encoding="utf-8")
    assert f"- {late}:" not in card
    assert "- prompt: " in card
    assert reference.beside((), ()) == []
    assert [set(said) for said in reference.beside((), "abc")] == [{"prompt", "shortened"}] * 3


def test_a_missing_library_is_said_before_anything_is_computed(tiny, monkeypatch):
    monkeypatch.setattr("shortstack.machine.options.find_spec", lambda _name: None)
    for refused in (
        lambda: shrunk(tiny, data="pydoc"),
        lambda: preview_shrink(str(tiny / "model"), tiny / "out", options_of(tiny, data="pydoc")),
    ):
        with pytest.raises(InputError, match=r"shortstack\[lora\]") as raised:
            refused()
        check_options_of_shrink(raised.value)
    assert not list(tiny.glob("out*"))


def by_clock(tiny):
    """Let healing go by the clock, by the recipe."""
    recipe = (tiny / "recipe.yaml").read_text(encoding="utf-8")
    (tiny / "recipe.yaml").write_text(recipe.replace("max_steps: 3, ", ""), encoding="utf-8")


def use_up(folder):
    """Let the time of an unfinished run be over."""
    (folder / "clock.json").write_text(json.dumps({"used": 3600.0}), encoding="utf-8")


@contextmanager
def killed_in(monkeypatch, name, when):
    """A run that is killed in a method of Line."""
    method = getattr(line.Line, name)

    def killed(self, *args):
        if when(*args):
            raise KeyboardInterrupt
        return method(self, *args)

    with monkeypatch.context() as patched:
        patched.setattr(line.Line, name, killed)
        with pytest.raises(KeyboardInterrupt):
            yield


def test_a_run_killed_after_healing_delivers_the_healed_model_though_its_time_is_over(tiny, monkeypatch):
    by_clock(tiny)
    heals_by_ticks(monkeypatch)
    with killed_in(monkeypatch, "measured", lambda _checkpoint, name, _until: name == "shortened"):
        shrunk(tiny)
    use_up(tiny / "out.partial")
    monkeypatch.setattr(line, "LEAST_HEALING", 20.0)  # more than is left now
    called = counted(monkeypatch, "choose", "prune", "heal")
    made = shrunk(tiny)
    assert called == []
    assert made.healing.history.steps > 0
    assert "no healing" not in made.left_out
    assert Checkpoint.open(tiny / "out").record["verb"] == "heal"


def test_cuts_that_were_tried_before_a_kill_count_though_the_time_is_over(tiny, monkeypatch):
    lost_by_layers(monkeypatch)
    with killed_in(monkeypatch, "chosen", lambda route: route.choice.drop == "3"):
        shrunk(tiny, min_quality="75%")
    use_up(tiny / "out.partial")
    made = shrunk(tiny, min_quality="75%")
    assert [each.layers for each in made.tried][:2] == [4, 2]
    assert len(made.plan.removed) == 2


def test_an_output_that_was_removed_meanwhile_is_made_again(tiny, monkeypatch):
    outs = {"1": tiny / "one", "2": tiny / "two"}
    with killed_in(monkeypatch, "chosen", lambda route: route.choice.drop == "2"):
        shrink_each(str(tiny / "model"), outs, options_of(tiny))
    shutil.rmtree(tiny / "one")
    both = shrink_each(str(tiny / "model"), outs, options_of(tiny))
    assert [Checkpoint.open(made.output).anatomy.layers for made in both] == [5, 4]


def test_a_folder_that_took_the_output_s_name_meanwhile_costs_no_work(tiny, monkeypatch):
    renamed = line.rename_new

    def taken(place, out):
        if out.name == "out":
            out.mkdir()
            (out / "notes.txt").write_text("mine", encoding="utf-8")
        renamed(place, out)

    monkeypatch.setattr(line, "rename_new", taken)
    with pytest.raises(OutputError, match="an output that does not exist yet"):
        shrunk(tiny)
    monkeypatch.setattr(line, "rename_new", renamed)
    with pytest.raises(OutputError, match="it exists"):
        shrunk(tiny)
    shutil.move(tiny / "out", tiny / "theirs")
    called = counted(monkeypatch, "choose", "prune", "heal")
    assert Checkpoint.open(shrunk(tiny).output).anatomy.layers == 4
    assert called == []


def test_an_unfinished_healing_of_the_same_name_is_in_another_folder(tiny):
    (tiny / "out.training" / "checkpoint-20").mkdir(parents=True)
    assert shrunk(tiny).healing
    assert (tiny / "out.training" / "checkpoint-20").is_dir()


def test_a_run_killed_before_it_removes_its_stages_is_finished_by_the_same_command(tiny, monkeypatch):
    removed = files.remove

    def killed(path):
        if path.name.startswith(("made", "clock")):
            raise KeyboardInterrupt  # all else is gone
        removed(path)

    monkeypatch.setattr(files, "remove", killed)
    with pytest.raises(KeyboardInterrupt):
        shrunk(tiny)
    weights = Checkpoint.open(tiny / "out").weights_sha256
    monkeypatch.setattr(files, "remove", removed)
    assert shrunk(tiny).output == tiny / "out"
    assert Checkpoint.open(tiny / "out").weights_sha256 == weights
    assert not (tiny / "out.partial").exists()


def test_a_stage_that_cannot_be_removed_stays_with_what_says_whose_it_is(tiny, monkeypatch):
    removed = files.remove

    def failing(path):
        if path.name.startswith("plan"):
            raise OSError(errno.EROFS, "read-only file system")
        removed(path)

    monkeypatch.setattr(files, "remove", failing)
    made = shrunk(tiny)
    left = {path.name.partition("-")[0] for path in (tiny / "out.partial").iterdir()}
    assert {"plan", "made", "clock.json"} <= left
    monkeypatch.setattr(files, "remove", removed)
    assert shrunk(tiny).command == made.command
    assert not (tiny / "out.partial").exists()


def test_a_folder_of_somebody_else_is_no_unfinished_run(tiny):
    (tiny / "out.partial").mkdir()
    (tiny / "out.partial" / "notes.txt").write_text("mine", encoding="utf-8")
    for refused in (lambda: shrunk(tiny), lambda: preview_shrink(str(tiny / "model"), tiny / "out", options_of(tiny))):
        with pytest.raises(OutputError, match=r"out\.partial"):
            refused()
    assert (tiny / "out.partial" / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_a_model_that_does_not_fit_in_memory_is_refused_before_any_work(tiny, monkeypatch):
    monkeypatch.setattr("shortstack.machine.memory.available_memory", lambda _device: 1000)
    with pytest.raises(InputError, match="plan, prune and repair read such a model layer by layer"):
        shrunk(tiny)
    assert not list(tiny.glob("out*"))


def test_the_command_that_repeats_has_what_the_recipe_does_not_say(tiny, monkeypatch):
    by_clock(tiny)
    monkeypatch.setattr(line, "LEAST_HEALING", 1e9)
    lost_by_layers(monkeypatch, first=2)
    made = shrunk(tiny, min_quality="75%", compute=Compute(seed=5))
    words = shlex.split(made.command)
    assert not {"--data", "--min-quality", "--minutes", "--text", "--samples"} & {*words}, "the recipe says how much"
    assert words[words.index("--seed") + 1] == "5"
    with monkeypatch.context() as patched:
        patched.setattr(sys, "argv", [*words, "--json"])
        with pytest.raises(SystemExit) as ended:
            main()
    assert not ended.value.code
    assert Checkpoint.open(f"{made.output}-again").weights_sha256 == Checkpoint.open(made.output).weights_sha256


def test_the_command_that_repeats_names_the_revision_of_a_hub_model(tiny):
    checkpoint = replace(Checkpoint.open(tiny / "model"), source="org/model", revision="v2")
    words = shlex.split(shrink(checkpoint, tiny / "out", options_of(tiny)).command)
    assert words[:3] == ["shortstack", "shrink", "org/model"]
    assert words[words.index("--revision") + 1] == "v2"


def test_numbers_of_a_recipe_stay_but_for_those_that_were_typed(tiny):
    recipe = (tiny / "recipe.yaml").read_text(encoding="utf-8")
    (tiny / "recipe.yaml").write_text(recipe.replace("drop: 2", "drop: 2, samples: 6"), encoding="utf-8")
    shorter = [shrunk(tiny, f"of-{typed}", samples=typed, drop=None) for typed in (None, 5, 16)]
    chosen_on = [yaml.safe_load(made.recipe)["plan"]["samples"] for made in shorter]
    assert chosen_on == [6, 5, 16], "and 16, which is as many as without a recipe's number"
    assert Checkpoint.open(tiny / "of-None").record["healing"]["schedule"]["seed"] == 3, "as the recipe states it"
    (tiny / "recipe.yaml").write_text(recipe.replace("max_steps: 3", "minutes: 3"), encoding="utf-8")
    with pytest.raises(InputError, match="what the minutes of shrink leave"):
        shrunk(tiny, "other")


def test_numbers_of_a_recipe_stay_however_little_the_model_writes(tiny, monkeypatch):
    """With as little as it writes in time there would be four windows of each text."""
    monkeypatch.setattr(line, "forward_speed", lambda *_, **__: 5000.0)
    monkeypatch.setattr(line, "text_in_time", lambda _source, text, *_, **__: replace(text, samples=1))
    plan = "plan: {metric: ppl, drop: 2, samples: 6}\n"
    (tiny / "of-numbers.yaml").write_text(f"{plan}{RECIPE.partition('drop: 2}')[2]}", encoding="utf-8")
    made = shrunk(tiny, recipe=str(tiny / "of-numbers.yaml"), drop=None, samples=None, text="mix", length=64)
    assert yaml.safe_load(made.recipe)["plan"]["samples"] == 6
    assert not any("calibration windows" in said for said in made.left_out)


def test_a_model_writes_nothing_that_nobody_reads(tiny, monkeypatch):
    """Neither the choice nor a repair looks at a text."""
    monkeypatch.setattr(line, "forward_speed", lambda *_, **__: 5000.0)
    monkeypatch.setattr(line, "text_in_time", lambda *_, **__: pytest.fail("it writes"))
    (tiny / "tail.yaml").write_text(RECIPE.replace("metric: ppl", "metric: reverse"), encoding="utf-8")
    made = shrunk(tiny, recipe=str(tiny / "tail.yaml"), samples=None, text=None, length=16, minutes=1.0)
    assert not any("calibration" in said for said in made.left_out)


def test_a_run_that_goes_on_decides_by_all_of_its_cuts(tiny):
    """Choosing the larger one holds more streams, so that fewer windows fit."""
    repaired = RECIPE.replace("{metric: ppl, drop: 2}", "{strategy: repaired-blocks, repair: true, repair_samples: 32}")
    (tiny / "repaired.yaml").write_text(repaired, encoding="utf-8")
    options = options_of(tiny, recipe=str(tiny / "repaired.yaml"), samples=None, text=None, length=64)
    larger, smaller = ({tiny / drop: Route.of(options, drop)} for drop in "51")
    source = Checkpoint.open(tiny / "model")
    most = check_shrink(source, {**larger, **smaller}, options, Compute()).most
    assert check_shrink(source, {**larger, **smaller}, options, Compute(), made=larger).most == most
    assert check_shrink(source, smaller, options, Compute()).most > most


def test_a_dry_run_says_how_much_fits_and_writes_nothing(tiny, capsys, monkeypatch):
    text, words = (
        str(tiny / "text.txt"),
        ["shortstack", "shrink", str(tiny / "model"), "-o", str(tiny / "out"), "--dry-run"],
    )
    named = [
        "--recipe",
        str(tiny / "recipe.yaml"),
        "--data",
        str(tiny / "lines.jsonl"),
        "--text",
        text,
        "--perplexity",
        text,
    ]
    for more, shown in (([], "calibration windows of each text"), (["--json"], '"windows": 4')):
        monkeypatch.setattr("sys.argv", [*words, *named, "--samples", "4", "--probe-items", "0", *more])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
        assert shown in capsys.readouterr().out
    assert not list(tiny.glob("out*"))
