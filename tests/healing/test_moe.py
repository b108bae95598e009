"""Healing a mixture of experts, whose experts are one tensor in memory and one per expert on disk."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from shortstack.checkpoint import Checkpoint
from shortstack.healing import HealingTask, Partial, Schedule, TrainingData, heal
from shortstack.healing.learner import Learner
from zoo import speaking

pytestmark = pytest.mark.usefixtures("own_cache")
IDS = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_healed_experts_are_stored_one_by_one_and_load_as_what_was_trained(dtype, tmp_path, monkeypatch):
    directory = speaking(tmp_path / "source", "mixtral")
    AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).save_pretrained(directory)
    source = Checkpoint.open(directory)
    trained = []
    original = Learner.trained_tensors
    monkeypatch.setattr(Learner, "trained_tensors", lambda tail: trained.append(original(tail)) or trained[-1])
    heal(
        source,
        tmp_path / "healed",
        HealingTask(
            TrainingData("pydoc", max_length=32, max_samples=64),
            Partial(last=2),
            schedule=Schedule(num_train_epochs=1, learning_rate=1e-2),
        ),
    )
    before, after = (load_file(path / "model.safetensors") for path in (directory, tmp_path / "healed"))
    assert before.keys() == after.keys()
    assert any(".experts.3." in name for name in before)
    assert all(after[name].dtype == dtype and after[name].shape == weight.shape for name, weight in before.items())
    changed = {name for name, weight in before.items() if not torch.equal(weight, after[name])}
    assert changed == {
        name for name in before if name.startswith(("model.layers.6.", "model.layers.7.", "model.norm.", "lm_head."))
    }

    expected = source.model(dtype=dtype)
    expected.load_state_dict(trained[0], strict=False)
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "healed", dtype="auto")
    assert model.dtype == dtype
    with torch.no_grad():
        found, wanted = (some.eval()(input_ids=IDS, use_cache=False).logits for some in (model, expected))
    assert torch.equal(found, wanted)
