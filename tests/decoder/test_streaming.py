"""Weights that are read layer by layer: what is refused before any is read."""

import re
from dataclasses import replace

import pytest
import torch

from shortstack.checkpoint import Checkpoint
from shortstack.decoder.streaming import LayerWeights, must_stream
from shortstack.errors import InputError
from zoo import make, tiny


def test_room_for_less_than_two_layers_is_refused_with_what_is_needed_and_what_there_is(tmp_path, monkeypatch):
    checkpoint = Checkpoint.open(make("llama", tmp_path / "model"))
    sizes = checkpoint.sizes
    needed = 4 * sizes.other_parameters + 2 * max(sizes.layer_bytes)
    monkeypatch.setattr("shortstack.machine.memory.available_memory", lambda _device: needed - 10_000)
    monkeypatch.setattr("shortstack.machine.memory.size", lambda nbytes: f"{nbytes} bytes")
    with pytest.raises(InputError, match="layer by layer") as refused:
        LayerWeights(checkpoint, dtype=torch.float32, device="cpu")
    asked, there = (int(re.findall(r"\d+", said)[-1]) for said in (refused.value.expected, refused.value.found))
    assert there == needed - 10_000
    assert asked == pytest.approx(needed, abs=5_000), "a tensor begins at a multiple of 64 bytes"
    monkeypatch.setattr("shortstack.machine.memory.available_memory", lambda _device: needed + 10_000)
    assert LayerWeights(checkpoint, dtype=torch.float32, device="cpu").model


def test_quantised_weights_are_not_read_layer_by_layer_however_little_memory_there_is(monkeypatch):
    monkeypatch.setattr("shortstack.decoder.streaming.available_memory", lambda _device: 1000)
    checkpoint = Checkpoint.open(tiny("llama"))
    quantised = replace(checkpoint, config={**checkpoint.config, "quantization_config": {"quant_method": "gptq"}})
    assert [must_stream(each, torch.float32, "cpu") for each in (checkpoint, quantised)] == [True, False]
    assert quantised.loaded_bytes(torch.float32) == quantised.weight_bytes
