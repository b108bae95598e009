"""The depth curve against one whole forward for each depth."""

import math

import pytest
import torch

import naive
from shortstack.checkpoint import Checkpoint
from shortstack.data import Tokens
from shortstack.machine.device import Compute
from shortstack.scoring import DepthCurve, depth_curve
from shortstack.scoring.depths import Depth
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
    losses = (2.0, 2.1, 2.0 + math.log(1.5) - 1e-9, 2.2, 2.0 + math.log(1.5) + 1e-9, 2.0)
    curve = DepthCurve(tuple(Depth(6 - gone, loss, 0.0, 0.0) for gone, loss in enumerate(losses)))
    assert curve.removable == 3
    assert DepthCurve(curve.depths[:4]).removable == 3
    assert DepthCurve(curve.depths[:1]).removable == 0
