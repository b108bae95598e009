"""Quantised sources: payloads are copied, the modules that settings name get their new numbers, patterns are refused."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from plans import plan
from shortstack.checkpoint import Checkpoint
from shortstack.errors import ArchitectureError
from shortstack.pruning import prune, prune_layers, pruner, verify
from zoo import edit_config, forge, make

IDS = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(1))
SOME = plan(8, layers="1,4,6")
# Settings as quantisers write them, and what becomes of them.
SETTINGS = {
    "compressed-tensors": (
        {
            "quant_method": "compressed-tensors",
            "ignore": ["lm_head", "model.layers.1.mlp", "model.layers.5.mlp", "re:.*norm.*"],
        },
        {"quant_method": "compressed-tensors", "ignore": ["lm_head", "model.layers.3.mlp", "re:.*norm.*"]},
    ),
    "mxfp4": (
        {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"]},
        {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"]},
    ),
}
PATTERNS = {
    "gptq, more bits": {"dynamic": {r"+:model\.layers\.7\..*": {"bits": 8}}},
    "compressed-tensors": {"config_groups": {"group_0": {"targets": [r"re:.*layers\.3\..*"]}}},
    "quark, exclude": {"exclude": ["*.3.mlp*"]},
}


@pytest.fixture
def source(tmp_path):
    return make("llama", tmp_path / "source")


def with_settings(folder, settings):
    edit_config(folder, quantization_config=settings)
    return Checkpoint.open(folder)


@pytest.mark.parametrize("kind", SETTINGS)
def test_modules_named_in_settings_get_their_new_numbers(kind, source, tmp_path):
    before, after = SETTINGS[kind]
    pruned = prune(with_settings(source, before), SOME, tmp_path / "out")
    assert pruned.config["quantization_config"] == after


@pytest.mark.parametrize("kind", PATTERNS)
def test_patterns_that_may_mean_a_layer_are_refused(kind, source, tmp_path):
    with pytest.raises(ArchitectureError):
        prune(with_settings(source, {"quant_method": kind.partition(",")[0], **PATTERNS[kind]}), SOME, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["hf_quant_config.json", "quantize_config.json"])
def test_files_of_quantisers_get_new_numbers_too(name, source, tmp_path, monkeypatch):
    """As modelopt writes them: names with stars behind, and a format for each module."""
    excluded = ["lm_head", "model.layers.0.self_attn*", "model.layers.1.mlp*"]
    formats = {f"model.layers.{layer}.mlp.experts.3": {"quant_algo": "FP8"} for layer in (3, 4, 7)}
    settings = {"quantization": {"exclude_modules": excluded, "quantized_layers": formats}}
    (source / name).write_text(json.dumps(settings))
    pruned = prune(source, SOME, tmp_path / "out")
    assert json.loads((pruned.directory / name).read_text())["quantization"] == {
        "exclude_modules": ["lm_head", "model.layers.0.self_attn*"],
        "quantized_layers": {f"model.layers.{layer}.mlp.experts.3": {"quant_algo": "FP8"} for layer in (2, 4)},
    }
    (source / name).write_text(json.dumps({"quantization": {"exclude_modules": ["model.layers.3*"]}}))
    monkeypatch.setattr(pruner.CheckpointWriter, "__enter__", lambda _writer: pytest.fail("bytes are copied"))
    with pytest.raises(ArchitectureError, match=name):
        prune(source, SOME, tmp_path / "other")


@pytest.mark.parametrize("field", ["quantization", "modules_to_not_convert"])
def test_modules_named_in_other_fields_get_their_new_numbers(field, source, tmp_path):
    """MLX has settings of modules in `quantization`, and others lists of them outside of all settings."""
    edit_config(source, **{field: {"model.layers.5.mlp": {"bits": 8}}})
    assert prune(source, SOME, tmp_path / "out").config[field] == {"model.layers.3.mlp": {"bits": 8}}


def test_bitsandbytes_weights_are_cut_as_they_are_and_load(tmp_path):
    pytest.importorskip("bitsandbytes")
    folder = make("llama", tmp_path / "whole", hidden_size=64, intermediate_size=64)
    settings = BitsAndBytesConfig(load_in_4bit=True)
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings, dtype=torch.float32).eval()
    model.save_pretrained(tmp_path / "quantised")
    pruned = prune(Checkpoint.open(tmp_path / "quantised"), SOME, tmp_path / "out")
    assert verify(pruned).ok
    loaded = AutoModelForCausalLM.from_pretrained(pruned.directory, dtype=torch.float32).eval()
    with torch.no_grad():
        whole = model(IDS).logits
        expected = prune_layers(copy.deepcopy(model), SOME)(IDS).logits
        assert torch.equal(loaded(IDS).logits, expected)
        assert not torch.equal(whole, expected)


def test_compressed_tensors_weights_are_cut_as_they_are_and_load(tmp_path):
    pytest.importorskip("compressed_tensors")
    from compressed_tensors.compressors import ModelCompressor
    from compressed_tensors.quantization import apply_quantization_config
    from compressed_tensors.quantization.quant_config import QuantizationConfig

    folder = make("llama", tmp_path / "whole", hidden_size=64, intermediate_size=64)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    plain = ["lm_head", "model.layers.2.mlp.down_proj", "model.layers.4.mlp", "model.layers.5.mlp.up_proj"]
    weights = {"num_bits": 8, "type": "int", "strategy": "channel", "symmetric": True}
    settings = QuantizationConfig(
        config_groups={"group_0": {"targets": ["Linear"], "weights": weights}}, ignore=plain, format="pack-quantized"
    )
    apply_quantization_config(model, settings)
    for module in model.modules():
        if hasattr(module, "weight_scale"):
            module.weight_scale.data = module.weight.detach().abs().amax(1, keepdim=True) / 127
    compressor = ModelCompressor.from_pretrained_model(model, "pack-quantized")
    compressor.compress_model(model)
    model.save_pretrained(tmp_path / "quantised")
    compressor.update_config(str(tmp_path / "quantised"))
    source = Checkpoint.open(tmp_path / "quantised")
    pruned = prune(source, SOME, tmp_path / "out")
    ignored = pruned.config["quantization_config"]["ignore"]
    assert {"model.layers.1.mlp.down_proj", "model.layers.3.mlp.up_proj", "lm_head"} <= set(ignored)
    assert not any(".4." in name or ".5." in name for name in ignored)
    assert verify(pruned, base=source).ok
    whole, short = (each.model(dtype=torch.float32) for each in (source, pruned))
    with torch.no_grad():
        before = whole(IDS).logits
        assert torch.equal(short(IDS).logits, prune_layers(whole, SOME)(IDS).logits)
        assert not torch.equal(short(IDS).logits, before)


def test_weights_that_cannot_be_loaded_here_are_compared_byte_for_byte(source, tmp_path, monkeypatch):
    told = RuntimeError("GPU is required")

    def refused(*_, **__):
        raise told

    whole = with_settings(source, {"load_in_8bit": True, "quant_method": "bitsandbytes"})
    small = prune(whole, SOME, tmp_path / "small")
    monkeypatch.setattr("transformers.quantizers.quantizer_bnb_8bit.Bnb8BitHfQuantizer.validate_environment", refused)
    found = verify(small, base=whole)
    assert found.ok
    assert list(found.checks) == ["files", "tensors", "bytes"]
    assert str(told) in found.checks["tensors"]["detail"]
    weights = load_file(source / "model.safetensors")
    weights["model.layers.3.mlp.up_proj.weight"] += 1
    save_file(weights, source / "model.safetensors", {"format": "pt"})
    found = verify(small, base=source)
    assert not found.ok
    assert found.checks["bytes"]["detail"].startswith("model.layers.2.mlp.up_proj.weight ")


def test_damaged_quantised_weights_are_found(source, tmp_path):
    """The loader runs, and finds a norm missing."""
    pytest.importorskip("bitsandbytes")
    loaded = AutoModelForCausalLM.from_pretrained(source, quantization_config=BitsAndBytesConfig(load_in_8bit=True))
    loaded.save_pretrained(tmp_path / "whole")
    small = prune(tmp_path / "whole", SOME, tmp_path / "small").directory
    weights = load_file(small / "model.safetensors")
    del weights["model.norm.weight"]
    save_file(weights, small / "model.safetensors", {"format": "pt"})
    forge(small)
    assert not verify(small).ok
    assert "not loaded here" in verify(small, stream=True).checks["tensors"]["detail"]
