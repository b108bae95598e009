"""The depth curve against one whole forward for each depth."""

import math

import pytest
import torch

import naive
from shortstack.checkpoint import Checkpoint
from shortstack.data import Tokens
from shortstack.errors import InputError
from shortstack.machine.device import Compute
from shortstack.scoring import depth_curve
from zoo import tiny

IDS = torch.randint(3, 90, (6, 10), generator=torch.Generator().manual_seed(3))
TOKENS = Tokens(IDS, "made", False, 0)
TAILS = [list(range(kept, 8)) for kept in range(8, 0, -1)]


@pytest.mark.parametrize(("model_type", "stream"), [("llama", False), ("gemma2", True), ("mixtral", False)])
def test_every_depth_is_what_the_cut_model_gives(model_type, stream):
    checkpoint = Checkpoint.open(tiny(model_type))
    found = depth_curve(checkpoint, TOKENS, compute=Compute(stream=stream))
    assert [depth.layers for depth in found.depths] == [8, 7, 6, 5, 4, 3, 2, 1]
    losses = naive.losses(checkpoint.directory, IDS, TAILS)
    assert [depth.loss for depth in found.depths] == pytest.approx(losses, rel=2e-5)
    assert [depth.perplexity for depth in found.depths] == pytest.approx([math.exp(loss) for loss in losses], rel=1e-4)
    kls = naive.divergences(checkpoint.directory, IDS, TAILS)
    assert [depth.kl for depth in found.depths] == pytest.approx(kls, rel=1e-4, abs=1e-6)


def test_it_costs_each_layer_once_and_a_head_for_each_depth(monkeypatch):
    seen, calls, loaded = [], [0] * 8, Checkpoint.model

    def counted(self, **options):
        model = loaded(self, **options)
        for number, layer in enumerate(model.model.layers):
            layer.self_attn.register_forward_hook(
                lambda *_, number=number: calls.__setitem__(number, calls[number] + 1)
            )
        return model

    monkeypatch.setattr(Checkpoint, "model", counted)
    depth_curve(
        Checkpoint.open(tiny("llama")), TOKENS, progress=lambda _stage, done, total, **_: seen.append((done, total))
    )
    head = (seen[-1][1] - 8) / (8 + 1)
    assert head == int(head), "eight layers, a head for each depth and one for the reference"
    assert seen[-1][0] == seen[-1][1]
    assert calls == [2] * 8, "once to learn how layers hand on, once to walk"


def test_layers_can_go_until_the_first_depth_that_loses_too_much():
    curve = depth_curve(Checkpoint.open(tiny("llama")), TOKENS)
    losses = [depth.loss for depth in curve.depths]
    for allowed in (losses[0], max(losses[:4]), max(losses) + 1):
        expected = 0
        while expected + 1 < len(losses) and losses[expected + 1] <= allowed:
            expected += 1
        assert curve.within(allowed).removable == expected
    assert curve.max_loss == pytest.approx(losses[0] + math.log(1.5))
    with pytest.raises(InputError, match="at least the unpruned"):
        curve.within(losses[0] - 0.1)
    for nothing in (math.nan, math.inf):
        with pytest.raises(InputError, match="at least the unpruned"):
            curve.within(nothing)
