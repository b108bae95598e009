"""2:4 masks against their definition, weight by weight."""

import pytest
import torch

from shortstack.checkpoint import Checkpoint
from shortstack.comparison.sparsity import input_norms, mask
from shortstack.decoder import Decoder
from shortstack.errors import ArchitectureError
from zoo import make, tiny

IDS = torch.randint(3, 90, (4, 16), generator=torch.Generator().manual_seed(1))


def masked_by_hand(weight, importance):
    """Of every four weights in a row the two with the least importance are zero."""
    found = weight.clone()
    for row in range(len(weight)):
        for start in range(0, weight.shape[1], 4):
            order = sorted(range(start, start + 4), key=lambda column: float(importance[row, column]))
            found[row, order[:2]] = 0
    return found


@pytest.mark.parametrize("wanda", [False, True])
def test_the_two_weights_of_four_that_matter_least_go(wanda):
    checkpoint = Checkpoint.open(tiny("llama"))
    decoder, plain = (Decoder.load(checkpoint, dtype=torch.float32) for _ in range(2))
    heard = []
    plain.layers[2].self_attn.o_proj.register_forward_pre_hook(lambda _, args: heard.append(args[0].detach()))
    plain.model(input_ids=IDS)
    zeroed = mask(decoder, input_norms(decoder, IDS) if wanda else None)
    for name in ("self_attn.o_proj", "mlp.gate_proj"):
        before, after = (each.layers[2].get_submodule(name).weight for each in (plain, decoder))
        importance = before.abs()
        if wanda and name == "self_attn.o_proj":
            importance = importance * heard[0].flatten(0, 1).norm(dim=0)
        if not wanda or name == "self_attn.o_proj":
            assert torch.equal(after, masked_by_hand(before, importance))
        assert torch.equal((after.view(-1, 4) == 0).sum(1), torch.full((after.numel() // 4,), 2))
    assert (
        zeroed
        == sum(weight.numel() for layer in plain.layers for weight in layer.parameters() if weight.dim() == 2) // 2
    )
    assert torch.equal(plain.model.lm_head.weight, decoder.model.lm_head.weight)


def test_the_two_masks_differ():
    checkpoint = Checkpoint.open(tiny("llama"))
    plain, wanda = (Decoder.load(checkpoint, dtype=torch.float32) for _ in range(2))
    norms = input_norms(plain, IDS)
    mask(plain)
    mask(wanda, norms)
    assert not torch.equal(plain.layers[0].mlp.down_proj.weight, wanda.layers[0].mlp.down_proj.weight)


def test_rows_that_do_not_divide_by_four_are_refused(tmp_path):
    decoder = Decoder.load(
        Checkpoint.open(make("llama", tmp_path / "model", intermediate_size=46)), dtype=torch.float32
    )
    with pytest.raises(ArchitectureError, match="groups of 4"):
        mask(decoder)
