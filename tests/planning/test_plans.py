"""Plans: the amount asked for, the lowest scores, ties to the lower index, nothing that does not exist; as JSON and YAML."""

from __future__ import annotations

import itertools
import json
import math

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from plans import plan
from shortstack.checkpoint import Sizes
from shortstack.errors import DataError, InputError, PlanError
from shortstack.machine.files import to_jsonable
from shortstack.machine.formats import show_layers
from shortstack.planning import Plan, Selection, plan_of, select_layers
from shortstack.planning.layer_sets import parse_drop, parse_layers
from shortstack.planning.mergekit import to_mergekit
from shortstack.planning.selection import layers_to_remove
from shortstack.scoring import Scores


def scores(values) -> Scores:
    return Scores(len(values), {"ppl": tuple(map(float, values))})


@given(st.integers(2, 200), st.integers(1, 9999))
def test_a_share_is_rounded_half_up_exactly(layers, hundredths):
    text = f"{hundredths // 100}.{hundredths % 100:02d}%"
    amount = (2 * hundredths * layers + 10_000) // 20_000  # floor(share + 1/2) in whole numbers
    if 0 < amount < layers:
        assert parse_drop(text, layers) == layers_to_remove(Selection(drop=text), layers, None) == amount
        assert plan(layers, drop=text).removed == tuple(range(layers - amount, layers))
    else:
        with pytest.raises(PlanError) as error:
            parse_drop(text, layers)
        assert error.value.option == "drop"


@pytest.mark.parametrize("drop", ["0", "0%", "120%", "100%", "8", "9", "-1", "1.5", "", "%", "lots", "1e1", 0, -1, 1.0])
def test_an_impossible_amount_is_refused(drop):
    with pytest.raises(InputError) as error:
        plan(8, drop=drop)
    assert error.value.option == "drop"


values = st.integers(2, 12).flatmap(lambda n: st.lists(st.integers(0, 4), min_size=n, max_size=n))  # few, so many ties


@given(values, st.data())
def test_lowest_scores_are_removed_with_ties_to_the_lower_index(values, data):
    layers = len(values)
    first, last = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
    amount = data.draw(st.integers(1, layers - 1))
    allowed = [layer for layer in range(layers) if first <= layer < layers - last]
    options = {"drop": amount, "keep_first": first, "keep_last": last}
    if amount > len(allowed):
        with pytest.raises(PlanError):
            plan(scores(values), **options)
        return

    def cost(removed: tuple[int, ...]) -> tuple[object, ...]:
        return sum(values[layer] for layer in removed), removed

    chosen = plan(scores(values), **options)
    assert chosen.removed == min(itertools.combinations(allowed, amount), key=cost)
    windows = [layers for layers in itertools.combinations(allowed, amount) if layers[-1] - layers[0] == amount - 1]
    blocked = plan(scores(values), strategy="block", **options)
    assert blocked.removed == min(windows, key=cost)
    for found in (chosen, blocked):
        assert sorted(found.removed + found.kept) == list(range(layers))
        assert found.scores == scores(values)


@given(st.sets(st.integers(0, 30), min_size=1, max_size=30), st.permutations(range(31)))
def test_named_layers_are_removed_whatever_their_order(removed, order):
    named = [layer for layer in order if layer in removed]
    text = ",".join(map(str, named))
    assert {*plan(31, layers=text).removed} == {*plan(31, layers=named).removed} == {*plan_of({*named}, 31).removed}
    assert {*parse_layers(show_layers(sorted(removed)).replace("-", " - "))} == removed


@pytest.mark.parametrize(
    "layers", ["8", "0-9999999999", "3,3", "0-7", "5-4", "-1", "", "1,,2", "x", (), (-1,), (2.0,), range(8)]
)
def test_layers_that_cannot_be_removed_are_refused(layers):
    with pytest.raises(PlanError) as error:
        plan(8, layers=layers)
    assert error.value.option == "layers"


@pytest.mark.parametrize(
    ("options", "about"),
    [
        ({"step": 1, "strategy": "block", "drop": 2}, "strategy"),
        ({"strategy": "search", "metric": "bi", "drop": 4}, "strategy"),
        ({"layers": "1", "strategy": "search"}, "layers"),
        ({"layers": "1", "metric": "ppl"}, "layers"),
        ({"layers": "1", "step": 1}, "layers"),
        ({"layers": "1", "drop": "1"}, "layers"),
        ({}, "drop"),
        ({"drop": 1, "candidates": 3}, "candidates"),
        ({"metric": "ppl", "drop": "1"}, "metric"),  # not scored
        ({"metric": "nonsense", "drop": "1"}, "metric"),
        ({"target_params": "lots"}, "target_params"),
        ({"target_size": "240"}, "target_size"),  # no unit
        ({"target_params": "6B", "drop": "25%"}, "drop"),
        ({"target_params": "6B", "target_size": "1GB"}, "target_params"),
        ({"target_params": "1K"}, "target_params"),  # as large as the model
        ({"target_params": "1"}, "target_params"),
        ({"drop": 2, "strategy": "search"}, "strategy"),  # measures models
        ({"drop": 2, "step": 1, "metric": "bi"}, "strategy"),
        ({"drops": 2}, "drops"),
    ],
)
def test_a_selection_that_cannot_be_is_refused(options, about):
    sizes = Sizes((10,) * 8, (20,) * 8, 5, 10)
    of = Scores(8, {"bi": (1.0,) * 8}, model=to_jsonable(sizes))
    with pytest.raises(InputError) as error:
        select_layers(of, **options)
    assert error.value.option == about


