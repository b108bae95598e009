"""Adapters: what is written is the 16-bit weights with the products of what trained, by the papers' formulas."""

import math
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM

from learning import SHORT, learning
from shortstack.checkpoint import Checkpoint
from shortstack.errors import InputError
from shortstack.healing import DoRA, Lora, Partial, QLora, RsLora, heal
from zoo import SMALL, ZOO, speaking

pytest.importorskip("peft")
pytestmark = pytest.mark.usefixtures("own_cache")
WIDE = {"hidden_size": 128, "intermediate_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2}


@pytest.fixture
def adapters(monkeypatch):
    """Return what trained of each matrix when the adapters are merged: {name: {A, B, magnitude}}."""
    found = {}
    original = Lora.tensors

    def keep(self, checkpoint, learner):
        for name, weight in learner.trained_tensors().items():
            for kind in ("lora_A", "lora_B", "lora_magnitude_vector"):
                matrix, dot, _ = name.partition(f".{kind}")
                if dot:
                    found.setdefault(matrix, {})[kind] = weight
        return original(self, checkpoint, learner)

    for method in (Lora, RsLora, DoRA, QLora):
        monkeypatch.setattr(method, "tensors", keep)
    return found


def weights(directory):
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).state_dict()


def merged(before, parts, method):
    """The weight by the paper's formula, in float64; before: [out, in]."""
    scale = method.lora_alpha / (math.sqrt(method.lora_r) if isinstance(method, RsLora) else method.lora_r)
    change = scale * parts["lora_B"].double() @ parts["lora_A"].double()
    if not isinstance(method, DoRA):
        return before.double() + change
    turned = before.double() + change
    return parts["lora_magnitude_vector"].double()[:, None] * turned / turned.norm(dim=1, keepdim=True)


@pytest.mark.parametrize(
    ("model_type", "method", "count"),
    [
        *(("llama", method, 8 * 7) for method in (Lora(), RsLora(lora_r=4), DoRA(), QLora())),
        ("gpt2", Lora(target_modules="c_attn"), 8),  # matrices that lie transposed
    ],
    ids=lambda value: getattr(value, "name", str(value)),
)
def test_written_weights_are_those_of_the_formula(model_type, method, count, adapters, tmp_path):
    if isinstance(method, QLora):
        pytest.importorskip("bitsandbytes")
    turned = model_type == "gpt2"
    source = Checkpoint.open(speaking(tmp_path / "source", model_type, **({} if turned else WIDE)))
    result = heal(source, tmp_path / "healed", replace(SHORT, method=method))
    before, after = weights(source.directory), weights(tmp_path / "healed")
    assert len(adapters) == count
    for name, parts in adapters.items():
        assert parts["lora_B"].abs().max() > 0, f"{name} did not train"
        one, other = (each[f"{name}.weight"].T if turned else each[f"{name}.weight"] for each in (before, after))
        torch.testing.assert_close(other.double(), merged(one, parts, method), atol=1e-6, rtol=1e-5)
    others = before.keys() - {f"{name}.weight" for name in adapters}
    assert all(torch.equal(before[name], after[name]) for name in others)
    assert result.trainable_parameters == sum(part.numel() for parts in adapters.values() for part in parts.values())
    held_out = dict(result.history.held_out)
    assert held_out[result.history.steps] < held_out[0]


def test_quantised_matrix_gives_the_gradient_of_its_dequantised_self(tmp_path):
    functional = pytest.importorskip("bitsandbytes.functional")
    source = Checkpoint.open(speaking(tmp_path / "source", **WIDE))
    (_, four), (frozen, whole) = (
        learning(source, method) for method in (QLora(lora_dropout=0.0), Lora(lora_dropout=0.0))
    )
    matrices = dict(whole.decoder.model.named_modules())
    for name, module in four.decoder.model.named_modules():
        if name.endswith("base_layer"):
            matrices[name].weight.data = functional.dequantize_4bit(module.weight, module.weight.quant_state).float()
    with torch.no_grad():
        for one, other in zip(four.parameters(), whole.parameters(), strict=True):
            one.copy_(torch.randn(one.shape, generator=torch.Generator().manual_seed(one.numel())) * 0.1)
            other.copy_(one)
    batch, found = frozen.collate(range(3)), []
    for learner in (four, whole):
        with torch.no_grad():
            learner.eval()(**batch)
        loss = learner.train()(**batch)["loss"]
        loss.backward()
        found.append([loss.detach(), *(weight.grad for weight in learner.parameters())])
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, atol=1e-3, rtol=1e-3)
    assert all(gradient.abs().max() > 0 for gradient in found[0])


