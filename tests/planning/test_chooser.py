"""choose(): the one place where a plan comes from; and the nearest exact cut, against trying every cut there is."""

from __future__ import annotations

import itertools

import architectures
import pytest

from plans import plan
from shortstack.architecture.anatomy import shortened
from shortstack.architecture.selfcheck import check_cut
from shortstack.checkpoint import Checkpoint, Sizes
from shortstack.data import Text
from shortstack.errors import ArchitectureError, DataError, InputError, PlanError
from shortstack.machine.device import Compute
from shortstack.machine.files import to_jsonable
from shortstack.planning import Choice, choose
from shortstack.planning.exactness import aligned
from shortstack.scoring import Scores, score
from zoo import speaking, tiny

TEXT, FLOAT32 = Text("pydoc", samples=8, length=16), Compute(dtype="float32")


def test_a_block_that_is_chosen_from_a_model_is_the_lowest_of_measured_ones(tmp_path):
    checkpoint = Checkpoint.open(speaking(tmp_path / "model"))
    tokens = TEXT.tokens(checkpoint.tokenizer())
    scores = score(checkpoint, tokens, metrics=["angular"], window=3, compute=FLOAT32)
    found = choose(checkpoint, Choice("angular", drop=3, strategy="block"), tokens, compute=FLOAT32)
    blocks = scores.blocks["angular"]
    first = blocks.index(min(blocks))
    assert found.plan.removed == (first, first + 1, first + 2)
    assert found.plan.strategy == "block angular, measured"


@pytest.mark.parametrize("layers", [6, 10])
def test_scores_of_a_model_of_another_depth_are_refused(layers):
    scores = Scores(layers, {"ppl": tuple(map(float, range(1, layers + 1)))})
    with pytest.raises(PlanError, match="8"):
        choose(tiny("llama"), Choice("ppl", drop=2), scores)


def test_scores_that_are_given_are_not_made_again(tmp_path):
    checkpoint = Checkpoint.open(speaking(tmp_path / "model"))
    tokens = TEXT.tokens(checkpoint.tokenizer())
    scores = score(checkpoint, tokens, metrics=["bi", "ppl"], compute=FLOAT32)
    chosen = choose(checkpoint, Choice("bi", 3), scores)
    assert chosen.scores is scores
    assert chosen.plan.removed == tuple(sorted(scores.order("bi")[:3]))
    assert choose(checkpoint, Choice("bi", 3), tokens, compute=FLOAT32).plan == chosen.plan


def test_as_few_layers_go_as_leave_others_that_fit():
    checkpoint = Checkpoint.open(tiny("llama"))
    small = lambda kept: len(kept) <= 5 and 7 not in kept  # noqa: E731
    assert choose(checkpoint, Choice("reverse", fits=small)).plan.removed == (5, 6, 7)
    with pytest.raises(PlanError, match="a cut that fits this size"):
        choose(checkpoint, Choice("reverse", fits=lambda kept: not kept))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"step": 1, "strategy": "block", "drop": 2}, "strategy: expected strategy or step, not both"),
        ({"strategy": "lowest", "step": 2, "drop": 4}, "strategy: expected strategy or step, not both"),
        ({"strategy": "search", "metric": "bi", "drop": 4}, "strategy: expected strategy or metric, not both"),
        ({"layers": "1", "strategy": "search"}, "layers: expected layers or strategy, not both"),
        ({"layers": "1", "metric": "ppl"}, "layers: expected layers or metric, not both"),
        ({"layers": "1", "step": 1}, "step: expected step or layers, not both"),
        ({"layers": "1", "drop": "1"}, "layers: expected layers or drop, not both"),
        ({"layers": "1", "keep_first": 2}, "layers: expected the first 2 and last 0 layers to stay"),
        ({"layers": "6", "keep_last": 2}, "layers: expected the first 0 and last 2 layers to stay"),
        ({}, "how much to remove"),
        ({"drop": 1, "finalists": 3}, "finalists: expected the strategy repaired-blocks, found none"),
        ({"metric": "ppl", "drop": "1"}, "metric: expected scores for this metric"),
        ({"metric": "nonsense", "drop": "1"}, "metric: .*nonsense"),
        ({"params": "lots"}, "params: expected a number and one of K, M, B, T"),
        ({"params": "0"}, "params: expected a number"),
        ({"params": "6B", "drop": "25%"}, "expected params or drop, not both"),
        ({"params": "6B", "memory": "1GB"}, "expected params or memory, not both"),
        ({"memory": "1GB", "layers": "3"}, "expected memory or layers, not both"),
        ({"memory": "1GB", "strategy": "block"}, "expected memory or strategy, not both"),
        ({"memory": "240"}, "memory: .*found 240 without a unit. To fix it: write 240MB or 240GB"),
    ],
)
def test_a_choice_that_cannot_be_is_refused(options, said):
    with pytest.raises(InputError, match=said):
        choose(8, Choice(**options))


@pytest.mark.parametrize(
    ("choice", "allowed", "refused"),
    [
        (Choice("reverse", 2, keep_first=1), {3, 5}, {0, 5}),
        (Choice("reverse", 2, keep_last=2), {3, 5}, {3, 6}),
        (Choice("reverse", 2, strategy="block"), {3, 4}, {3, 5}),
        (Choice("reverse", fits=lambda kept: 7 not in kept), {6, 7}, {5, 6}),
    ],
)
def test_a_cut_that_is_moved_keeps_what_was_asked_for(choice, allowed, refused, monkeypatch):
    asked = []

    def nowhere_else(_checkpoint, plan, *, allowed, progress):
        asked.append(allowed)
        return plan

    monkeypatch.setattr("shortstack.planning.exactness.aligned", nowhere_else)
    choose(Checkpoint.open(tiny("llama")), choice)
    assert asked[0](allowed)
    assert not asked[0](refused)


