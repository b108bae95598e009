"""Sets chosen by measuring shorter models, against loops over transformers with one whole forward for each candidate."""

import itertools

import pytest
import torch

import naive
from shortstack.checkpoint import Checkpoint
from shortstack.data import Tokens
from shortstack.decoder import Decoder
from shortstack.errors import DataError, PlanError
from shortstack.machine.device import Compute
from shortstack.machine.progress import silent
from shortstack.planning import Selection, search, select_layers
from shortstack.planning.layer_sets import Removal
from shortstack.planning.measured import selection_memory
from shortstack.planning.selection import CANDIDATES
from shortstack.repairing.cut_families import repaired_windows
from shortstack.repairing.repairer import RepairWalk
from shortstack.scoring import METRICS
from zoo import tiny

IDS = torch.randint(3, 90, (6, 10), generator=torch.Generator().manual_seed(3))
TOKENS = Tokens.given(IDS)
MANY = Tokens.given(torch.randint(3, 90, (32, 12), generator=torch.Generator().manual_seed(6)))  # repairs fit on them


@pytest.fixture(scope="module")
def checkpoint():
    return Checkpoint.open(tiny("llama"))


@pytest.fixture(scope="module")
def decoder(checkpoint):
    return Decoder.load(checkpoint, dtype=torch.float32)


def greedy(directory, amount, step, measure, allowed=range(8)):
    """Every remaining layer tried with a forward of its own; the lowest `step` go."""
    removed = []
    while len(removed) < amount:
        rest = [layer for layer in allowed if layer not in removed]
        values = dict(zip(rest, measure(directory, IDS, [[*removed, layer] for layer in rest]), strict=True))
        removed += sorted(rest, key=lambda layer: (values[layer], layer))[: min(step, amount - len(removed))]
    return tuple(sorted(removed))


@pytest.mark.parametrize(
    ("model_type", "amount", "step"), [("llama", 5, 1), ("gemma2", 5, 2), ("mixtral", 4, 4), ("gemma3_text", 7, 3)]
)
def test_stepwise_equals_a_naive_loop(model_type, amount, step):
    checkpoint = Checkpoint.open(tiny(model_type))
    for metric, measure in (("ppl", naive.losses), ("kl", naive.divergences)):
        found = select_layers(checkpoint, TOKENS, drop=amount, metric=metric, step=step)
        expected = greedy(checkpoint.directory, amount, step, measure)
        assert (found.wanted or found.removed) == expected, metric
        assert found.strategy == f"{metric}, {step} at a time"


def test_stepwise_keeps_the_ends(checkpoint):
    found = select_layers(checkpoint, TOKENS, drop=4, step=1, keep_first=2, keep_last=1)
    assert found.removed == greedy(checkpoint.directory, 4, 1, naive.losses, range(2, 7))


def searched(decoder, tokens, removal, monkeypatch, **budget):
    for name, value in budget.items():
        monkeypatch.setattr(search, name, value)
    return search.search(decoder, tokens, removal)


@pytest.mark.parametrize(("amount", "allowed"), [(2, range(8)), (3, range(1, 7))])
def test_a_search_that_may_see_every_set_finds_the_best(amount, allowed, checkpoint, decoder, monkeypatch):
    sample = IDS[:1].repeat(4, 1)  # what is held out is what was fitted: the best of one is the best of the other
    budget = {"GENERATIONS": 30, "OFFSPRING": 10, "SURVIVORS": 40, "PATIENCE": 30}
    found = searched(decoder, Tokens.given(sample), Removal(amount, allowed, METRICS["kl"]), monkeypatch, **budget)
    sets = list(itertools.combinations(allowed, amount))
    values = dict(zip(sets, naive.divergences(checkpoint.directory, IDS[:1], sets), strict=True))
    assert found.removed == min(values, key=values.get)
    assert found.candidates["search"] == pytest.approx(values[found.removed], rel=1e-4)
    assert found.candidates["tail"] == pytest.approx(values[tuple(allowed)[-amount:]], rel=1e-4)
    assert found.candidates["search"] <= min(found.candidates.values())


