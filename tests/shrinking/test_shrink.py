"""shrink: the whole line into one folder that is a plain checkpoint, with its report and card; killed, it goes on."""

import html
import itertools
import json
import shlex

import pytest
import yaml

from command import ended
from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.record import skipped_layers
from shortstack.errors import InputError, OutputError, ShortstackError
from shortstack.evaluation.paired import Estimate
from shortstack.machine.clock import Clock
from shortstack.machine.device import Compute
from shortstack.planning.layer_sets import parse_layers
from shortstack.profiling import Timing
from shortstack.pruning import verify
from shortstack.shrinking import ShrinkOptions, line, measuring, shrink, stages
from shortstack.shrinking.line import preview
from studies import make_data

pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("own_cache")
RECIPE = """
title: small
plan: {metric: ppl, drop: 2, num_samples: 4, seq_length: 16}
heal: {method: lora, lora_r: 2, max_steps: 3, max_length: 32, per_device_train_batch_size: 4, learning_rate: 0.01, seed: 3}
"""
STAGES = ("evaluate", "select", "prune", "time_both", "heal")


@pytest.fixture(autouse=True)
def little_is_timed_and_written(monkeypatch):
    monkeypatch.setattr("shortstack.shrinking.measuring.TIMING", Timing((1,), prompt=8, new_tokens=2, repeats=2))
    monkeypatch.setattr("shortstack.shrinking.measuring.ANSWER_TOKENS", 8)


@pytest.fixture
def tiny(tmp_path):
    (tmp_path / "recipe.yaml").write_text(RECIPE, encoding="utf-8")
    return make_data(tmp_path)


def options_of(tiny, **changes):
    text = str(tiny / "text.txt")
    usual = {"recipe": str(tiny / "recipe.yaml"), "data": str(tiny / "lines.jsonl"), "perplexity": text}
    return ShrinkOptions(**{**usual, "calibration_data": text, "probe_items": 0, **changes})


def shrunk(tiny, out="out", **changes):
    compute = changes.pop("compute", Compute())
    return shrink(str(tiny / "model"), tiny / out, options_of(tiny, **changes), compute=compute)


def counted(monkeypatch, stop=""):
    """The stages that ran from now on, in order; an interrupt comes in place of the stage `stop`."""
    called = []
    for name in STAGES:
        room = measuring if name == "evaluate" else line
        verb = getattr(room, name)

        def called_verb(*args, _name=name, _verb=verb, **options):
            if _name == stop:
                raise KeyboardInterrupt
            called.append(_name)
            return _verb(*args, **options)

        monkeypatch.setattr(room, name, called_verb)
    return called


def interrupted(tiny, monkeypatch, stop):
    with monkeypatch.context() as patch:
        counted(patch, stop)
        with pytest.raises(KeyboardInterrupt):
            shrunk(tiny)


def weights(folder):
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


def test_shrink_makes_a_checkpoint_with_card_report_and_recipe(tiny):
    made = shrunk(tiny)
    checkpoint = Checkpoint.open(tiny / "out")
    assert checkpoint.anatomy.layers == 4
    assert verify(checkpoint).ok
    assert list(made.plan.removed) == sorted(skipped_layers(checkpoint, Checkpoint.open(tiny / "model")))
    page = html.unescape((tiny / "out" / "report.html").read_text(encoding="utf-8"))
    assert all(text in page for said in made.answers for text in said.values())
    summary = json.loads((tiny / "out" / "shrink.json").read_text())
    assert summary["steps"]["plan"]["removed"] == list(made.plan.removed)
    assert set(summary["steps"]) == {"evaluate_base", "plan", "prune", "heal", "evaluate_healed"}
    assert not list(tiny.glob("out.*"))
    card = (tiny / "out" / "README.md").read_text(encoding="utf-8")
    assert "base_model" not in yaml.safe_load(card.split("---")[1])  # it is a folder here
    assert "| layers | 6 | 4 |" in card
    assert str(tiny) not in html.unescape(card), "it may be uploaded"
    assert [set(said) for said in made.answers] == [{"prompt", "base", "pruned"}] * 3
    assert made.healing.history.steps == 3


def test_the_recipe_beside_the_weights_repeats_them(tiny):
    made = shrunk(tiny)
    words = [word if word != str(tiny / "out-again") else str(tiny / "again") for word in shlex.split(made.command)]
    again = ended(*words[1:], "--json")
    assert again.exit_code == 0, again.stderr
    assert weights(tiny / "again") == weights(tiny / "out")


@pytest.mark.parametrize("stop", STAGES)
def test_an_interrupted_run_goes_on_and_ends_in_the_same_weights(tiny, monkeypatch, stop):
    whole = shrunk(tiny, "whole")
    interrupted(tiny, monkeypatch, stop)
    before = STAGES[1 : STAGES.index(stop)]
    called = counted(monkeypatch)
    made = shrunk(tiny)
    assert not {*before} & {*called}, "what was done is not done again"
    assert made.plan.removed == whole.plan.removed
    assert weights(tiny / "out") == weights(tiny / "whole")
    assert not (tiny / "out.partial").exists()


