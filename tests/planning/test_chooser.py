"""choose(): the one place where a plan comes from."""

import pytest

from shortstack.checkpoint import Checkpoint, Sizes
from shortstack.data import CalibrationText
from shortstack.errors import DataError, InputError, PlanError
from shortstack.machine.device import Compute
from shortstack.machine.files import to_jsonable
from shortstack.planning import Choice, choose
from shortstack.scoring import Scores, score
from zoo import speaking, tiny

TEXT, FLOAT32 = CalibrationText("pydoc", samples=8, length=16), Compute(dtype="float32")


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
    with pytest.raises(PlanError, match="a cut that leaves what fits"):
        choose(checkpoint, Choice("reverse", fits=lambda kept: not kept))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"step": 1, "strategy": "block", "drop": 2}, "strategy: expected strategy without step"),
        ({"layers": "1", "strategy": "search"}, "layers: expected layers without strategy"),
        ({"layers": "1", "metric": "ppl"}, "layers: expected layers without metric"),
        ({"strategy": "lowest", "step": 2, "drop": 4}, "strategy: expected strategy without step"),
        ({"strategy": "search", "metric": "bi", "drop": 4}, "strategy: expected strategy without metric"),
        ({}, "how much to remove"),
        ({"drop": 99}, "between 1 and 7"),
    ],
)
def test_what_excludes_itself_is_refused(options, message):
    with pytest.raises(InputError, match=message):
        choose(Checkpoint.open(tiny("llama")), Choice(**options))
    with pytest.raises(InputError, match="nothing"):
        Choice(metric="nothing")


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


@pytest.mark.parametrize(
    ("goal", "said"),
    [
        ({"params": "lots"}, "params: expected a number and one of K, M, B, T"),
        ({"params": "6B", "drop": "25%"}, "expected params without drop"),
        ({"memory": "1GB", "layers": "3"}, "expected memory without layers"),
        ({"params": "0"}, "params: expected a number"),
        ({"memory": "1GB", "strategy": "block"}, "expected memory without strategy"),
        ({"memory": "240"}, "memory: .*found 240 without a unit. To fix it: write 240MB or 240GB"),
    ],
)
def test_goals_that_cannot_be_are_refused(goal, said):
    with pytest.raises(InputError, match=said):
        Choice(**goal).check()


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


def test_scores_without_perplexity_choose_by_the_metric_that_they_have():
    scores = Scores(8, {"bi": (0.3, 0.1, 0.2, 0.5, 0.6, 0.7, 0.8, 0.9)})
    fits = lambda kept: len(kept) <= 6  # noqa: E731
    plan = Choice(fits=fits).plan(scores)
    assert (plan.removed, plan.strategy) == ((1, 2), "lowest bi")
    with pytest.raises(InputError, match="one of the scored metrics"):
        Choice("kl", fits=fits).plan(scores)


@pytest.mark.parametrize("source", [8, Scores(8, {"ppl": (1.0,) * 8}, model={"source": "org/m"})])
def test_without_a_model_none_is_measured_and_nothing_is_sized_by_it(source):
    for choice in (
        Choice(strategy="search", drop=2),
        Choice(drop=2, step=1),
        Choice(strategy="repaired-blocks", drop=2),
    ):
        with pytest.raises(InputError, match="expected a model, to measure shorter forms of it"):
            choose(source, choice)
    with pytest.raises(DataError, match="layer_parameters"):
        choose(source, Choice("reverse", params="1K"))


def test_scores_that_know_the_sizes_of_their_model_tell_how_many_go():
    sizes = Sizes((10,) * 8, (20,) * 8, 5, 10)
    scores = Scores(8, {"ppl": tuple(map(float, range(8)))}, model={"source": "org/m", **to_jsonable(sizes)})
    chosen = choose(scores, Choice(params="65"))
    assert chosen.plan.removed == (0, 1)
    assert chosen.scores is scores
