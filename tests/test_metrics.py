"""Metrics against closed forms and naive re-computation from the papers' formulas."""

import math

import pytest
import torch

from shortstack.errors import DataError, InputError
from shortstack.metrics import METRICS, Scores, block_influence, metric_named, perplexity, random_order, reverse_order


def test_block_influence_of_an_identity_a_reflection_and_a_rotation():
    x = torch.randn(7, 16, dtype=torch.float64)
    turned = torch.stack([-x[:, 1], x[:, 0]], dim=1)
    torch.testing.assert_close(block_influence(x, 3 * x), torch.zeros(7), atol=1e-6, rtol=0)
    torch.testing.assert_close(block_influence(x, -x), torch.full((7,), 2.0), atol=1e-6, rtol=0)
    torch.testing.assert_close(block_influence(x[:, :2], turned), torch.ones(7), atol=1e-6, rtol=0)


def test_block_influence_equals_torch_and_is_computed_in_fp32():
    x, y = torch.randn(50, 32).bfloat16(), torch.randn(50, 32).bfloat16()
    expected = 1 - torch.nn.functional.cosine_similarity(x.float(), y.float(), dim=-1)
    found = block_influence(x, y)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, expected, atol=1e-6, rtol=0)


def test_one_token_of_huge_norm_does_not_own_the_mean():
    """The reference code's single cosine over the flattened tensor sees only the sink token; the paper's does not."""
    before, after = torch.randn(20, 8), torch.randn(20, 8)
    before[0] = after[0] = 1500.0
    assert block_influence(before, after).mean() > 0.5
    assert 1 - torch.nn.functional.cosine_similarity(before.flatten(), after.flatten(), dim=0) < 1e-3


def test_reverse_and_random_orders():
    assert Scores(4, {"reverse": tuple(reverse_order(4, 0))}).order("reverse") == (3, 2, 1, 0)
    assert sorted(random_order(9, 1)) == list(range(9))
    assert random_order(9, 1) == random_order(9, 1) != random_order(9, 2)


def test_perplexity_is_the_exponential_and_overflows_to_infinity():
    assert perplexity(math.log(12.5)) == pytest.approx(12.5)
    assert perplexity(1e4) == math.inf


def test_ties_go_to_the_lower_index():
    assert Scores(4, {"bi": (0.5, 0.1, 0.1, 0.5)}).order("bi") == (1, 2, 0, 3)


def test_scores_round_trip_through_json(tmp_path):
    import json

    scores = Scores(3, {"ppl": (3.0, 1.0, 2.0)}, {"source": "pydoc"}, {"source": "demo"}, 2.5, 1.0, 10)
    scores.save(tmp_path / "scores.json")
    data = json.loads((tmp_path / "scores.json").read_text())
    assert data["order"] == {"ppl": [1, 2, 0]}
    assert Scores.from_dict(data, where="x") == scores


@pytest.mark.parametrize("broken", [{}, {"layers": 3}, {"layers": 3, "scores": {"ppl": [1.0, float("nan"), 2.0]}}])
def test_scores_that_are_not_scores_are_refused(broken):
    whole = Scores(3, {"ppl": (3.0, 1.0, 2.0)}).to_dict()
    with pytest.raises(DataError):
        Scores.from_dict(broken if not broken.get("scores") else whole | broken, where="scores.json")


def test_an_unknown_metric_is_answered_with_the_known_ones():
    with pytest.raises(InputError, match="random, reverse, bi, ppl"):
        metric_named("banana")
    assert all(metric.formula and metric.paper for metric in METRICS.values())
