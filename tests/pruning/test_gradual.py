"""PruneCallback: layers leave while a model trains, and the optimizer forgets them."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainerCallback, TrainingArguments

from plans import plan
from shortstack.errors import PlanError
from shortstack.pruning import PruneCallback
from zoo import tiny

DATA = [{"input_ids": torch.arange(3, 15) + row, "labels": torch.arange(3, 15) + row} for row in range(12)]


class Seen(TrainerCallback):
    """How many layers there are in each step, and whether they all have gradients and no others are stepped."""

    def __init__(self):
        self.layers, self.known = [], []

    def on_pre_optimizer_step(self, args, state, control, **others):
        model, optimizer = others["model"], others["optimizer"]
        self.layers.append(len(model.model.layers))
        stepped = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
        assert sorted(stepped) == sorted(id(parameter) for parameter in model.parameters())
        assert all(parameter.grad is not None for parameter in model.parameters())

    def on_step_end(self, args, state, control, **others):
        self.known.append(len(others["optimizer"].state))


def whole():
    return AutoModelForCausalLM.from_pretrained(tiny("llama"), dtype=torch.float32)


def train(model, folder, callbacks, *, states=None, **settings):
    arguments = TrainingArguments(
        str(folder), max_steps=6, per_device_train_batch_size=2, report_to=[], use_cpu=True, seed=0, **settings
    )
    Trainer(model, arguments, train_dataset=DATA, callbacks=callbacks).train(resume_from_checkpoint=states)


def test_layers_leave_at_their_steps_and_the_rest_goes_on_training(tmp_path):
    cut = plan(8, layers="1,4-6")
    model, seen = whole(), Seen()
    train(model, tmp_path, [PruneCallback(cut, at=[1, 3]), seen], save_strategy="no")
    assert seen.layers == [8, 6, 6, 4, 4, 4]
    assert seen.known[0] > seen.known[1] > seen.known[-1]
    assert seen.known[-1] == sum(1 for _ in model.parameters())
    source = whole()
    for new, old in enumerate(cut.kept):
        ours, theirs = (each.model.layers[at].mlp.up_proj.weight for each, at in ((model, new), (source, old)))
        assert torch.allclose(ours, theirs, atol=1e-3), "a layer that stays is the one it was, a little trained"
        assert not torch.equal(ours, theirs)
    assert [layer.self_attn.layer_idx for layer in model.model.layers] == [0, 1, 2, 3]


def going_on(model, folder, *, rate=1e-3, **settings):
    """The layers that are left in the end, by the plan's numbers, and the model; states: the one to go on from."""
    callback = PruneCallback(plan(8, layers="1,4-6"), at=[1, 2, 3])
    train(model, folder, [callback], save_steps=2, learning_rate=rate, **settings)
    return callback.left, model.state_dict()


def test_training_that_goes_on_ends_as_if_it_had_not_stopped(tmp_path):
    left, expected = going_on(whole(), tmp_path / "at once")
    state = str(tmp_path / "at once" / "checkpoint-2")
    model = AutoModelForCausalLM.from_pretrained(state, dtype=torch.float32)
    assert len(model.model.layers) == 6
    again, found = going_on(model, tmp_path / "again", states=state)
    assert again == left == [0, 2, 3, 7]
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], weight) for name, weight in expected.items())


def test_a_whole_model_that_a_cut_ones_state_is_loaded_into_is_refused(tmp_path):
    """It would have the weights of layers that stay in layers that go."""
    going_on(whole(), tmp_path, rate=0.0, save_only_model=True)
    with pytest.raises(PlanError, match=r"expected 6 layers.*after step 2.*found 8.*from_pretrained\(\)"):
        going_on(whole(), tmp_path, states=str(tmp_path / "checkpoint-2"), rate=0.0, save_only_model=True)


def test_each_training_of_a_new_model_loses_the_layers_anew(tmp_path):
    """As a Trainer with model_init, or a search over hyperparameters, begins again and again."""
    callback = PruneCallback(plan(8, layers="1,4-6"), at=[1, 3])
    for number in range(2):
        model = whole()
        train(model, tmp_path / str(number), [callback], save_strategy="no")
        assert len(model.model.layers) == 4
    with pytest.raises(PlanError, match=r"expected 8 layers, as the model of the plan has.*found 4"):
        train(model, tmp_path / "shorter", [PruneCallback(plan(8, layers="1,4-6"), at=[1])], save_strategy="no")


def test_a_step_that_is_never_taken_is_refused(tmp_path):
    with pytest.raises(PlanError, match=r"at: expected steps below 6.*found 6"):
        train(whole(), tmp_path, [PruneCallback(plan(8, layers="1,4"), at=[1, 6])], save_strategy="no")


@pytest.mark.parametrize("at", [[0, 1, 2], []])
def test_what_does_not_fit_the_plan_is_refused(at):
    with pytest.raises(PlanError, match="1 to 2 steps"):
        PruneCallback(plan(8, layers="1,4"), at)
