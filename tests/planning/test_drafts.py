"""Layers chosen for a draft, beside all sets of a small model."""

from __future__ import annotations

import itertools

import pytest
import torch

from shortstack.checkpoint import Checkpoint
from shortstack.data import Tokens
from shortstack.errors import DataError, InputError
from shortstack.machine.device import Compute
from shortstack.planning import Choice, choose
from shortstack.planning.drafts import expected
from zoo import tiny

IDS = torch.randint(3, 90, (8, 12), generator=torch.Generator().manual_seed(1))
HELD_OUT = torch.arange(8) % 4 == 3
TOKENS = Tokens.given(IDS)
FP32 = Compute(dtype="float32")


@pytest.fixture(scope="module")
def checkpoint():
    return Checkpoint.open(tiny("llama"))


@pytest.fixture(scope="module")
def accepted(checkpoint):
    """sum min(p, q) in the mean over predicted tokens, of the model without some layers."""
    model = checkpoint.model(dtype=torch.float32)
    layers = list(model.model.layers)

    @torch.no_grad()
    def probabilities(removed, ids):
        model.model.layers = torch.nn.ModuleList(layer for at, layer in enumerate(layers) if at not in removed)
        return model(ids, use_cache=False).logits[:, :-1].softmax(-1)

    return lambda removed, ids: float(torch.minimum(probabilities((), ids), probabilities(removed, ids)).sum(-1).mean())


@pytest.fixture(scope="module")
def cost(checkpoint):
    """Of a token of the model without some layers, by all weights that it reads, in tokens of the whole one."""

    def weights(removed):
        model = checkpoint.model(dtype=torch.float32).model
        layers = [layer for at, layer in enumerate(model.layers) if at not in removed]
        return model.embed_tokens.weight.numel() + sum(p.numel() for layer in layers for p in layer.parameters())

    return lambda removed: weights(removed) / weights(())


def greedy(accepted, ids, most):
    """The sets of one layer after the other that leaves what is right most often."""
    gone = ()
    for _ in range(most):
        gone = max(((*gone, at) for at in range(8) if at not in gone), key=lambda removed: accepted(removed, ids))
        yield gone


@pytest.mark.parametrize(("drop", "sizes"), [(None, (2, 3, 4, 5)), (3, (3,))])
def test_the_plan_is_the_cut_that_brings_most(checkpoint, accepted, cost, drop, sizes):
    found = choose(checkpoint, Choice(strategy="draft", drop=drop), TOKENS, compute=FP32).wanted
    cuts = [cut for cut in greedy(accepted, IDS[~HELD_OUT], max(sizes)) if len(cut) in sizes]
    brings = {cut: expected(accepted(cut, IDS[HELD_OUT]), cost(cut)) for cut in cuts}
    best = max(brings, key=lambda cut: brings[cut].speedup)
    assert found.removed == tuple(sorted(best))
    assert found.strategy.startswith(f"draft, {brings[best].tokens} token")
    wanted = {f"{len(cut)} layers": each.speedup for cut, each in brings.items()}
    assert found.compared == pytest.approx(wanted, rel=1e-4)


@pytest.mark.parametrize(("accepted", "cost"), [*itertools.product((0.1, 0.5, 0.9), (0.05, 0.4, 0.9))])
def test_the_expected_speed_is_that_of_drawn_runs(accepted, cost):
    best = expected(accepted, cost)
    generator = torch.Generator().manual_seed(0)

    def drawn(tokens):
        """New tokens for each pass, over what the pass and its proposals cost."""
        right = torch.rand(50_000, tokens, generator=generator) < accepted
        written = right.long().cumprod(1).sum(1) + 1
        return float(written.double().mean()) / (tokens * cost + 1)

    assert best.speedup == pytest.approx(drawn(best.tokens), rel=0.02)
    assert all(drawn(tokens) < best.speedup * 1.02 for tokens in range(1, 9))


def test_a_draft_that_is_never_right_is_slower_than_none():
    assert expected(0.0, 0.5).speedup < 1


def test_too_few_windows_are_refused(checkpoint):
    with pytest.raises(DataError, match="found 3"):
        choose(checkpoint, Choice(strategy="draft"), Tokens.given(IDS[:3]), compute=FP32)


def test_a_draft_goes_by_its_own_measure(checkpoint):
    with pytest.raises(InputError, match="without metric"):
        choose(checkpoint, Choice("ppl", strategy="draft"), TOKENS)
