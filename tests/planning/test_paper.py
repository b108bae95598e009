"""The layers arXiv 2411.15558 and its code remove. The models are large: SHORTSTACK_PAPER_MODELS is a folder of them."""

import os
from pathlib import Path

import pytest

from plans import plan
from shortstack.checkpoint import Checkpoint
from shortstack.scoring import score

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
