"""Weights that a healing does not train are written as it was read, bit for bit, whatever the device computes in."""

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.weights import read_weight
from shortstack.healing import METHODS, HealingTask, Lora, Partial, Schedule, TrainingData, heal
from zoo import speaking

pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("own_cache")
NOTHING = Schedule(max_steps=1, per_device_train_batch_size=4, learning_rate=1e-30)
SMALL = {"hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 4, "tie_word_embeddings": False}
EMBEDDING = "model.embed_tokens.weight"


@pytest.fixture
def bfloat16_device(monkeypatch):
    monkeypatch.setattr("shortstack.healing.healer.fast_bfloat16", lambda _device: True)


@pytest.fixture
def data(tmp_path) -> TrainingData:
    path = tmp_path / "lines.jsonl"
    path.write_text("".join(json.dumps({"text": f"the walk visits layer {n}"}) + "\n" for n in range(8)))
    return TrainingData(str(path), max_length=16, held_out=2)


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


def check_untouched(source: Checkpoint, healed: Path) -> None:
    before, after = stored(source), stored(Checkpoint.open(healed))
    assert before.keys() == after.keys()
    assert not [name for name in before if before[name] != after[name]]


@pytest.mark.parametrize(
    ("method", "dtype"),
    [*((method(), torch.float16) for method in METHODS.values()), (Lora(head=True), torch.float32)],
    ids=lambda method: getattr(method, "name", str(method)),
)
@pytest.mark.usefixtures("bfloat16_device")
def test_every_method_writes_what_it_read_where_nothing_is_learnt(method, dtype, data, tmp_path):
    if "bitsandbytes" in method.needs:
        pytest.importorskip("bitsandbytes")
    source = stored_in(dtype, tmp_path / "source", **SMALL)
    heal(source, tmp_path / "healed", HealingTask(data, method, schedule=NOTHING))
    check_untouched(source, tmp_path / "healed")


@pytest.mark.parametrize(
    ("model_type", "method", "options"),
    [
        ("mixtral", "full", {"tie_word_embeddings": True}),  # experts are one weight in memory
        ("gpt2", "dora", {}),  # matrices that lie transposed
        ("gpt2", "full", {}),  # stored without the model's prefix
        ("qwen2", "full", {}),  # tied, and with biases
    ],
)
@pytest.mark.usefixtures("bfloat16_device")
def test_weights_of_every_form_are_written_as_they_were(model_type, method, options, data, tmp_path):
    source = stored_in(torch.float16, tmp_path / "source", model_type, **options)
    heal(source, tmp_path / "healed", HealingTask(data, METHODS[method](), schedule=NOTHING))
    check_untouched(source, tmp_path / "healed")


@pytest.mark.parametrize("stored_head", [False, True], ids=["one matrix is stored", "both are"])
@pytest.mark.usefixtures("bfloat16_device")
def test_an_untied_head_begins_as_the_embedding(stored_head, data, tmp_path):
    """In its dtype, too, where other tensors have another."""
    source = stored_in(torch.float16, tmp_path / "source", **{**SMALL, "tie_word_embeddings": not stored_head})
    if stored_head:
        config = json.loads((source.directory / "config.json").read_text())
        (source.directory / "config.json").write_text(json.dumps({**config, "tie_word_embeddings": True}))
    mixed(source)
    source = Checkpoint.open(source.directory)
    heal(source, tmp_path / "healed", HealingTask(data, Partial(last=1, untie_head=True), schedule=NOTHING))
    before, after = stored(source), stored(Checkpoint.open(tmp_path / "healed"))
    head = after.pop("lm_head.weight")
    assert after == {name: tensor for name, tensor in before.items() if name != "lm_head.weight"}
    assert head == before[EMBEDDING]


def mixed(source: Checkpoint) -> None:
    """Store norms and biases in float32 beside matrices of 16 bits, and give the first place to one of them."""
    from safetensors.torch import load_file, save_file

    path = source.directory / "model.safetensors"
    save_file({name: each.float() if each.ndim == 1 else each for name, each in load_file(path).items()}, path)
