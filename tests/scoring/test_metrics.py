"""Metrics against closed forms and naive re-computation from the papers' formulas."""

import math

import pytest
import torch

from shortstack.errors import DataError, InputError
from shortstack.scoring import METRICS, Scores
from shortstack.scoring.metrics import (
    angular_distance,
    block_influence,
    metric_named,
    metrics_named,
)


def test_block_influence_of_an_identity_a_reflection_and_a_rotation():
    x = torch.randn(7, 16, dtype=torch.float64)
    turned = torch.stack([-x[:, 1], x[:, 0]], dim=1)
    torch.testing.assert_close(block_influence(x, 3 * x), torch.zeros(7), atol=1e-6, rtol=0)
    torch.testing.assert_close(block_influence(x, -x), torch.full((7,), 2.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(block_influence(x[:, :2], turned), torch.ones(7), atol=1e-6, rtol=0)


def test_angular_distance_of_the_same_an_orthogonal_and_the_opposite_direction():
    x = torch.tensor([[1.0, 0.0]]).expand(3, 2)
    y = torch.tensor([[2.0, 0.0], [0.0, 5.0], [-1.0, 0.0]])
    torch.testing.assert_close(angular_distance(x, y), torch.tensor([0.0, 0.5, 1.0]))


def test_all_is_every_metric_of_layers_but_the_authors_variants():
    names = [metric.name for metric in metrics_named(["all"])]
    assert names == [name for name in METRICS if not name.endswith("-authors")]
    assert [metric.name for metric in metrics_named(["bi", "bi"])] == ["bi"]


WHOLE = Scores(3, {"ppl": (3.0, 1.0, 2.0)}, window=2, blocks={"ppl": (4.0, 5.0)}).to_dict()
BROKEN = {
    "empty": ({}, "'layers'"),
    "another depth": (WHOLE | {"layers": 7}, "7 numbers"),
    "a depth with a point": (WHOLE | {"layers": 3.0}, "a layer count"),
    "a list": (WHOLE | {"scores": []}, "no attribute"),
    "one number": (WHOLE | {"scores": {"ppl": 5}}, "not iterable"),
    "words": (WHOLE | {"scores": {"ppl": ["x"] * 3}}, "could not convert"),
    "no float": (WHOLE | {"scores": {"ppl": [10**400] * 3}}, "too large"),
    "below all": (WHOLE | {"scores": {"ppl": [-math.inf] * 3}}, "3 numbers for ppl"),
    "no scores": (WHOLE | {"scores": {}, "blocks": {}}, "at least one metric"),
    "too few": (WHOLE | {"scores": {"ppl": [1.0, 2.0]}}, "3 numbers for ppl"),
    "too few blocks": (WHOLE | {"blocks": {"ppl": [1.0]}}, "2 numbers for ppl of blocks of 2"),
    "blocks of none": (WHOLE | {"window": 0}, "blocks of 1 to 3 layers"),
    "blocks of no size": (WHOLE | {"window": None}, "blocks of 1 to 3 layers"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_scores_that_are_not_scores_are_refused(case):
    data, said = BROKEN[case]
    with pytest.raises(DataError, match=said):
        Scores.from_dict(data, where="scores.json")


def test_an_unknown_metric_is_answered_with_the_known_ones():
    with pytest.raises(InputError, match="random, reverse, magnitude-l1"):
        metric_named("banana")
    assert all(metric.formula and metric.paper for metric in METRICS.values())
