"""Pruning and healing in turns."""

import json
import os
import signal
from dataclasses import replace
from functools import partial

import pytest

import learning
from command import invoke
from learning import weights
from plans import plan
from shortstack.checkpoint import Checkpoint
from shortstack.errors import InputError, OutputError
from shortstack.healing import (
    IterativeSchedule,
    Objective,
    Partial,
    Schedule,
    TrainingData,
    heal,
    heal_in_turns,
    healer,
)
from shortstack.healing import iterative as turning
from shortstack.healing.preview import preview
from shortstack.pruning import prune
from zoo import speaking

pytestmark = pytest.mark.usefixtures("own_cache")
SHORT = replace(learning.SHORT, method=Partial(train_last=1))


def interrupted(*_arguments, **_options):
    raise KeyboardInterrupt


def test_turns_are_prune_and_heal_one_after_the_other(source, tmp_path):
    """A logger's files outlive each turn: tensorboard's own reader finds the held-out losses that the result tells."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    result = heal_in_turns(
        source, tmp_path / "out", IterativeSchedule("3", 2, "reverse"), replace(SHORT, loggers=["tensorboard"])
    )
    by_hand = heal(prune(source, plan(8, layers="6-7"), tmp_path / "p1"), tmp_path / "h1", SHORT)
    second = prune(Checkpoint.open(str(by_hand.output)), plan(6, layers="5"), tmp_path / "p2")
    heal(second, tmp_path / "h2", SHORT)
    assert weights(tmp_path / "out") == weights(tmp_path / "h2")
    assert result.output == tmp_path / "out"
    healed = Checkpoint.open(str(tmp_path / "out"))
    assert healed.record["layer_map"] == {str(layer): layer for layer in range(5)}
    verbs, record = [], healed.record
    while record:
        verbs.append(record["verb"])
        record = record["origin"]
    assert verbs == ["heal", "prune", "heal", "prune"]
    assert not (tmp_path / "out.turns").exists()
    assert sorted(path.name for path in (tmp_path / "out.logs").iterdir()) == ["1-healed", "2-healed"]
    found = events.EventAccumulator(str(tmp_path / "out.logs" / "2-healed")).Reload().Scalars("eval/loss")
    assert [(event.step, pytest.approx(event.value, abs=1e-6)) for event in found] == list(result.history.held_out)


def test_each_turn_scores_the_model_as_it_is_then(source, tmp_path, monkeypatch):
    scored, original = [], turning.select
    monkeypatch.setattr(
        turning, "select", lambda model, *args, **options: scored.append(model) or original(model, *args, **options)
    )
    turns = IterativeSchedule("25%", 1, "bi", calibration_data="pydoc", num_samples=4, seq_length=16)
    heal_in_turns(source, tmp_path / "out", turns, SHORT)
    assert [model.anatomy.layers for model in scored] == [8, 7]


def test_finished_turns_are_not_repeated_and_other_requests_refused(source, tmp_path, monkeypatch):
    turns, healed, original = IterativeSchedule("2", 1, "reverse"), [], turning.heal

    def failing(checkpoint, out, *task, **options):
        healed.append(out.name)
        if out.name == "2-healed" and len(healed) == 2:
            raise KeyboardInterrupt
        return original(checkpoint, out, *task, **options)

    monkeypatch.setattr(turning, "heal", failing)
    with pytest.raises(KeyboardInterrupt):
        heal_in_turns(source, tmp_path / "out", turns, SHORT)
    with pytest.raises(OutputError, match="turn resume on to continue"):
        heal_in_turns(source, tmp_path / "out", turns, SHORT)
    other = TrainingData("copying", max_length=32, max_samples=16)
    for changed, task, named in (
        (IterativeSchedule("2", 2, "reverse"), SHORT, r"turns\.step 1"),
        (IterativeSchedule("2", 1, "reverse", calibration_data="copying"), SHORT, r"turns\.calibration_data"),
        (turns, replace(SHORT, data=other), r"data\.data pydoc|data\.sha256"),
        (turns, replace(SHORT, objective=Objective("distill"), teacher=source), r"objective\.loss sft"),
    ):
        with pytest.raises(InputError, match=named):
            heal_in_turns(source, tmp_path / "out", changed, task, resume=True)
    heal_in_turns(source, tmp_path / "out", turns, SHORT, resume=True)
    assert healed == ["1-healed", "2-healed", "2-healed"]
    heal_in_turns(source, tmp_path / "whole", turns, SHORT)
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


def test_a_killed_turn_goes_on_at_its_step(source, tmp_path):
    turns, stage, seen = IterativeSchedule("2", 1, "reverse"), "turn 2 of 2: healing", []
    task = replace(SHORT, schedule=replace(SHORT.schedule, per_device_train_batch_size=4))

    def killed(at, done, _total, *, note=""):
        if (at, done) == (stage, 2):
            os.kill(os.getpid(), signal.SIGINT)

    def noted(at, done, _total, *, note=""):
        if at == stage:
            seen.append(done)

    with pytest.raises(KeyboardInterrupt):
        heal_in_turns(source, tmp_path / "out", turns, task, progress=killed)
    heal_in_turns(source, tmp_path / "out", turns, task, resume=True, progress=noted)
    assert min(seen) == 3


def test_layers_that_a_later_turn_lacks_are_refused_before_the_first(source, tmp_path, monkeypatch):
    monkeypatch.setattr(turning, "heal", lambda *_, **__: pytest.fail("healed"))
    task, turns = replace(SHORT, method=Partial(train_last=7)), IterativeSchedule("2", 1, "reverse")
    for refused in (heal_in_turns, preview_in_turns):
        with pytest.raises(InputError, match="last: expected at most the model's 6 layers"):
            refused(source, tmp_path / "out", turns, task)


def preview_in_turns(source, out, turns, task):
    return preview(source, out, task, turns)


@pytest.mark.parametrize("resume", [None, True, False])
@pytest.mark.parametrize("kind", ["training", "turns"])
def test_a_folder_of_somebody_else_is_no_unfinished_run(kind, resume, source, tmp_path):
    notes = tmp_path / f"out.{kind}" / "notes.txt"
    notes.parent.mkdir()
    notes.write_text("mine")
    verb = heal if kind == "training" else partial(heal_in_turns, turns=IterativeSchedule("2", 1, "reverse"))
    with pytest.raises(OutputError, match=rf"out\.{kind}"):
        verb(source, tmp_path / "out", task=SHORT, resume=resume)
    assert notes.read_text() == "mine"


def test_an_edited_model_does_not_go_on(tmp_path, monkeypatch):
    folder = speaking(tmp_path / "source")
    monkeypatch.setattr(healer.HealingRun, "train", interrupted)
    with pytest.raises(KeyboardInterrupt):
        heal(Checkpoint.open(folder), tmp_path / "out", SHORT)
    (tmp_path / "out.training" / "checkpoint-1").mkdir()
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(json.dumps({**json.loads(config), "rope_theta": 5e5}))
    with pytest.raises(InputError, match=r"resume: expected model\.config"):
        heal(Checkpoint.open(folder), tmp_path / "out", SHORT, resume=True)
    (folder / "config.json").write_text(config)
    fast = json.loads((tmp_path / "out.training/run.json").read_text())["dtype"] == "bfloat16"
    monkeypatch.setattr(healer, "fast_bfloat16", lambda _device: not fast)
    with pytest.raises(InputError, match="resume: expected dtype"):
        heal(Checkpoint.open(folder), tmp_path / "out", SHORT, resume=True)


@pytest.mark.parametrize("wrong", [{"step": 0}, {"metric": "nothing"}, {"samples": "0"}, {"samples": "some"}])
def test_turns_that_cannot_be_are_refused(wrong):
    with pytest.raises(InputError):
        IterativeSchedule(**{"drop": "2", "step": 1, **wrong})


def test_turns_have_no_minutes(source, tmp_path):
    with pytest.raises(InputError, match="minutes: expected a single healing"):
        heal_in_turns(source, tmp_path, IterativeSchedule("2", 1), replace(SHORT, schedule=Schedule(minutes=1)))


def test_no_more_layers_go_in_a_turn_than_in_all():
    assert IterativeSchedule("25%", 2).sizes(8) == [2]
    with pytest.raises(InputError, match="step: expected 1 to 2 layers at a time, found 3"):
        IterativeSchedule("25%", 3).sizes(8)


def test_the_command_says_how_many_turns_there_are_and_which_layers_went_in_all(folder, tmp_path):
    words = ["heal", str(folder), "--drop", "3", "--step", "2", "--metric", "reverse", "--data", "pydoc"]
    words += ["--max-length", "32", "--max-samples", "16", "--train-last", "1", "--max-steps", "1"]
    words += ["-o", str(tmp_path / "out")]
    assert json.loads(invoke(*words, "--dry-run", "--json").stdout)["turns"] == [2, 1]
    assert "Layers 5-7 were removed in total. The table shows the last turn." in invoke(*words).stdout


def test_what_a_recipe_does_not_do_here_is_said(tmp_path):
    speaking(tmp_path / "source", tie_word_embeddings=True)
    words = ["heal", str(tmp_path / "source"), "--recipe", "paper-last3", "--data", "pydoc", "--held-out", "2"]
    words += ["--max-length", "32", "--max-samples", "16", "--dry-run", "-o", str(tmp_path / "out")]
    said = " ".join(invoke(*words).stderr.split())
    assert "has no layers removed, and heal removes none" in said
    assert "the head is the embedding matrix and stays frozen" in said
