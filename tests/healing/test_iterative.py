"""Pruning and healing in rounds."""

from dataclasses import replace

import pytest

import learning
from command import invoke
from learning import weights
from plans import plan
from shortstack.checkpoint import Checkpoint
from shortstack.data import Text
from shortstack.errors import InputError, PlanError
from shortstack.healing import Partial, heal, iterative, prune_iteratively
from shortstack.pruning import prune

pytestmark = pytest.mark.usefixtures("own_cache")
SHORT = replace(learning.SHORT, method=Partial(train_last=1))


def test_rounds_are_prune_and_heal_one_after_the_other(source, tmp_path):
    """TensorBoard's own reader finds the held-out losses of each round."""
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    logged = replace(SHORT, report_to=["tensorboard"])
    result = prune_iteratively(source, tmp_path / "out", logged, drop=3, step=2, metric="reverse")
    by_hand = heal(prune(source, plan(8, layers="6-7"), tmp_path / "p1"), tmp_path / "h1", SHORT)
    second = prune(Checkpoint.open(str(by_hand.output)), plan(6, layers="5"), tmp_path / "p2")
    heal(second, tmp_path / "h2", SHORT)
    assert weights(tmp_path / "out") == weights(tmp_path / "h2")
    healed = Checkpoint.open(result.output)
    assert healed.record["layer_map"] == {str(layer): layer for layer in range(5)}
    assert [record["verb"] for record in healed.records] == ["heal", "prune", "heal", "prune"]
    assert not (tmp_path / "out.rounds").exists()
    assert sorted(path.name for path in (tmp_path / "out.logs").iterdir()) == ["1-healed", "2-healed"]
    found = events.EventAccumulator(str(tmp_path / "out.logs" / "2-healed")).Reload().Scalars("eval/loss")
    assert [(event.step, pytest.approx(event.value, abs=1e-6)) for event in found] == list(result.history.held_out)


def test_each_round_scores_the_model_as_it_is_then(source, tmp_path, monkeypatch):
    scored, original = [], iterative.select
    monkeypatch.setattr(
        iterative, "select", lambda model, *args, **options: scored.append(model) or original(model, *args, **options)
    )
    prune_iteratively(source, tmp_path / "out", SHORT, drop="25%", step=1, metric="bi", text=Text("pydoc", 4, 16))
    assert [model.anatomy.layers for model in scored] == [8, 7]


def test_finished_rounds_are_not_repeated_unless_options_changed(source, tmp_path, monkeypatch):
    healed, original = [], iterative.heal

    def failing(checkpoint, out, *config, **options):
        healed.append(out.name)
        if out.name == "2-healed" and len(healed) in (2, 4):
            raise KeyboardInterrupt
        return original(checkpoint, out, *config, **options)

    monkeypatch.setattr(iterative, "heal", failing)
    for config in (SHORT, replace(SHORT, max_samples=20)):
        with pytest.raises(KeyboardInterrupt):
            prune_iteratively(source, tmp_path / "out", config, drop=2, step=1, metric="reverse")
    prune_iteratively(source, tmp_path / "out", config, drop=2, step=1, metric="reverse")
    assert healed == ["1-healed", "2-healed", "1-healed", "2-healed", "2-healed"]
    prune_iteratively(source, tmp_path / "whole", config, drop=2, step=1, metric="reverse")
    assert weights(tmp_path / "out") == weights(tmp_path / "whole")


@pytest.mark.parametrize(
    ("config", "rounds", "option"),
    [
        ({"method": Partial(train_last=7)}, {"drop": 2, "step": 1}, "train_last"),
        ({"minutes": 1}, {"drop": 2, "step": 1}, "minutes"),
        ({}, {"drop": "25%", "step": 3}, "step"),
        ({}, {"drop": 8, "step": 1}, "drop"),
    ],
)
def test_impossible_rounds_are_refused_before_the_first(config, rounds, option, source, tmp_path, monkeypatch):
    monkeypatch.setattr(iterative, "heal", lambda *_, **__: pytest.fail("healed"))
    with pytest.raises((InputError, PlanError)) as refused:
        prune_iteratively(source, tmp_path / "out", replace(SHORT, **config), **rounds)
    assert refused.value.option == option


def test_command_line_names_the_layers_that_went_in_all(folder, tmp_path):
    words = ["heal", str(folder), "--drop", "3", "--layers-per-round", "2", "--metric", "reverse", "--data", "pydoc"]
    words += ["--max-length", "32", "--max-samples", "16", "--train-last", "1", "--max-steps", "1"]
    assert "Layers 5-7 were removed in total" in invoke(*words, "-o", str(tmp_path / "out")).stdout
