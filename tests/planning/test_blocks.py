"""One block of layers or two, chosen by what they cost once repaired."""

import itertools

import pytest
import torch

import naive
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


def layers(*blocks):
    return tuple(layer for start, size in blocks for layer in range(start, start + size))


@pytest.mark.parametrize(("amount", "splits"), [(2, [(1, 1)]), (3, [(1, 2)]), (4, [(1, 3), (2, 2)])])
def test_of_the_best_block_and_the_best_pairs_the_one_with_the_lowest_repaired_loss_goes(amount, splits):
    checkpoint = Checkpoint.open(tiny("llama"))
    decoder = Decoder.load(checkpoint, dtype=torch.float32)
    found = choose(checkpoint, Choice(drop=amount, strategy="repaired-blocks"), TOKENS).plan
    cost = repaired_windows(decoder, TOKENS, {amount, *itertools.chain(*splits)})
    pairs = []
    for sizes in {each for split in splits for each in itertools.permutations(split)}:
        for first, second in itertools.product(range(8), repeat=2):
            blocks = (first, sizes[0]), (second, sizes[1])
            if first + sizes[0] < second and second + sizes[1] <= 8:
                pairs.append((cost[blocks[0]] + cost[blocks[1]], layers(*blocks)))
    single = min((loss, layers(block)) for block, loss in cost.items() if block[1] == amount)
    finalists = [single[1], *(pair for _, pair in sorted(pairs)[:FINALISTS])]
    losses = {cut: RepairWalk(decoder, frozenset(cut), TOKENS, silent).walk().losses()[2] for cut in finalists}
    assert found.removed == min(losses, key=losses.__getitem__)
    assert sorted(found.compared.values()) == pytest.approx(sorted(losses.values()), rel=1e-5)
    assert found.compared_by == "loss with layers refitted"


@pytest.mark.parametrize("amount", [1, 3, 4])
def test_without_finalists_the_lowest_that_is_measured_goes(amount):
    """Two blocks are taken to cost what each does beyond the whole model's loss."""
    checkpoint = Checkpoint.open(tiny("llama"))
    decoder = Decoder.load(checkpoint, dtype=torch.float32)
    found = choose(checkpoint, Choice(drop=amount, strategy="repaired-blocks", finalists=0), TOKENS).plan
    cost = repaired_windows(decoder, TOKENS, range(1, amount + 1))
    whole = naive.losses(checkpoint.directory, IDS[3::4], [[]])[0]
    single = min((loss, layers(block)) for block, loss in cost.items() if block[1] == amount)
    pairs = []
    for one, other in itertools.combinations(cost, 2):
        if one[1] + other[1] == amount and abs(one[1] - other[1]) <= 2 and one[0] + one[1] < other[0]:
            pairs.append((cost[one] + cost[other] - whole, layers(one, other)))
    lowest = sorted([single, *sorted(pairs)[:1]])
    assert found.removed == lowest[0][1]
    assert sorted(found.compared.values()) == pytest.approx([loss for loss, _ in lowest], rel=1e-5)


def test_ends_that_must_stay_stay():
    checkpoint = Checkpoint.open(tiny("llama"))
    choice = Choice(drop=3, strategy="repaired-blocks", keep_first=2, keep_last=1)
    assert set(choose(checkpoint, choice, TOKENS).plan.removed) <= set(range(2, 7))


def test_it_has_a_measure_of_its_own_and_needs_samples():
    checkpoint = Checkpoint.open(tiny("llama"))
    with pytest.raises(InputError, match="strategy"):
        choose(checkpoint, Choice("bi", 3, strategy="repaired-blocks"), TOKENS)
    with pytest.raises(DataError, match="at least 4 samples"):
        choose(checkpoint, Choice(drop=3, strategy="repaired-blocks"), Tokens.given(IDS[:3]))
    with pytest.raises(PlanError):
        choose(checkpoint, Choice(drop=8, strategy="repaired-blocks"), TOKENS)
