"""select_layers() on a model: its scores, other models' scores, and the nearest exact cut, against trying every cut."""

from __future__ import annotations

import itertools
import shutil

import architectures
import pytest
from safetensors.torch import load_file, save_file

from plans import plan
from shortstack.architecture.anatomy import shortened
from shortstack.architecture.selfcheck import check_cut
from shortstack.checkpoint import Checkpoint
from shortstack.data import Text
from shortstack.errors import ArchitectureError, PlanError
from shortstack.machine.device import Compute
from shortstack.planning import Selection, select, select_layers
from shortstack.planning.exactness import nearest_exact
from shortstack.pruning import prune
from shortstack.scoring import score
from zoo import speaking, tiny

TEXT, FLOAT32 = Text("pydoc", samples=8, length=16), Compute(dtype="float32")


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return Checkpoint.open(speaking(tmp_path_factory.mktemp("model") / "model"))


def test_a_selected_block_is_the_lowest_of_the_measured_ones(model):
    scores = score(model, TEXT, metrics=["angular"], window=3, compute=FLOAT32)
    found = select_layers(model, TEXT, metric="angular", drop=3, strategy="block", compute=FLOAT32)
    first = min(range(6), key=scores.blocks["angular"].__getitem__)
    assert found.removed == (first, first + 1, first + 2)
    assert found.strategy == "block angular, measured"
    assert found.bytes.before == model.weight_bytes


def test_given_scores_are_used_and_carried_by_the_plan(model):
    scores = score(model, TEXT, metrics=["bi", "ppl"], compute=FLOAT32)
    found = select_layers(model, metric="bi", drop=3, scores=scores)
    assert found.scores is scores
    assert found.removed == tuple(sorted(scores.order("bi")[:3]))
    again = select_layers(model.directory, TEXT, metric="bi", drop=3, compute=FLOAT32)
    assert (again.removed, again.scores.scores["bi"]) == (found.removed, scores.scores["bi"])
    assert select_layers(scores, metric="bi", drop=3) == found


def test_scores_and_plans_of_other_weights_are_refused(model, tmp_path):
    """One matrix differs; the number of layers does not."""
    scores = score(model, metrics=["magnitude-l1"])
    by_weights = select_layers(model, metric="magnitude-l1", drop=2, scores=scores)
    by_number = select_layers(model, metric="reverse", drop=2)
    other = tmp_path / "other"
    shutil.copytree(model.directory, other)
    weights = load_file(other / "model.safetensors")
    weights["model.layers.3.mlp.up_proj.weight"] += 1
    save_file(weights, other / "model.safetensors", {"format": "pt"})
    with pytest.raises(PlanError) as error:
        select_layers(other, metric="magnitude-l1", drop=2, scores=scores)
    assert error.value.option == "scores"
    with pytest.raises(PlanError) as error:
        prune(other, by_weights, tmp_path / "out")
    assert error.value.option == "plan"
    assert not (tmp_path / "out").exists()
    assert prune(other, by_number, tmp_path / "out").anatomy.layers == 6, "any model's last two layers"
    assert prune(model, by_weights, tmp_path / "cut").record["plan"]["scores"]["scores"] == scores.to_dict()["scores"]


@pytest.mark.parametrize("options", [{"target_params": 3}, {"target_size": 3}])
def test_a_target_becomes_a_count(model, options):
    (goal,) = options
    parameters, nbytes = model.sizes.of(range(5))
    text = str(parameters) if goal == "target_params" else f"{nbytes}B"
    assert select_layers(model, metric="reverse", **{goal: text}).removed == (5, 6, 7)
    found = select_layers(model, metric="reverse", strategy="block", **{goal: text})
    assert found.removed == (5, 6, 7)
    with pytest.raises(PlanError):
        select_layers(model, metric="reverse", drop=2, keep_first=4, keep_last=3)


@pytest.mark.parametrize(
    ("options", "allowed", "refused"),
    [
        ({"drop": 2, "keep_first": 1}, {3, 5}, {0, 5}),
        ({"drop": 2, "keep_last": 2}, {3, 5}, {3, 6}),
        ({"drop": 2, "strategy": "block"}, {3, 4}, {3, 5}),
        ({"target_params": "{}"}, {6, 7}, {6}),
    ],
)
def test_a_moved_cut_keeps_what_was_asked_for(options, allowed, refused, model, monkeypatch):
    asked = []

    def nowhere_else(_checkpoint, plan, _is_exact, *, allowed, progress):
        asked.append(allowed)
        return plan

    monkeypatch.setattr("shortstack.planning.exactness.nearest_exact", nowhere_else)
    parameters, _ = model.sizes.of(range(6))
    options = {key: value.format(parameters) if isinstance(value, str) else value for key, value in options.items()}
    select(model, Selection(metric="reverse", **options))
    assert asked[0](allowed)
    assert not asked[0](refused)


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
    found = nearest_exact(checkpoint, plan(8, layers=wanted))
    possible = [cut for cut in itertools.combinations(range(8), 2) if exact(checkpoint, cut)]
    assert found.removed in possible
    assert len({*found.removed} ^ {*wanted}) == min(len({*cut} ^ {*wanted}) for cut in possible)
    assert found.wanted == (None if found.removed == wanted else wanted)
    if found.wanted:
        with pytest.raises(ArchitectureError):
            select_layers(checkpoint, layers=wanted)


def test_a_plan_is_moved_only_to_what_is_allowed(tmp_path):
    checkpoint = Checkpoint.open(architectures.make("jamba", tmp_path / "source"))
    cut = plan(8, layers=(1, 4))
    free = nearest_exact(checkpoint, cut).removed
    found = nearest_exact(checkpoint, cut, allowed=lambda cut: max(cut) - min(cut) == 1).removed
    assert free[1] - free[0] > 1
    assert found[1] - found[0] == 1
    assert exact(checkpoint, found)
    assert nearest_exact(checkpoint, cut, allowed=lambda _cut: False) is None


def test_a_random_metric_follows_the_seed():
    drawn = {select_layers(tiny("llama"), metric="random", drop=4, compute=Compute(seed=n)).removed for n in range(9)}
    assert len(drawn) > 4
