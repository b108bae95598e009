"""Sets chosen by measuring shorter models, against loops over transformers with one whole forward for each candidate."""

import itertools

import pytest
import torch

import naive
from shortstack.checkpoint import Checkpoint
from shortstack.data import Tokens
from shortstack.decoder import Decoder
from shortstack.errors import DataError, InputError, PlanError
from shortstack.planning import Choice, choose
from shortstack.planning.layer_sets import Removal
from shortstack.planning.measured import Budget, search
from shortstack.scoring import METRICS
from zoo import tiny

IDS = torch.randint(3, 90, (6, 10), generator=torch.Generator().manual_seed(3))
TOKENS = Tokens(IDS, "made", False, 0)


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


def test_steps_keep_the_ends_that_are_to_stay():
    checkpoint = Checkpoint.open(tiny("llama"))
    found = choose(checkpoint, Choice(drop=4, step=1, keep_first=2, keep_last=1), TOKENS).wanted
    assert found.removed == greedy(checkpoint.directory, 4, 1, naive.losses, range(2, 7))


@pytest.mark.parametrize(("amount", "allowed"), [(2, range(8)), (3, range(1, 7))])
def test_a_search_that_may_see_every_set_finds_the_best(amount, allowed):
    checkpoint = Checkpoint.open(tiny("llama"))
    sample = IDS[:1].repeat(
        4, 1
    )  # what is held out is what was fitted, so that the best of one is the best of the other
    decoder = Decoder.load(checkpoint, dtype=torch.float32)
    everything = Budget(generations=30, offspring=10, survivors=40, patience=30)
    found = search(
        decoder, Tokens(sample, "made", False, 0), Removal(amount, allowed, METRICS["kl"]), budget=everything
    )
    sets = list(itertools.combinations(allowed, amount))
    values = dict(zip(sets, naive.divergences(checkpoint.directory, IDS[:1], sets), strict=True))
    assert found.removed == min(values, key=values.get)
    assert found.compared["search"] == pytest.approx(values[found.removed], rel=1e-4)
    assert found.compared["tail"] == pytest.approx(values[tuple(allowed)[-amount:]], rel=1e-4)
    assert found.compared["search"] <= min(found.compared.values())
    assert found.compared_by == "KL divergence from the unpruned model"


def test_a_search_is_repeatable_and_judged_on_samples_it_did_not_fit():
    decoder = Decoder.load(Checkpoint.open(tiny("llama")), dtype=torch.float32)
    removal, budget = Removal(3, range(8), METRICS["kl"], seed=5), Budget(3, 6, 3)
    found = search(decoder, TOKENS, removal, budget=budget)
    assert search(decoder, TOKENS, removal, budget=budget) == found
    judged = naive.divergences(Checkpoint.open(tiny("llama")).directory, IDS[3:4], [found.removed])
    assert found.compared["search"] == pytest.approx(judged[0], rel=1e-4)


@pytest.mark.parametrize(
    ("options", "error", "said"),
    [
        ({"drop": 3, "step": 0}, InputError, "step: expected at least 1"),
        ({"drop": 3, "step": 4}, PlanError, "1 to 3 layers at a time"),
        ({"drop": 3, "step": 1, "metric": "reverse"}, PlanError, "can change"),
        ({"drop": 3, "step": 1, "metric": "magnitude-l1"}, PlanError, "can change"),
        ({"drop": 6, "strategy": "search", "keep_first": 2, "keep_last": 1}, PlanError, "at most 5 layers"),
        ({"drop": 3, "strategy": "search"}, DataError, "at least 4 samples"),
    ],
)
def test_a_choice_that_cannot_be_made(options, error, said):
    few = Tokens(IDS[:3], "made", False, 0)
    with pytest.raises(error, match=said):
        choose(Checkpoint.open(tiny("llama")), Choice(**options), few if error is DataError else TOKENS)


def test_the_tail_goes_where_it_is_better_than_all_that_a_search_found(monkeypatch):
    """It was said that the chosen cut has the lowest KL divergence of those compared, with the tail's number."""
    decoder = Decoder.load(Checkpoint.open(tiny("llama")), dtype=torch.float32)

    def measured(_decoder, _tokens, sets, known, _progress, stage):
        known.update({each: 0.1 if stage == "held out" and each == {6, 7} else 1.0 for each in sets})

    monkeypatch.setattr("shortstack.planning.measured._measure", measured)
    found = search(decoder, TOKENS, Removal(2, range(8), METRICS["kl"]), budget=Budget(2, 4, 2))
    assert found.removed == (6, 7)
    assert found.compared["search"] == min(found.compared.values()) == 0.1
