"""Weight-only quantisation: what is held, in how many bytes, and how far outputs move."""

import importlib.util

import pytest
import torch
from safetensors.torch import load_file, save_file

from shortstack.checkpoint import Checkpoint
from shortstack.decoder import Decoder
from shortstack.decoder.quantisation import INT8, NF4, held_bytes, quantise, saved_bytes
from zoo import make

IDS = torch.randint(3, 90, (2, 16), generator=torch.Generator().manual_seed(1))
ROOMY = {"hidden_size": 64, "intermediate_size": 128, "mlp_bias": True}


def there(scheme):
    return pytest.mark.skipif(importlib.util.find_spec(scheme.library) is None, reason=f"needs {scheme.library}")


def loaded(directory, **overrides):
    return Decoder.load(Checkpoint.open(make("llama", directory, **overrides)), dtype=torch.bfloat16)


@there(INT8)
def test_int8_holds_each_weight_in_a_byte_of_its_rows_scale(tmp_path):
    decoder = loaded(tmp_path / "model", **ROOMY)
    weights = {
        name: layer.weight.float().clone()
        for name, layer in decoder.layers[1].mlp.named_children()
        if hasattr(layer, "weight")
    }
    held = quantise(decoder, INT8)
    rows = 64 + 32 + 32 + 64 + 128 + 128 + 64
    numbers = 64 * (64 + 32 + 32 + 64 + 3 * 128)
    assert [layer.weights for layer in held] == [numbers] * 8
    assert all(numbers + 2 * rows <= layer.bytes <= numbers + 8 * rows for layer in held)
    for name, before in weights.items():
        after = decoder.layers[1].mlp.get_submodule(name).weight.dequantize().float()
        step = before.abs().amax(1, keepdim=True) / 127
        assert ((after - before).abs() <= 0.51 * step + 0.01 * before.abs()).all()


@there(INT8)
def test_biases_are_not_counted_with_the_matrices(tmp_path):
    without, with_biases = (
        quantise(loaded(tmp_path / str(biased), **{**ROOMY, "mlp_bias": biased}), INT8) for biased in (False, True)
    )
    assert without == with_biases


@there(INT8)
def test_what_int8_saves_is_the_sum_over_the_tensors_it_replaces(tmp_path):
    """Not all of one dtype: the embedding, most of the bytes, is in bf16, the layers are in fp32."""
    source = make("llama", tmp_path / "model", vocab_size=4096, **ROOMY)
    file = source / "model.safetensors"
    stored = {name: value.bfloat16() if "layers" not in name else value for name, value in load_file(file).items()}
    save_file(stored, file, metadata={"format": "pt"})
    checkpoint = Checkpoint.open(source)
    held = quantise(Decoder.load(checkpoint, dtype=torch.bfloat16), INT8)
    matrices = sum(value.nbytes for name, value in stored.items() if "proj.weight" in name)
    assert saved_bytes(checkpoint, held) == matrices - sum(each.bytes for each in held)


@there(NF4)
def test_nf4_holds_two_weights_in_a_byte_and_a_scale_for_each_block(tmp_path):
    decoder = loaded(tmp_path / "model", **ROOMY)
    held = quantise(decoder, NF4)
    numbers = 64 * (64 + 32 + 32 + 64 + 3 * 128)
    assert [layer.weights for layer in held] == [numbers] * 8
    blocks = numbers // 64
    constants = 7 * 2 * (16 + 256) * 4  # of seven matrices, the codes of the weights and of their scales
    assert all(numbers // 2 + blocks <= layer.bytes <= numbers // 2 + 2 * blocks + constants for layer in held)


@pytest.mark.parametrize("scheme", [pytest.param(each, marks=there(each)) for each in (INT8, NF4)])
def test_what_is_outside_the_layers_stays_and_outputs_move_a_little(scheme, tmp_path):
    decoder, plain = (loaded(tmp_path / name, **ROOMY) for name in ("model", "plain"))
    quantise(decoder, scheme)
    assert torch.equal(decoder.model.lm_head.weight, plain.model.lm_head.weight)
    assert torch.equal(decoder.layers[0].mlp.up_proj.bias, plain.layers[0].mlp.up_proj.bias)
    with torch.no_grad():
        found, expected = (each.model(input_ids=IDS).logits.float() for each in (decoder, plain))
    off = (found - expected).norm() / expected.norm()
    assert 0 < off < (0.1 if scheme is INT8 else 0.5)


def test_held_bytes_count_what_is_shared_once(tmp_path):
    decoder = Decoder.load(
        Checkpoint.open(make("llama", tmp_path / "tied", tie_word_embeddings=True)), dtype=torch.float32
    )
    assert held_bytes(decoder.model) == sum(4 * weight.numel() for weight in decoder.model.parameters())


def test_what_cannot_be_had_is_known_before_it_is_tried(monkeypatch):
    if importlib.util.find_spec("torchao"):
        assert "mps" in (INT8.missing("mps") or "")
    monkeypatch.setattr("shortstack.decoder.quantisation.importlib.util.find_spec", lambda _: None)
    assert "pip install 'shortstack[quant]'" in (NF4.missing("cpu") or "")
