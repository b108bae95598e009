"""Weights that are read layer by layer: what is refused before any is read."""

from dataclasses import replace

import pytest
import torch

from shortstack.checkpoint import Checkpoint
from shortstack.decoder import Decoder
from shortstack.decoder.streaming import LayerWeights, must_stream
from shortstack.errors import CheckpointError, InputError
from shortstack.machine.device import Compute
from zoo import make, tiny


def test_less_memory_than_two_layers_is_refused(tmp_path, monkeypatch):
    checkpoint = Checkpoint.open(make("llama", tmp_path / "model"))
    needed = 4 * checkpoint.sizes.other_parameters + 2 * max(checkpoint.sizes.layer_bytes)
    monkeypatch.setattr("shortstack.machine.memory.available_memory", lambda _device: needed - 1)
    with pytest.raises(InputError):
        LayerWeights(checkpoint, dtype=torch.float32, device="cpu")
    monkeypatch.setattr("shortstack.machine.memory.available_memory", lambda _device: needed)
    assert LayerWeights(checkpoint, dtype=torch.float32, device="cpu").model


def test_quantised_weights_are_not_read_layer_by_layer(monkeypatch):
    monkeypatch.setattr("shortstack.decoder.streaming.available_memory", lambda _device: 1000)
    checkpoint = Checkpoint.open(tiny("llama"))
    quantised = replace(checkpoint, config={**checkpoint.config, "quantization_config": {"quant_method": "gptq"}})
    assert [must_stream(each, torch.float32, "cpu") for each in (checkpoint, quantised)] == [True, False]
    assert quantised.loaded_bytes(torch.float32) == quantised.weight_bytes
    with pytest.raises(CheckpointError):
        LayerWeights(quantised, dtype=torch.float32, device="cpu")


def test_streams_take_a_quarter_of_the_memory(monkeypatch):
    decoder = Decoder.open(Checkpoint.open(tiny("llama")), Compute(dtype="float32"))
    one = 8 * 32 * 4  # bytes of eight tokens' hidden states
    for free, together in ((4 * 8 * one, 2), (4 * 15 * one, 3), (4 * 16 * one, 4), (1, 1)):
        monkeypatch.setattr("shortstack.decoder.decoder.available_memory", lambda _device, free=free: free)
        turns = decoder.memory_batches(list("abcdefgh"), tokens=8, streams=4)
        assert [len(turn) for turn in turns][:1] == [together]
        assert [each for turn in turns for each in turn] == list("abcdefgh")
