"""Sets chosen by measuring shorter models, against loops over transformers with one whole forward for each candidate."""

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
from shortstack.planning.layer_sets import FINALISTS, Removal
from shortstack.planning.measured import Budget, search
from shortstack.repairing.cut_families import repaired_windows
from shortstack.repairing.repairer import RepairWalk
from shortstack.scoring import METRICS, Scores
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
def test_steps_remove_what_a_naive_loop_removes(model_type, amount, step):
    checkpoint = Checkpoint.open(tiny(model_type))
    for metric, measure in (("ppl", naive.losses), ("kl", naive.divergences)):
        found = choose(checkpoint, Choice(drop=amount, metric=metric, step=step), TOKENS).wanted
        assert found.removed == greedy(checkpoint.directory, amount, step, measure), metric
        assert found.strategy == f"{metric}, {step} at a time"


def test_scores_are_nothing_to_measure_shorter_models_on(checkpoint):
    known = Scores(8, {"ppl": (1.0,) * 8})
    with pytest.raises(InputError, match=r"source: expected text, or nothing.*leave the scores out"):
        choose(checkpoint, Choice(strategy="search", drop=2), known)


def test_steps_keep_the_ends_that_are_to_stay(checkpoint):
    found = choose(checkpoint, Choice(drop=4, step=1, keep_first=2, keep_last=1), TOKENS).wanted
    assert found.removed == greedy(checkpoint.directory, 4, 1, naive.losses, range(2, 7))


@pytest.mark.parametrize(("amount", "allowed"), [(2, range(8)), (3, range(1, 7))])
def test_a_search_that_may_see_every_set_finds_the_best(amount, allowed, checkpoint, decoder):
    sample = IDS[:1].repeat(4, 1)  # what is held out is what was fitted: the best of one is the best of the other
    everything = Budget(generations=30, offspring=10, survivors=40, patience=30)
    found = search(decoder, Tokens.given(sample), Removal(amount, allowed, METRICS["kl"]), budget=everything)
    sets = list(itertools.combinations(allowed, amount))
    values = dict(zip(sets, naive.divergences(checkpoint.directory, IDS[:1], sets), strict=True))
    assert found.removed == min(values, key=values.get)
    assert found.compared["search"] == pytest.approx(values[found.removed], rel=1e-4)
    assert found.compared["tail"] == pytest.approx(values[tuple(allowed)[-amount:]], rel=1e-4)
    assert found.compared["search"] <= min(found.compared.values())
    assert found.compared_by == "KL divergence from the unpruned model"


def test_a_search_is_repeatable_and_judged_on_samples_it_did_not_fit(checkpoint, decoder):
    removal, budget = Removal(3, range(8), METRICS["kl"], seed=5), Budget(3, 6, 3)
    found = search(decoder, TOKENS, removal, budget=budget)
    assert search(decoder, TOKENS, removal, budget=budget) == found
    judged = naive.divergences(checkpoint.directory, IDS[3:4], [found.removed])
    assert found.compared["search"] == pytest.approx(judged[0], rel=1e-4)


def test_the_tail_goes_where_it_is_better_than_all_that_a_search_found(decoder, monkeypatch):
    """It was said that the chosen cut has the lowest KL divergence of those compared, with the tail's number."""

    def measured(_decoder, _tokens, sets, known, _progress, stage):
        known.update({each: 0.1 if stage == "held out" and each == {6, 7} else 1.0 for each in sets})

    monkeypatch.setattr("shortstack.planning.measured._measure", measured)
    found = search(decoder, TOKENS, Removal(2, range(8), METRICS["kl"]), budget=Budget(2, 4, 2))
    assert found.removed == (6, 7)
    assert found.compared["search"] == min(found.compared.values()) == 0.1


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"step": 0}, InputError, "step: expected at least 1"),
        ({"step": 4}, PlanError, "1 to 3 layers at a time"),
        ({"step": 1, "metric": "reverse"}, PlanError, "can change"),
        ({"step": 1, "metric": "magnitude-l1"}, PlanError, "can change"),
        ({"drop": 6, "strategy": "search", "keep_first": 2, "keep_last": 1}, PlanError, "at most 5 layers"),
        ({"strategy": "search"}, DataError, "at least 4 samples"),
        ({"strategy": "repaired-blocks"}, DataError, "at least 4 samples"),
        ({"strategy": "repaired-blocks", "metric": "bi"}, InputError, "strategy"),
        ({"strategy": "repaired-blocks", "drop": 8}, PlanError, "between 1 and 7"),
    ],
)
def test_a_choice_that_cannot_be_made(options, error, said, checkpoint):
    few = Tokens.given(IDS[:3])
    with pytest.raises(error, match=said):
        choose(checkpoint, Choice(**{"drop": 3, **options}), few if error is DataError else TOKENS)


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
def test_of_the_best_block_and_the_cheapest_sets_the_one_that_repaired_changes_least_goes(amount, checkpoint, decoder):
    sums, (_, single) = summed(decoder, amount)
    finalists = []
    for _, cut in sums:
        if len(finalists) < FINALISTS and not any(alike(cut, other) for other in finalists):
            finalists.append(cut)
    measured = {
        cut: RepairWalk(decoder, frozenset(cut), MANY, silent).walk().divergence() for cut in {single, *finalists}
    }
    found = choose(checkpoint, Choice(drop=amount, strategy="repaired-blocks"), MANY).plan
    assert found.removed == min(measured, key=measured.__getitem__)
    assert sorted(found.compared.values()) == pytest.approx(sorted(measured.values()), rel=1e-5)
    assert found.compared_by == "KL divergence from the unpruned model after repair"


@pytest.mark.parametrize("amount", [1, 4])
def test_without_finalists_the_lowest_that_is_measured_goes(amount, checkpoint, decoder):
    """Several blocks are taken to cost what each does."""
    sums, single = summed(decoder, amount)
    both = {cut: loss for loss, cut in (single, sums[0])}
    found = choose(checkpoint, Choice(drop=amount, strategy="repaired-blocks", finalists=0), MANY).plan
    assert found.removed == min(both, key=both.__getitem__)
    assert sorted(found.compared.values()) == pytest.approx(sorted(both.values()), rel=1e-5)
    assert "sum of its blocks" in found.compared_by, "nothing was repaired whole"


def test_blocks_keep_the_ends_that_are_to_stay(checkpoint):
    ends = Choice(drop=3, strategy="repaired-blocks", keep_first=2, keep_last=1, finalists=0)
    found = choose(checkpoint, ends, MANY)
    assert set(found.wanted.removed) <= set(range(2, 7))
    assert found.plan == found.wanted, "what is measured, not its neighbour"
