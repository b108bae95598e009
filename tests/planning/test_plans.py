"""Plans: the amount asked for, the lowest scores, ties to the lower index, nothing that does not exist; as JSON and YAML."""

from __future__ import annotations

import itertools
import json
import math
import os
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from plans import plan
from shortstack.checkpoint import Checkpoint, Sizes
from shortstack.errors import DataError, PlanError
from shortstack.machine.formats import show_layers
from shortstack.planning import Plan, plan_of
from shortstack.planning.layer_sets import parse_drop, parse_layers
from shortstack.planning.mergekit import to_mergekit
from shortstack.scoring import Scores, score


def scores(values) -> Scores:
    return Scores(len(values), {"ppl": tuple(map(float, values))})


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
    assert set(parse_layers(show_layers(sorted(removed)).replace("-", " - "))) == removed


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
        (3, "3"),
    ],
)
def test_layers_that_cannot_go_are_refused(layers, found):
    with pytest.raises(PlanError) as caught:
        plan(8, layers=layers)
    assert caught.value.found == found


@pytest.mark.parametrize("form", [list, tuple, set, frozenset])
def test_layers_are_named_in_any_collection(form):
    assert plan_of(form([5, 2]), 8).removed == (2, 5)


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


MISSING = object()
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
        {"compared": {"tail": "0.1"}},
        {"compared": [0.1]},
        *({key: MISSING} for key in ("layers", "removed", "strategy")),
    ],
)
def test_a_malformed_plan_is_refused(changes):
    data = {key: value for key, value in (GOOD_PLAN | changes).items() if value is not MISSING}
    with pytest.raises((DataError, PlanError), match=r"plan\.json"):
        Plan.from_dict(data, where="plan.json")


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


@given(st.sets(st.integers(0, 11), min_size=1, max_size=11), st.text(min_size=1))
def test_mergekit_slices_are_the_kept_layers(removed, model):
    wanted = Plan(12, tuple(sorted(removed)), "layers")
    said = yaml.safe_load(to_mergekit(wanted, model))
    spans = [each["sources"][0]["layer_range"] for each in said["slices"]]
    assert "dtype" not in said, "else mergekit converts what it copies"
    assert {each["sources"][0]["model"] for each in said["slices"]} == {model}
    assert [layer for start, end in spans for layer in range(start, end)] == list(wanted.kept)


# The layers that arXiv 2411.15558 and its code remove. The models are large: SHORTSTACK_PAPER_MODELS is a folder of them.
MODELS = Path(os.environ.get("SHORTSTACK_PAPER_MODELS", "none"))
# The lists in prune_llm.py, lines 212 to 215, of the authors' repository (yaolu-zjut/Navigation_LLM_layer_pruning).
BY_WEIGHTS = [
    ("Qwen1.5-7B", "magnitude-l1-authors", (1, 3, 4, 9, 10, 11, 12, 14)),
    ("Qwen1.5-7B", "magnitude-l2-authors", (1, 3, 4, 5, 6, 7, 9, 10)),
    ("vicuna-7b-v1.5", "magnitude-l1-authors", (0, 1, 2, 3, 6, 7, 8, 11)),
    ("vicuna-7b-v1.5", "magnitude-l2-authors", (0, 1, 3, 6, 7, 8, 9, 11)),
]


@pytest.mark.parametrize(("model", "metric", "removed"), BY_WEIGHTS)
def test_the_authors_lists_by_weight(model, metric, removed):
    if not (MODELS / model).is_dir():
        pytest.skip(f"no {model} in the folder that SHORTSTACK_PAPER_MODELS names")
    scores = score(Checkpoint.open(MODELS / model), metrics=[metric])
    assert plan(scores, metric=metric, drop=8).removed == removed


@pytest.mark.parametrize(
    ("layers", "drop", "removed"),
    [
        (32, 8, "5 6 10 11 15 22 25 26"),
        (32, 16, "5 6 9 10 11 12 14 15 16 19 20 22 24 25 26 28"),
        (26, 6, "6 9 12 16 19 25"),
    ],
)
def test_the_authors_random_lists(layers, drop, removed):
    found = plan(layers, metric="random-authors", drop=drop, seed=42).removed
    assert found == tuple(map(int, removed.split()))