def test_named_layers_targets_and_the_head_train_and_nothing_else(tmp_path):
    source = Checkpoint.open(speaking(tmp_path / "source", tie_word_embeddings=False))
    method = Lora(train_layers="5-6", target_modules="q_proj,down_proj", train_head=True)
    assert method.first(source) == 5
    heal(source, tmp_path / "healed", replace(SHORT, method=method))
    before, after = weights(source.directory), weights(tmp_path / "healed")
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    expected = {f"model.layers.{n}.{part}.weight" for n in (5, 6) for part in ("self_attn.q_proj", "mlp.down_proj")}
    assert changed == {*expected, "lm_head.weight"}


def test_trained_bias_of_a_head_is_written(tmp_path, monkeypatch):
    monkeypatch.setitem(ZOO, "phi", SMALL)
    source = Checkpoint.open(speaking(tmp_path / "source", "phi", tie_word_embeddings=False))
    heal(source, tmp_path / "healed", replace(SHORT, method=Lora(train_layers="7", train_head=True)))
    before, after = weights(source.directory), weights(tmp_path / "healed")
    assert not torch.equal(before["lm_head.weight"], after["lm_head.weight"])
    assert not torch.equal(before["lm_head.bias"], after["lm_head.bias"])


@pytest.mark.parametrize(
    ("method", "complaint"),
    [(Lora(target_modules="q_proj,w_proj"), "w_proj"), (Lora(train_head=True), "untie_embeddings")],
)
def test_impossible_adapters_are_refused(method, complaint, tmp_path):
    source = Checkpoint.open(speaking(tmp_path / "source", tie_word_embeddings=True))
    with pytest.raises(InputError, match=complaint):
        heal(source, tmp_path / "healed", replace(SHORT, method=method))
    assert not (tmp_path / "healed").exists()


@pytest.mark.parametrize(("method", "library"), [(Lora(), "peft"), (QLora(), "bitsandbytes")])
def test_missing_library_is_refused(method, library, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, library, None)
    with pytest.raises(InputError, match=r"pip install 'shortstack\["):
        method.check()


def test_qlora_refuses_matrices_without_4_bit_layers(tmp_path):
    pytest.importorskip("bitsandbytes")
    source = Checkpoint.open(speaking(tmp_path / "source", "gpt2"))
    with pytest.raises(InputError, match="Conv1D"):
        heal(source, tmp_path / "healed", replace(SHORT, method=QLora()))


def test_same_seed_gives_the_same_adapters(source, tmp_path):
    once = replace(SHORT, max_samples=8, max_steps=1, per_device_train_batch_size=4, method=Lora())
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(number)  # whatever was drawn before
        heal(source, tmp_path / str(number), replace(once, seed=seed))
    first, again, other = ((tmp_path / name / "model.safetensors").read_bytes() for name in "012")
    assert first == again
    assert first != other


def test_default_rate_of_adapters_follows_the_width(source, tmp_path):
    adapters = 7.5e-4 * (2000 / source.width) ** 0.781
    head = DoRA(lora_r=2, untie_embeddings=source.anatomy.tied, train_head=True)
    for method, rate in ((Lora(lora_r=2), adapters), (head, 1e-4), (Partial(train_last=1), 1e-4)):
        config = replace(SHORT, method=method, max_steps=1, per_device_train_batch_size=4, learning_rate=None)
        history = heal(source, tmp_path / method.name, config).history
        assert history.learning_rate == pytest.approx(rate, rel=0.05)
