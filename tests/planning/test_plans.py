"""Plans: the amount asked for, the lowest scores, ties to the lower index, and nothing that does not exist."""

from __future__ import annotations

import itertools
import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from plans import plan
from shortstack.checkpoint import Sizes
from shortstack.errors import DataError, InputError, PlanError
from shortstack.machine.formats import show_layers
from shortstack.planning import Plan
from shortstack.planning.layer_sets import parse_drop, parse_layers
from shortstack.scoring import Scores


def scores(values, name="ppl") -> Scores:
    return Scores(len(values), {name: tuple(map(float, values))})


@given(st.integers(2, 200), st.integers(0, 9999))
def test_any_share_is_rounded_half_up_exactly(layers, hundredths):
    text = f"{hundredths // 100}.{hundredths % 100:02d}%"
    amount = (2 * hundredths * layers + 10_000) // 20_000  # floor(share + 1/2) in whole numbers
    if 0 < amount < layers:
        assert parse_drop(text, layers) == amount
        assert plan(layers, metric="reverse", drop=text).removed == tuple(range(layers - amount, layers))
    else:
        with pytest.raises(PlanError, match=f"between (1 and {layers - 1}|0% and 100%)"):
            parse_drop(text, layers)


@pytest.mark.parametrize(
    "drop",
    ["0", "0%", "120%", "100%", "8", "9", "-1", "1.5", "", "%", "lots", "1e1", pytest.param("9" * 5000, id="huge")],
)
def test_an_impossible_amount_is_refused(drop):
    with pytest.raises(PlanError, match="drop"):
        plan(8, drop=drop)


values = st.integers(2, 12).flatmap(lambda n: st.lists(st.integers(0, 4), min_size=n, max_size=n))  # few, so many ties


@given(values, st.data())
def test_the_lowest_scores_go_and_ties_to_the_lower_index(values, data):
    layers = len(values)
    first, last = data.draw(st.integers(0, 3)), data.draw(st.integers(0, 3))
    amount = data.draw(st.integers(1, layers - 1))
    allowed = [layer for layer in range(layers) if first <= layer < layers - last]
    options = {"drop": amount, "keep_first": first, "keep_last": last}
    if amount > len(allowed):
        for strategy in ("lowest", "block"):
            with pytest.raises(PlanError, match="kept"):
                plan(scores(values), strategy=strategy, **options)
        return

    def cost(removed: tuple[int, ...]) -> tuple[object, ...]:
        return sum(values[layer] for layer in removed), removed

    chosen = plan(scores(values), **options)
    assert chosen.removed == min(itertools.combinations(allowed, amount), key=cost)
    windows = [layers for layers in itertools.combinations(allowed, amount) if layers[-1] - layers[0] == amount - 1]
    blocked = plan(scores(values), strategy="block", **options)
    assert blocked.removed == min(windows, key=cost)
    for found in (chosen, blocked):
        assert len(found.removed) == amount
        assert sorted(found.removed + found.kept) == list(range(layers))
        assert list(found.kept) == sorted(found.kept)


@given(st.sets(st.integers(0, 30), min_size=1, max_size=30), st.permutations(range(31)))
def test_explicit_layers_are_removed_whatever_their_order(removed, order):
    text = ",".join(str(layer) for layer in order if layer in removed)
    assert set(plan(31, layers=text).removed) == removed
    assert set(parse_layers(show_layers(sorted(removed)))) == removed


@pytest.mark.parametrize(
    ("text", "layers"),
    [("22-24,3", (22, 23, 24, 3)), ("0", (0,)), (" 1 - 2 , 5", (1, 2, 5)), ("4-4", (4,))],
)
def test_ranges_are_inclusive(text, layers):
    assert parse_layers(text) == layers


@pytest.mark.parametrize(
    ("layers", "found"),
    [
        ("8", "layer 8"),
        ("0-9999999999", "'0-9999999999'"),
        ("3,3", "layer 3 twice"),
        ("0-7", "all 8 removed"),
        ("5-4", "'5-4'"),
        ("-1", "'-1'"),
        ("", "''"),
        ("1,,2", "'1,,2'"),
        ("x", "'x'"),
        ((), "none"),
        ((-1,), "layer -1"),
    ],
)
def test_layers_that_cannot_go_are_refused(layers, found):
    with pytest.raises(PlanError) as caught:
        plan(8, layers=layers)
    assert caught.value.found == found


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"layers": "1", "drop": "1"},
        {"layers": "1", "strategy": "block"},
        {"layers": "1", "keep_first": 2},
        {"layers": "6", "keep_last": 2},
        {"drop": "1", "metric": "ppl"},
        {"drop": "1", "metric": "nonsense"},
    ],
)
def test_options_that_contradict_each_other_are_refused(options):
    with pytest.raises(InputError):
        plan(8, **options)


