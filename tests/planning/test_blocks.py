"""Blocks of layers and single ones, chosen by what they cost once repaired."""

import itertools

import pytest
import torch

from shortstack.checkpoint import Checkpoint
from shortstack.data import Tokens
from shortstack.decoder import Decoder
from shortstack.errors import DataError, InputError, PlanError
from shortstack.machine.progress import silent
from shortstack.planning import Choice, choose
from shortstack.planning.layer_sets import FINALISTS
from shortstack.repairing.cut_families import repaired_windows
from shortstack.repairing.repairer import RepairWalk
from zoo import tiny

IDS = torch.randint(3, 90, (32, 12), generator=torch.Generator().manual_seed(6))
TOKENS = Tokens.given(IDS)


def runs(cut):
    """The blocks of a set of layers: the first layer and the size of each run."""
    firsts = [layer for layer in cut if layer - 1 not in cut]
    return [(first, next(size for size in range(1, 9) if first + size not in cut)) for first in firsts]


def summed(decoder, amount):
    """Every cut of so many of eight layers, cheapest first, with what its blocks cost together."""
    cost = repaired_windows(decoder, TOKENS, range(1, amount + 1))
    cuts = [
        cut
        for cut in itertools.combinations(range(8), amount)
        if all(size <= 4 or size == amount for _, size in runs(cut))
    ]
    sums = sorted((sum(cost[run] for run in runs(cut)), cut) for cut in cuts)
    single = min((cost[start, amount], tuple(range(start, start + amount))) for start in range(9 - amount))
    return sums, single


def alike(one, other):
    return len(set(one) & set(other)) >= len(one) - 1


@pytest.mark.parametrize("amount", [2, 5])
def test_of_the_best_block_and_the_cheapest_sets_the_one_that_repaired_changes_least_goes(amount):
    checkpoint = Checkpoint.open(tiny("llama"))
    decoder = Decoder.load(checkpoint, dtype=torch.float32)
    found = choose(checkpoint, Choice(drop=amount, strategy="repaired-blocks"), TOKENS).plan
    sums, (_, single) = summed(decoder, amount)
    finalists = []
    for _, cut in sums:
        if len(finalists) < FINALISTS and not any(alike(cut, other) for other in finalists):
            finalists.append(cut)
    measured = {
        cut: RepairWalk(decoder, frozenset(cut), TOKENS, silent).walk().divergence() for cut in {single, *finalists}
    }
    assert found.removed == min(measured, key=measured.__getitem__)
    assert sorted(found.compared.values()) == pytest.approx(sorted(measured.values()), rel=1e-5)
    assert found.compared_by == "KL divergence from the unpruned model after repair"


@pytest.mark.parametrize("amount", [1, 4])
def test_without_finalists_the_lowest_that_is_measured_goes(amount):
    """Several blocks are taken to cost what each does."""
    checkpoint = Checkpoint.open(tiny("llama"))
    decoder = Decoder.load(checkpoint, dtype=torch.float32)
    found = choose(checkpoint, Choice(drop=amount, strategy="repaired-blocks", finalists=0), TOKENS).plan
    sums, single = summed(decoder, amount)
    both = {cut: loss for loss, cut in (single, sums[0])}
    assert found.removed == min(both, key=both.__getitem__)
    assert sorted(found.compared.values()) == pytest.approx(sorted(both.values()), rel=1e-5)


def test_it_has_a_measure_of_its_own_needs_samples_and_keeps_the_ends():
    checkpoint = Checkpoint.open(tiny("llama"))
    with pytest.raises(InputError, match="strategy"):
        choose(checkpoint, Choice("bi", 3, strategy="repaired-blocks"), TOKENS)
    with pytest.raises(DataError, match="at least 4 samples"):
        choose(checkpoint, Choice(drop=3, strategy="repaired-blocks"), Tokens.given(IDS[:3]))
    with pytest.raises(PlanError):
        choose(checkpoint, Choice(drop=8, strategy="repaired-blocks"), TOKENS)
    ends = Choice(drop=3, strategy="repaired-blocks", keep_first=2, keep_last=1, finalists=0)
    assert set(choose(checkpoint, ends, TOKENS).plan.removed) <= set(range(2, 7))