@given(
    st.lists(st.integers(1, 99), min_size=2, max_size=10), st.sampled_from(["target_params", "target_size"]), st.data()
)
def test_a_target_is_met_by_the_fewest_layers_whichever_they_are(weights, goal, data):
    layers = len(weights)
    keep = data.draw(st.integers(0, 2))
    sizes = Sizes(tuple(weights), tuple(weights), 7, 7)
    most = data.draw(st.integers(1, 7 + sum(weights)))
    allowed = [weights[layer] for layer in range(layers - keep)]
    fits = [
        count
        for count in range(1, min(len(allowed), layers - 1) + 1)
        if all(7 + sum(weights) - sum(gone) <= most for gone in itertools.combinations(allowed, count))
    ]
    selection = Selection(**{goal: f"{most}B" if goal == "target_size" else str(most)}, keep_last=keep)
    if most < 7 + sum(weights) and fits:
        assert layers_to_remove(selection, layers, sizes) == fits[0]
    else:
        with pytest.raises(PlanError) as error:
            layers_to_remove(selection, layers, sizes)
        assert error.value.option == goal


def test_without_a_metric_ppl_is_taken_and_else_the_first_that_was_scored():
    bi, ppl = (0.3, 0.2, 0.1), (3.0, 1.0, 2.0)
    for table, metric, removed in (({"bi": bi, "ppl": ppl}, "ppl", 1), ({"bi": bi, "kl": ppl}, "bi", 2)):
        found = plan(Scores(3, table), drop=1)
        assert (found.removed, found.strategy) == ((removed,), f"lowest {metric}")
    assert plan(Scores(3, {"bi": bi}), drop=1, metric="reverse").removed == (2,), "needs no scores"


sizes = st.integers(2, 10).flatmap(
    lambda n: st.builds(
        Sizes,
        *[st.lists(st.integers(1, 99), min_size=n, max_size=n).map(tuple)] * 2,
        *[st.integers(1, 99)] * 2,
    )
)


@given(sizes, st.data())
def test_a_plan_knows_what_it_saves_and_returns_from_json(found, data):
    layers = len(found.layer_bytes)
    removed = data.draw(st.lists(st.integers(0, layers - 1), min_size=1, max_size=layers - 1, unique=True))
    bare = plan(layers, layers=removed)
    sized = bare.sized(found)
    for change, per_layer in ((sized.parameters, found.layer_parameters), (sized.bytes, found.layer_bytes)):
        assert change.before - change.after == sum(per_layer[layer] for layer in removed)
    scored = plan(Scores(layers, {"ppl": (math.inf, *range(1, layers))}, model=to_jsonable(found)), drop=1)
    assert scored.parameters
    for each in (bare, sized, scored):
        assert Plan.from_dict(json.loads(json.dumps(each.to_dict())), where="plan.json") == each


def test_extra_heads_count_before_a_cut_and_not_after():
    sized = plan(2, layers="1").sized(Sizes((10, 20), (40, 80), 3, 12, 5, 7))
    assert (sized.parameters.before, sized.parameters.after) == (38, 13)
    assert (sized.bytes.before, sized.bytes.after) == (139, 52)


MISSING = object()
GOOD_PLAN = plan(8, layers="2,5").to_dict()


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": "many"},
        {"layers": 8.5},
        {"layers": None},
        {"layers": 5},
        {"removed": "25"},
        {"removed": [math.nan]},
        {"removed": ["two"]},
        {"removed": None},
        {"removed": []},
        {"removed": [2, 2]},
        {"removed": [8]},
        {"bytes": 5},
        {"bytes": {"before": 1}},
        {"candidates": {"tail": "low"}},
        {"candidates": [0.1]},
        {"scores": {"layers": 8}},
        *({key: MISSING} for key in ("layers", "removed", "strategy")),
    ],
)
def test_a_malformed_plan_is_refused(changes):
    data = {key: value for key, value in (GOOD_PLAN | changes).items() if value is not MISSING}
    with pytest.raises((DataError, PlanError)):
        Plan.from_dict(data, where="plan.json")


GOOD_SIZES = {"layer_parameters": [1, 2], "layer_bytes": [3, 4], "other_parameters": 5, "other_bytes": 6}


@pytest.mark.parametrize(
    "changes",
    [{"layer_bytes": [3]}, {"layer_bytes": 3}, {"layer_parameters": ["1", "2"]}, {"other_bytes": 0}],
)
def test_malformed_sizes_are_refused(changes):
    assert Sizes.from_dict(GOOD_SIZES, where="s") == Sizes((1, 2), (3, 4), 5, 6)
    with pytest.raises(DataError):
        Sizes.from_dict(GOOD_SIZES | changes, where="scores.json")


@given(st.sets(st.integers(0, 11), min_size=1, max_size=11), st.text(min_size=1))
def test_mergekit_slices_are_the_kept_layers(removed, model):
    wanted = Plan(12, tuple(sorted(removed)), "layers")
    said = yaml.safe_load(to_mergekit(wanted, model))
    spans = [each["sources"][0]["layer_range"] for each in said["slices"]]
    assert "dtype" not in said, "else mergekit converts what it copies"
    assert {each["sources"][0]["model"] for each in said["slices"]} == {model}
    assert [layer for start, end in spans for layer in range(start, end)] == list(wanted.kept)
