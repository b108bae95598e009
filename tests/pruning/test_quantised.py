"""Quantised sources: payloads are copied, the modules that settings name get their new numbers, patterns are refused."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig

from shortstack.checkpoint import Checkpoint
from shortstack.errors import ArchitectureError
from shortstack.planning import plan
from shortstack.pruning import prune, prune_layers, verify
from zoo import make

IDS = torch.randint(3, 90, (2, 12), generator=torch.Generator().manual_seed(1))
SOME = plan(8, layers="1,4,6")
KEPT = {"model.layers.0.mlp": "model.layers.0.mlp", "model.layers.5.mlp": "model.layers.3.mlp"}
# Settings as quantisers write them, and what becomes of them.
SETTINGS = {
    "compressed-tensors": (
        {
            "quant_method": "compressed-tensors",
            "ignore": ["lm_head", "model.layers.1.mlp", "model.layers.5.mlp", "re:.*norm.*"],
        },
        {"quant_method": "compressed-tensors", "ignore": ["lm_head", "model.layers.3.mlp", "re:.*norm.*"]},
    ),
    "fp8": (
        {
            "quant_method": "fp8",
            "weight_block_size": [128, 128],
            "modules_to_not_convert": [*KEPT, "model.layers.4.mlp"],
        },
        {"quant_method": "fp8", "weight_block_size": [128, 128], "modules_to_not_convert": [*KEPT.values()]},
    ),
    "mxfp4": (
        {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"]},
        {"quant_method": "mxfp4", "modules_to_not_convert": ["model.layers.*.self_attn", "model.layers.*.mlp.router"]},
    ),
    "awq": (
        {"quant_method": "awq", "bits": 4, "modules_to_not_convert": ["model.layers.7"]},
        {"quant_method": "awq", "bits": 4, "modules_to_not_convert": ["model.layers.4"]},
    ),
    "bitsandbytes": (
        {"quant_method": "bitsandbytes", "llm_int8_skip_modules": ["model.layers.2.self_attn.q_proj", "lm_head"]},
        {"quant_method": "bitsandbytes", "llm_int8_skip_modules": ["model.layers.1.self_attn.q_proj", "lm_head"]},
    ),
}
PATTERNS = {
    "gptq": {"dynamic": {r"-:.*\.3\..*": {}}},
    "gptq, more bits": {"dynamic": {r"+:model\.layers\.7\..*": {"bits": 8}}},
    "compressed-tensors": {"config_groups": {"group_0": {"targets": [r"re:.*layers\.3\..*"]}}},
    "quark": {"layer_quant_config": {"*layers.0*": {}}},
    "quark, exclude": {"exclude": ["*.3.mlp*"]},
}


@pytest.fixture
def source(tmp_path):
    return make("llama", tmp_path / "source")


def with_settings(folder, settings):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))
    return Checkpoint.open(folder)


@pytest.mark.parametrize("kind", SETTINGS)
def test_modules_that_are_named_get_their_new_numbers(kind, source, tmp_path):
    before, after = SETTINGS[kind]
    pruned = prune(with_settings(source, before), SOME, tmp_path / "out")
    assert json.loads((pruned.directory / "config.json").read_text())["quantization_config"] == after


@pytest.mark.parametrize("kind", PATTERNS)
def test_patterns_that_may_mean_a_layer_are_refused(kind, source, tmp_path):
    with pytest.raises(ArchitectureError, match="expected layers named one by one"):
        prune(with_settings(source, {"quant_method": kind.partition(",")[0], **PATTERNS[kind]}), SOME, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_second_file_of_gptq_follows(source, tmp_path):
    settings = {"bits": 4, "dynamic": {"model.layers.5.mlp.down_proj": {"bits": 8}, "model.layers.1.mlp": {}}}
    (source / "quantize_config.json").write_text(json.dumps(settings))
    pruned = prune(with_settings(source, {"quant_method": "gptq", **settings}), SOME, tmp_path / "out")
    wanted = {"bits": 4, "dynamic": {"model.layers.3.mlp.down_proj": {"bits": 8}}}
    assert json.loads((pruned.directory / "quantize_config.json").read_text()) == wanted
    assert json.loads((pruned.directory / "config.json").read_text())["quantization_config"] == {
        "quant_method": "gptq",
        **wanted,
    }


@pytest.mark.parametrize("how", [{"load_in_4bit": True}, {"load_in_8bit": True}])
def test_weights_of_bitsandbytes_are_cut_as_they_are_and_load(how, tmp_path):
    pytest.importorskip("bitsandbytes")
    folder = make("llama", tmp_path / "whole", hidden_size=64, intermediate_size=64)
    settings = BitsAndBytesConfig(**how)
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
