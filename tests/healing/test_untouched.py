"""Weights that a healing does not train are written as it was read, bit for bit, whatever the device computes in."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.weights import read_weight
from shortstack.healing import METHODS, DoRA, Full, HealingConfig, Lora, Partial, heal
from zoo import speaking

pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("own_cache")
SMALL = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 4, "tie_word_embeddings": False}
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def bfloat16_device(monkeypatch):
    monkeypatch.setattr("shortstack.healing.memory.fast_bfloat16", lambda _device: True)


def learning_nothing(method) -> HealingConfig:
    data = [f"the walk visits layer {number}" for number in range(8)]
    return HealingConfig(
        data,
        max_length=16,
        held_out=2,
        method=method,
        max_steps=1,
        per_device_train_batch_size=4,
        learning_rate=1e-30,
    )


def stored_in(dtype: torch.dtype, folder: Path, model_type: str = "llama", **overrides: object) -> Checkpoint:
    """A checkpoint in that dtype, with zeros of either sign among its weights."""
    directory = speaking(folder, model_type, **overrides)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    with torch.no_grad():
        for weight in model.parameters():
            weight.flatten()[:2] = torch.tensor([-0.0, 0.0])
    model.to(dtype).save_pretrained(directory)
    return Checkpoint.open(directory)


def stored(checkpoint: Checkpoint) -> dict[str, tuple[str, bytes]]:
    """Dtype and bytes of every tensor, by name."""
    return {
        name: (tensor.dtype, read_weight(tensor).flatten().view(torch.uint8).numpy().tobytes())
        for name, tensor in checkpoint.tensors.items()
    }


@pytest.mark.parametrize(
    ("model_type", "method", "dtype", "options"),
    [
        *(("llama", method(), torch.float16, SMALL) for method in METHODS.values()),
        ("llama", Lora(train_head=True), torch.float32, SMALL),
        ("mixtral", Full(), torch.float16, {"tie_word_embeddings": True}),  # experts are one weight in memory
        ("gpt2", DoRA(), torch.float16, {}),  # matrices that lie transposed
        ("gpt2", Full(), torch.float16, {}),  # stored without the model's prefix
        ("qwen2", Full(), torch.float16, {}),  # tied, and with biases
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
@pytest.mark.usefixtures("bfloat16_device")
def test_untrained_weights_are_written_bit_for_bit(model_type, method, dtype, options, tmp_path):
    if "bitsandbytes" in method.needs:
        pytest.importorskip("bitsandbytes")
    source = stored_in(dtype, tmp_path / "source", model_type, **options)
    heal(source, tmp_path / "healed", learning_nothing(method))
    before, after = stored(source), stored(Checkpoint.open(tmp_path / "healed"))
    assert before.keys() == after.keys()
    assert not [name for name in before if before[name] != after[name]]


@pytest.mark.parametrize("stored_head", [False, True], ids=["one matrix is stored", "both are"])
@pytest.mark.usefixtures("bfloat16_device")
def test_untied_head_begins_as_the_embedding(stored_head, tmp_path):
    """In its dtype, too, where other tensors have another."""
    source = stored_in(torch.float16, tmp_path / "source", **{**SMALL, "tie_word_embeddings": not stored_head})
    if stored_head:
        config = json.loads((source.directory / "config.json").read_text())
        (source.directory / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    path = source.directory / "model.safetensors"  # norms and biases in float32, and the first place to one of them
    save_file({name: each.float() if each.ndim == 1 else each for name, each in load_file(path).items()}, path)
    source = Checkpoint.open(source.directory)
    heal(source, tmp_path / "healed", learning_nothing(Partial(train_last=1, untie_embeddings=True)))
    before, after = stored(source), stored(Checkpoint.open(tmp_path / "healed"))
    head = after.pop("lm_head.weight")
    assert after == {name: tensor for name, tensor in before.items() if name != "lm_head.weight"}
    assert head == before[EMBEDDING]
