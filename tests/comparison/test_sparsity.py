"""2:4 masks against their definition, weight by weight."""

import torch

from shortstack.checkpoint import Checkpoint
from shortstack.comparison.sparsity import input_norms, mask, unmaskable
from shortstack.decoder import Decoder
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


def test_the_two_weights_of_four_that_matter_least_go():
    checkpoint = Checkpoint.open(tiny("llama"))
    decoder, plain = (Decoder.load(checkpoint, dtype=torch.float32) for _ in range(2))
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
    checkpoint = Checkpoint.open(make("llama", tmp_path / "model", intermediate_size=46))
    decoder = Decoder.load(checkpoint, dtype=torch.float32)
    assert unmaskable(decoder) == "layer 0 mlp.down_proj has 46 inputs, which do not divide by 4"
    assert unmaskable(Decoder.load(Checkpoint.open(tiny("llama")), dtype=torch.float32)) is None