def test_as_few_layers_go_as_leave_the_parameters_or_bytes_that_were_asked_for():
    checkpoint = Checkpoint.open(tiny("llama"))
    sizes = checkpoint.sizes
    for amount in range(1, 8):
        parameters, nbytes = sizes.of(range(8 - amount))
        for goal in ({"params": str(parameters)}, {"memory": f"{nbytes}B"}):
            assert choose(checkpoint, Choice("reverse", **goal)).plan.removed == tuple(range(8 - amount, 8))
        one_less = choose(checkpoint, Choice("reverse", params=str(parameters + 1))).plan
        assert len(one_less.removed) == amount
    with pytest.raises(PlanError, match="less than the model's"):
        choose(checkpoint, Choice("reverse", params="1T"))
    least, _ = sizes.of([0])
    with pytest.raises(PlanError, match=f"params: expected at least {least:,}"):
        choose(checkpoint, Choice("ppl", params="1"))


def test_what_all_layers_stay_of_cannot_be_made_smaller():
    sizes = Sizes((5,) * 8, (10,) * 8, 100, 200)
    with pytest.raises(PlanError, match="keep fewer"):
        Choice("reverse", params="90", keep_first=4, keep_last=4).sized(sizes)


@pytest.mark.parametrize("how", [{"drop": 1}, {"fits": lambda kept: len(kept) <= 2}])
def test_without_a_named_metric_measured_loss_decides_and_else_the_first_scored(how):
    bi, ppl = (0.3, 0.2, 0.1), (3.0, 1.0, 2.0)
    for scores, metric, removed in (({"bi": bi, "ppl": ppl}, "ppl", 1), ({"bi": bi, "kl": ppl}, "bi", 2)):
        chosen = Choice(**how).plan(Scores(3, scores))
        assert (chosen.removed, chosen.strategy) == ((removed,), f"lowest {metric}")
        with pytest.raises(InputError, match=rf"one of the scored metrics \({', '.join(scores)}\)"):
            Choice("reverse", **how).plan(Scores(3, scores))


@pytest.mark.parametrize("source", [8, Scores(8, {"ppl": (1.0,) * 8}, model={"source": "org/m"})])
def test_without_a_model_none_is_measured_and_nothing_is_sized_by_it(source):
    for choice in (
        Choice(strategy="search", drop=2),
        Choice(drop=2, step=1),
        Choice(strategy="repaired-blocks", drop=2),
    ):
        with pytest.raises(InputError, match="expected a model: this strategy measures pruned versions of it"):
            choose(source, choice)
    with pytest.raises(DataError, match="layer_parameters"):
        choose(source, Choice("reverse", params="1K"))


def test_scores_that_know_the_sizes_of_their_model_tell_how_many_go():
    sizes = Sizes((10,) * 8, (20,) * 8, 5, 10)
    scores = Scores(8, {"ppl": tuple(map(float, range(8)))}, model={"source": "org/m", **to_jsonable(sizes)})
    chosen = choose(scores, Choice(params="65"))
    assert chosen.plan.removed == (0, 1)
    assert chosen.scores is scores


def exact(checkpoint: Checkpoint, removed: tuple[int, ...]) -> bool:
    wanted, path = plan(8, layers=removed), checkpoint.layer_names.path
    try:
        config = shortened(checkpoint.config, checkpoint.blueprint, checkpoint.anatomy, wanted.kept, path)
        check_cut(config, checkpoint.blueprint, checkpoint.anatomy, wanted.kept, checkpoint.directory)
    except ArchitectureError:
        return False
    return True


@pytest.mark.parametrize(
    ("name", "wanted"),
    [("jamba", (1, 4)), ("rwkv", (3, 4)), ("gemma4_text", (3, 4)), ("gpt_neox_japanese", (6, 7))],
)
def test_the_nearest_exact_cut_is_as_near_as_any(name, wanted, tmp_path):
    checkpoint = Checkpoint.open(architectures.make(name, tmp_path / "source"))
    found = aligned(checkpoint, plan(8, layers=wanted))
    possible = [cut for cut in itertools.combinations(range(8), 2) if exact(checkpoint, cut)]
    assert found.removed in possible
    exchanged = min(len(set(cut) ^ set(wanted)) for cut in possible)
    assert len(set(found.removed) ^ set(wanted)) == exchanged
    assert found.removed == wanted or found.strategy.endswith("moved to where the cut is exact")


def test_a_plan_is_moved_only_to_what_is_allowed(tmp_path):
    checkpoint = Checkpoint.open(architectures.make("jamba", tmp_path / "source"))
    free = aligned(checkpoint, plan(8, layers=(1, 4))).removed
    found = aligned(checkpoint, plan(8, layers=(1, 4)), allowed=lambda cut: max(cut) - min(cut) == 1).removed
    assert free[1] - free[0] > 1
    assert found[1] - found[0] == 1
    assert exact(checkpoint, found)
    assert aligned(checkpoint, plan(8, layers=(1, 4)), allowed=lambda _cut: False) is None