def test_other_options_begin_anew(tiny, monkeypatch):
    interrupted(tiny, monkeypatch, "heal")
    called = counted(monkeypatch)
    assert len(shrunk(tiny, drop=1).plan.removed) == 1
    assert "select" in called


def test_after_an_error_nothing_is_left(tiny, monkeypatch):
    def fails(*_args, **_options):
        raise ShortstackError("no")

    monkeypatch.setattr(line, "heal", fails)
    with pytest.raises(ShortstackError):
        shrunk(tiny)
    assert not list(tiny.glob("out*"))


def test_somebody_elses_folder_is_refused_and_stays(tiny):
    (tiny / "out.partial").mkdir()
    (tiny / "out.partial" / "thesis.txt").write_text("mine")
    with pytest.raises(OutputError):
        shrunk(tiny)
    assert (tiny / "out.partial" / "thesis.txt").read_text() == "mine"


def test_too_few_minutes_are_refused_before_any_work(tiny, monkeypatch):
    called = counted(monkeypatch)
    monkeypatch.setattr(line, "forward_speed", lambda *_, **__: 50.0)
    (tiny / "timed.yaml").write_text(
        "plan: {metric: ppl, drop: 2, num_samples: 4, seq_length: 16}\nheal: {method: lora, data: pydoc}"
    )
    with pytest.raises(InputError) as refused:
        shrunk(tiny, recipe=str(tiny / "timed.yaml"), minutes=0.5)
    assert refused.value.option == "minutes", refused.value
    assert (called, [*tiny.glob("out*")]) == ([], [])


def test_no_healing_begins_that_cannot_finish(tiny, monkeypatch):
    (tiny / "timed.yaml").write_text(RECIPE.replace("max_steps: 3, ", ""))
    seconds = itertools.count(0, 0.01).__next__
    monkeypatch.setattr(stages, "Clock", lambda limit, used=0.0: Clock(limit, used=used, now=seconds))
    monkeypatch.setattr(line, "least_healing", lambda *_, **__: 1e9)
    called = counted(monkeypatch)
    made = shrunk(tiny, recipe=str(tiny / "timed.yaml"), minutes=60)
    assert "heal" not in called
    assert ("healing" in made.skipped, made.healing) == (True, None)
    assert verify(Checkpoint.open(tiny / "out")).ok


def test_the_largest_cut_that_keeps_the_quality_is_delivered(tiny, monkeypatch):
    kept = iter([0.9, 0.99, 0.97])
    monkeypatch.setattr(line, "retention", lambda *_: {"likelihood": Estimate(next(kept), 0.01)})
    made = shrunk(tiny, min_quality="95%")
    enough = [cut.layers for cut in made.tried if cut.kept.value >= 0.95]
    assert len(made.plan.removed) == max(enough)
    assert Checkpoint.open(tiny / "out").anatomy.layers == 6 - max(enough)


def test_no_cut_that_keeps_the_quality_is_an_error(tiny, monkeypatch):
    monkeypatch.setattr(line, "retention", lambda *_: {"likelihood": Estimate(0.5, 0.01)})
    with pytest.raises(ShortstackError) as refused:
        shrunk(tiny, min_quality="95%")
    assert refused.value.option == "min_quality"
    assert not list(tiny.glob("out*"))


@pytest.mark.parametrize(
    ("options", "option"),
    [
        ({"drop": 2, "target_size": "1GB"}, "target_size"),
        ({"min_quality": "0.95"}, "min_quality"),
        ({"probe_items": 1}, "probe_items"),
        ({"perplexity": "none"}, "perplexity"),
        ({"limit": 5}, "limit"),
        ({"recipe": "paper-iterative-1-1-8"}, "recipe"),
    ],
)
def test_options_that_exclude_each_other_are_refused(tiny, options, option):
    with pytest.raises(InputError) as refused:
        shrunk(tiny, **options)
    assert refused.value.option == option


def test_a_recipe_that_names_layers_takes_no_goal(tiny):
    (tiny / "named.yaml").write_text('plan: {layers: "2-3"}')
    assert shrunk(tiny, recipe=str(tiny / "named.yaml"), data=None, drop=None).plan.removed == parse_layers("2-3")
    with pytest.raises(InputError) as refused:
        shrunk(tiny, "other", recipe=str(tiny / "named.yaml"), data=None, drop=1)
    assert refused.value.option == "recipe"


def test_a_dry_run_writes_nothing(tiny):
    budget, memory, disk, seconds = preview(str(tiny / "model"), tiny / "out", options_of(tiny, minutes=5))
    assert (budget.windows, seconds) == (4, 300.0)
    assert memory.nbytes > Checkpoint.open(tiny / "model").weight_bytes
    assert disk == 3 * Checkpoint.open(tiny / "model").weight_bytes
    assert not list(tiny.glob("out*"))