def test_a_metric_that_was_not_scored_is_refused():
    both = Scores(3, {"bi": (1.0, 2.0, 3.0), "ppl": (3.0, 2.0, 1.0)})
    assert plan(both, drop=1, metric="bi").removed == (0,)
    with pytest.raises(InputError, match="bi, ppl"):
        plan(both, drop=1, metric="reverse")


sizes = st.integers(2, 10).flatmap(
    lambda n: st.builds(
        Sizes,
        *[st.lists(st.integers(1, 99), min_size=n, max_size=n).map(tuple)] * 2,
        *[st.integers(1, 99)] * 2,
    )
)


@given(sizes, st.data())
def test_a_plan_says_what_it_saves_and_comes_back_from_json(found, data):
    layers = len(found.layer_bytes)
    removed = data.draw(st.lists(st.integers(0, layers - 1), min_size=1, max_size=layers - 1, unique=True))
    bare = plan(layers, layers=removed)
    sized = bare.sized(found)
    for change, per_layer in ((sized.parameters, found.layer_parameters), (sized.bytes, found.layer_bytes)):
        assert change.before - change.after == sum(per_layer[layer] for layer in removed)
    for each in (bare, sized):
        assert Plan.from_dict(json.loads(json.dumps(each.to_dict())), where="plan.json") == each


def test_a_plan_is_not_sized_by_another_model():
    with pytest.raises(PlanError, match="7 layers"):
        plan(8, drop=1).sized(Sizes((1,) * 7, (1,) * 7, 1, 1))
    sized = plan(8, drop=1).sized(Sizes((1,) * 8, (1,) * 8, 1, 1))
    assert sized.sized(Sizes((1,) * 8, (2,) * 8, 1, 2)).bytes.before == 18, "the same model in another type"
    with pytest.raises(PlanError, match="17 parameters, found a plan for a model of 9"):
        sized.sized(Sizes((2,) * 8, (1,) * 8, 1, 1))


def test_extra_heads_count_before_a_cut_and_not_after():
    sized = plan(2, layers="1").sized(Sizes((10, 20), (40, 80), 3, 12, 5, 7))
    assert (sized.parameters.before, sized.parameters.after) == (38, 13)
    assert (sized.bytes.before, sized.bytes.after) == (139, 52)


GOOD_PLAN = plan(8, layers="2,5").to_dict()


@pytest.mark.parametrize(
    "changes",
    [
        {"layers": "8"},
        {"layers": 8.0},
        {"layers": None},
        {"layers": 5},
        {"removed": "25"},
        {"removed": [math.nan]},
        {"removed": ["2"]},
        {"removed": None},
        {"removed": []},
        {"removed": [2, 2]},
        {"removed": [8]},
        {"bytes": 5},
        {"bytes": {"before": 1}},
        {"parameters": {"before": 1, "after": 1, "more": 1}},
    ],
)
def test_a_malformed_plan_is_refused(changes):
    with pytest.raises((DataError, PlanError), match=r"plan\.json"):
        Plan.from_dict(GOOD_PLAN | changes, where="plan.json")


@pytest.mark.parametrize("key", ["layers", "removed", "strategy"])
def test_a_plan_without_a_key_is_refused(key):
    with pytest.raises(DataError, match=key):
        Plan.from_dict({name: value for name, value in GOOD_PLAN.items() if name != key}, where="plan.json")


GOOD_SIZES = {"layer_parameters": [1, 2], "layer_bytes": [3, 4], "other_parameters": 5, "other_bytes": 6}


@pytest.mark.parametrize(
    "changes",
    [
        {"layer_bytes": [3]},
        {"layer_bytes": 3},
        {"layer_parameters": ["1", "2"]},
        {"other_bytes": None},
        {"other_bytes": 0},
    ],
)
def test_malformed_sizes_are_refused(changes):
    assert Sizes.from_dict(GOOD_SIZES, where="s") == Sizes((1, 2), (3, 4), 5, 6)
    with pytest.raises(DataError, match=r"scores\.json"):
        Sizes.from_dict(GOOD_SIZES | changes, where="scores.json")


def test_without_a_named_metric_measured_loss_decides_and_else_the_first_scored():
    scores = Scores(3, {"random": (0.0, 1.0, 2.0), "ppl": (3.0, 1.0, 2.0)})
    assert plan(scores, drop=1).removed == (1,)
    assert plan(Scores(3, {"bi": (0.3, 0.2, 0.1), "random": (0.0, 1.0, 2.0)}), drop=1).removed == (2,)
