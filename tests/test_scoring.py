"""score() against naive loops over transformers, one model copy per layer; and what its results must not depend on."""

import copy
import math
from dataclasses import replace

import pytest
import torch

import shortstack.scoring
from shortstack.checkpoint import Checkpoint
from shortstack.errors import InputError, ShortstackError
from shortstack.metrics import METRICS
from shortstack.scoring import score
from shortstack.tokens import Tokens
from zoo import pass_over, tiny

IDS = torch.randint(3, 90, (6, 10), generator=torch.Generator().manual_seed(3))
TOKENS = Tokens(IDS, "made", False, 0)


@torch.no_grad()
def whole_loss(checkpoint: Checkpoint) -> float:
    return float(checkpoint.model(dtype=torch.float32)(input_ids=IDS, labels=IDS, use_cache=False).loss)


@torch.no_grad()
def naive_losses(checkpoint: Checkpoint) -> list[float]:
    losses = []
    for layer in range(8):
        model = copy.deepcopy(checkpoint.model(dtype=torch.float32))
        pass_over(model, checkpoint.anatomy.layers_path, [layer])
        losses.append(float(model(input_ids=IDS, labels=IDS, use_cache=False).loss))
    return losses


@torch.no_grad()
def naive_influence(checkpoint: Checkpoint) -> list[float]:
    model, values = checkpoint.model(dtype=torch.float32), []

    def hook(_module, args, output):
        output = output[0] if isinstance(output, tuple) else output
        values.append(float((1 - torch.nn.functional.cosine_similarity(args[0], output, dim=-1)).mean()))

    for layer in model.get_submodule(checkpoint.anatomy.layers_path):
        layer.register_forward_hook(hook)
    model(input_ids=IDS, use_cache=False)
    return values


@pytest.mark.parametrize("model_type", ["llama", "qwen2", "gemma2", "gpt2"])
def test_all_metrics_equal_their_naive_forms(model_type):
    checkpoint = Checkpoint.open(tiny(model_type))
    scores = score(checkpoint, TOKENS, metrics=["all"])
    assert set(scores.scores) == set(METRICS)
    assert scores.scores["ppl"] == pytest.approx([math.exp(loss) for loss in naive_losses(checkpoint)], rel=1e-5)
    assert scores.scores["bi"] == pytest.approx(naive_influence(checkpoint), abs=1e-6)
    assert scores.base_loss == pytest.approx(whole_loss(checkpoint), rel=1e-5)


def test_each_metric_alone_is_what_it_is_in_company():
    checkpoint = Checkpoint.open(tiny("llama"))
    together = score(checkpoint, TOKENS, metrics=["all"])
    for name in METRICS:
        assert score(checkpoint, TOKENS, metrics=[name]).scores[name] == together.scores[name]


def test_scores_do_not_depend_on_batch_size_or_order(monkeypatch):
    checkpoint = Checkpoint.open(tiny("qwen3"))
    whole = score(checkpoint, TOKENS, metrics=["bi", "ppl"])
    monkeypatch.setattr(shortstack.scoring, "BATCH_TOKENS", 10)
    single = score(checkpoint, replace(TOKENS, ids=IDS.flip(0)), metrics=["bi", "ppl"])
    for name in ("bi", "ppl"):
        assert single.scores[name] == pytest.approx(whole.scores[name], rel=1e-6, abs=1e-7)
        assert single.order(name) == whole.order(name)


def test_progress_ends_at_its_total_and_never_goes_back():
    seen = []
    score(
        Checkpoint.open(tiny("llama")),
        TOKENS,
        metrics=["ppl"],
        progress=lambda _stage, done, total: seen.append((done, total)),
    )
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)


def test_a_nan_is_an_error_that_names_the_layer(monkeypatch):
    broken = replace(METRICS["bi"], function=lambda before, after: before[..., 0] * math.nan)
    monkeypatch.setattr(shortstack.metrics, "METRICS", {**METRICS, "bi": broken})
    with pytest.raises(ShortstackError, match=r"metric bi, layer 0.*NaN"):
        score(Checkpoint.open(tiny("llama")), TOKENS, metrics=["bi"])


def test_metrics_that_need_tokens_say_so_and_the_others_do_not_load_the_model(monkeypatch):
    checkpoint = Checkpoint.open(tiny("llama"))
    with pytest.raises(InputError, match="calibration text"):
        score(checkpoint, metrics=["ppl"])
    monkeypatch.setattr(Checkpoint, "model", lambda *a, **k: pytest.fail("loaded"))
    assert score(checkpoint, metrics=["reverse", "random"]).tokens is None