def test_a_search_is_repeatable_and_judged_on_held_out_samples(checkpoint, decoder, monkeypatch):
    removal, budget = Removal(3, range(8), METRICS["kl"], seed=5), {"GENERATIONS": 3, "OFFSPRING": 6, "SURVIVORS": 3}
    found = searched(decoder, TOKENS, removal, monkeypatch, **budget)
    assert searched(decoder, TOKENS, removal, monkeypatch, **budget) == found
    judged = naive.divergences(checkpoint.directory, IDS[3:4], [found.removed])
    assert found.candidates["search"] == pytest.approx(judged[0], rel=1e-4)


@pytest.mark.parametrize(
    ("options", "error", "about"),
    [
        ({"step": 4}, PlanError, "step"),
        ({"step": 1, "metric": "reverse"}, PlanError, "step"),
        ({"step": 1, "metric": "magnitude-l1"}, PlanError, "step"),
        ({"drop": 6, "strategy": "search", "keep_first": 2, "keep_last": 1}, PlanError, "drop"),
        ({"strategy": "search"}, DataError, None),
        ({"strategy": "repaired-blocks"}, DataError, None),
        ({"strategy": "repaired-blocks", "drop": 8}, PlanError, "drop"),
    ],
)
def test_measured_selections_that_cannot_be_are_refused(options, error, about, checkpoint):
    few = Tokens.given(IDS[:3])
    with pytest.raises(error) as raised:
        select_layers(checkpoint, few if error is DataError else TOKENS, **{"drop": 3, **options})
    assert about in (None, raised.value.option)


def runs(cut):
    """The blocks of a set of layers: the first layer and the size of each run."""
    firsts = [layer for layer in cut if layer - 1 not in cut]
    return [(first, next(size for size in range(1, 9) if first + size not in cut)) for first in firsts]


def summed(decoder, amount):
    """Every cut of so many of eight layers, cheapest first, with what its blocks cost together; and the best block."""
    cost = repaired_windows(decoder, MANY, range(1, amount + 1))
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
def test_repaired_blocks_removes_the_candidate_that_changes_least_once_repaired(amount, checkpoint, decoder):
    sums, (_, single) = summed(decoder, amount)
    finalists = []
    for _, cut in sums:
        if len(finalists) < CANDIDATES and not any(alike(cut, other) for other in finalists):
            finalists.append(cut)
    measured = {
        cut: RepairWalk(decoder, frozenset(cut), MANY, silent).walk().divergence() for cut in {single, *finalists}
    }
    found = select_layers(checkpoint, MANY, drop=amount, strategy="repaired-blocks")
    assert found.removed == min(measured, key=measured.__getitem__)
    assert sorted(found.candidates.values()) == pytest.approx(sorted(measured.values()), rel=1e-5)


@pytest.mark.parametrize("amount", [1, 4])
def test_repaired_blocks_without_candidates_removes_the_lowest_estimate(amount, checkpoint, decoder):
    """Several blocks are taken to cost what each does."""
    sums, single = summed(decoder, amount)
    both = {cut: loss for loss, cut in (single, sums[0])}
    found = select_layers(checkpoint, MANY, drop=amount, strategy="repaired-blocks", candidates=0)
    assert found.removed == min(both, key=both.__getitem__)
    assert sorted(found.candidates.values()) == pytest.approx(sorted(both.values()), rel=1e-5)
    assert found.measure.startswith("Estimated")


def test_repaired_blocks_keeps_the_ends(checkpoint):
    ends = {"keep_first": 2, "keep_last": 1, "candidates": 0}
    found = select_layers(checkpoint, MANY, drop=3, strategy="repaired-blocks", **ends)
    assert {*found.removed} <= {*range(2, 7)}
    assert found.wanted is None


def test_memory_of_a_selection_counts_streams_and_fits(checkpoint):
    """Hidden states of 32 float32 for each token; a fit holds what 48 neurons give, and sums in float64."""
    compute = Compute(dtype="float32", device="cpu")

    def needed(tokens, **options):
        return selection_memory(checkpoint, Selection(**options), 2, tokens, compute).nbytes

    assert needed(1000, metric="reverse") == 0
    assert needed(1000, metric="ppl") - needed(1000, metric="bi") == 8 * 1000 * 32 * 4, "a stream for each layer"
    more = needed(8000, strategy="repaired-blocks") - needed(4000, strategy="repaired-blocks")
    assert more >= 4000 * (6 * 32 + 48) * 4
