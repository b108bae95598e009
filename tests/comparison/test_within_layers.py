"""Narrowed MLPs compute what the whole model does with the other neurons silenced; 2:4 masks go by their definition."""

import pytest
import torch
from transformers import AutoModelForCausalLM

from shortstack.checkpoint import Checkpoint
from shortstack.comparison.within_layers import (
    chosen_neurons,
    find_mlps,
    fitting_neurons,
    input_norms,
    mask,
    narrow,
    neuron_bytes,
    size_field,
    unmaskable,
)
from shortstack.decoder import Decoder
from shortstack.errors import ArchitectureError
from shortstack.pruning import verify
from zoo import make, tiny

IDS = torch.randint(3, 90, (6, 20), generator=torch.Generator().manual_seed(1))


def opened(path):
    checkpoint = Checkpoint.open(path)
    return checkpoint, Decoder.load(checkpoint, dtype=torch.float32)


def logits(model):
    with torch.no_grad():
        return model(input_ids=IDS).logits


def silenced(model, checkpoint, mlps, kept):
    """The model with the columns of all neurons but these at zero."""
    for number, (mlp, some) in enumerate(zip(mlps, kept, strict=True)):
        weight = model.get_submodule(f"{checkpoint.anatomy.layer(number)}.{mlp.leaving}").weight
        gone = sorted(set(range(mlp.neurons)) - set(some))
        weight.data[:, gone] = 0
    return model


@pytest.mark.parametrize(
    ("model_type", "options"), [("llama", {"mlp_bias": True}), ("gemma3", {}), ("gpt_neox", {}), ("opt", {})]
)
def test_a_narrowed_checkpoint_computes_what_the_kept_neurons_do(model_type, options, tmp_path):
    checkpoint, decoder = opened(make(model_type, tmp_path / "model", **options))
    mlps = find_mlps(decoder)
    kept, field = chosen_neurons(checkpoint, mlps, 13, input_norms(decoder, IDS)), size_field(checkpoint, mlps, 13)
    narrowed = narrow(checkpoint, mlps, kept, field, tmp_path / "narrow")
    model = AutoModelForCausalLM.from_pretrained(narrowed.directory, dtype=torch.float32).eval()
    expected = logits(silenced(checkpoint.model(dtype=torch.float32), checkpoint, mlps, kept))
    torch.testing.assert_close(logits(model), expected, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(expected, logits(checkpoint.model(dtype=torch.float32)), atol=1e-2)
    assert narrowed.record["width"] == {"neurons": 48, "kept": 13, "field": field}
    assert verify(narrowed).ok


def test_the_neurons_that_give_most_stay():
    checkpoint, decoder = opened(tiny("llama"))
    given = []
    decoder.layers[3].mlp.down_proj.register_forward_pre_hook(lambda _, args: given.append(args[0]))
    logits(decoder.model)
    norms = torch.cat(given).flatten(0, 1).double().norm(dim=0)
    found = input_norms(decoder, IDS)
    torch.testing.assert_close(found["model.layers.3.mlp.down_proj"], norms, rtol=1e-5, atol=0)
    kept = chosen_neurons(checkpoint, find_mlps(decoder), 5, found)[3]
    assert kept == sorted(norms.topk(5).indices.tolist())


def test_as_many_neurons_stay_as_the_budget_has_room_for(tmp_path):
    checkpoint, decoder = opened(make("llama", tmp_path / "model", intermediate_size=101))
    mlps = find_mlps(decoder)
    assert neuron_bytes(checkpoint, mlps) == 8 * 3 * 32 * 4
    budget = checkpoint.weight_bytes - 20 * neuron_bytes(checkpoint, mlps)
    assert fitting_neurons(checkpoint, mlps, budget) == 80
    assert fitting_neurons(checkpoint, mlps, budget - 1) == 80
    assert fitting_neurons(checkpoint, mlps, checkpoint.weight_bytes) == 101
    assert fitting_neurons(checkpoint, mlps, 1000) == 0
    kept = chosen_neurons(checkpoint, mlps, 80, input_norms(decoder, IDS))
    narrowed = narrow(checkpoint, mlps, kept, size_field(checkpoint, mlps, 80), tmp_path / "narrow")
    assert narrowed.weight_bytes == budget - neuron_bytes(checkpoint, mlps)


@pytest.mark.parametrize("model_type", ["mixtral", "gpt2", "phi3"])
def test_experts_and_fused_matrices_are_refused(model_type):
    with pytest.raises(ArchitectureError, match="one MLP whose neurons are rows"):
        find_mlps(opened(tiny(model_type))[1])


def masked_by_hand(weight, importance):
    """Of every four weights in a row the two with the least importance are zero."""
    found = weight.clone()
    for row in range(len(weight)):
        for start in range(0, weight.shape[1], 4):
            order = sorted(range(start, start + 4), key=lambda column: float(importance[row, column]))
            found[row, order[:2]] = 0
    return found


def test_the_two_weights_of_four_that_matter_least_go():
    decoder, plain = (opened(tiny("llama"))[1] for _ in range(2))
    heard = []
    plain.layers[2].self_attn.o_proj.register_forward_pre_hook(lambda _, args: heard.append(args[0].detach()))
    plain.model(input_ids=IDS)
    mask(decoder, input_norms(decoder, IDS))
    before, after = (each.layers[2].self_attn.o_proj.weight for each in (plain, decoder))
    importance = before.abs() * heard[0].flatten(0, 1).norm(dim=0)
    assert torch.equal(after, masked_by_hand(before, importance))
    assert not torch.equal(after, masked_by_hand(before, before.abs())), "inputs count"
    for layer in decoder.layers:
        for weight in (each for each in layer.parameters() if each.dim() == 2):
            assert torch.equal((weight.view(-1, 4) == 0).sum(1), torch.full((weight.numel() // 4,), 2))
    assert torch.equal(plain.model.lm_head.weight, decoder.model.lm_head.weight)


def test_rows_that_do_not_divide_by_four_are_named(tmp_path):
    _, decoder = opened(make("llama", tmp_path / "model", intermediate_size=46))
    assert unmaskable(decoder) == "layer 0 mlp.down_proj has 46 inputs, which do not divide by 4"
    assert unmaskable(opened(tiny("llama"))[1]) is None
