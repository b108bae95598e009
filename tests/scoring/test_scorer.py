"""score() against naive loops over transformers, one model copy per layer; and what its results must not depend on."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file, save_file

import naive
import shortstack.decoder.batching
import shortstack.decoder.decoder
from shortstack.checkpoint import Checkpoint
from shortstack.data import Tokens
from shortstack.errors import CheckpointError, InputError, ShortstackError
from shortstack.machine.device import Compute
from shortstack.scoring import METRICS, score
from zoo import make, tiny

IDS = torch.randint(3, 90, (6, 10), generator=torch.Generator().manual_seed(3))
TOKENS = Tokens(IDS, "made", False, 0)


WALKED = {name for name in METRICS if METRICS[name].feed != "layers"}


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2", "mixtral"])
def test_every_metric_equals_its_naive_form(model_type):
    checkpoint = Checkpoint.open(tiny(model_type))
    scores = score(checkpoint, TOKENS, metrics=list(naive.METRICS))
    for name in naive.METRICS:
        assert scores.scores[name] == pytest.approx(
            naive.METRICS[name](checkpoint.directory, IDS), rel=2e-5, abs=1e-6
        ), name
    assert scores.base_loss == pytest.approx(naive.losses(checkpoint.directory, IDS, [[]])[0], rel=1e-5)


def test_every_metric_that_is_computed_has_a_naive_form():
    assert set(naive.METRICS) == WALKED
    assert set(naive.WINDOWS) == {name for name in METRICS if METRICS[name].windows}


@pytest.mark.parametrize(
    ("model_type", "also", "size"),
    [
        ("llama", [], 7),
        ("llama", ["taylor"], 3),
        ("gemma3_text", [], 1),
    ],  # with gradients all that entered layers is kept
)
def test_every_window_equals_its_naive_form(model_type, size, also):
    checkpoint = Checkpoint.open(tiny(model_type))
    scores = score(checkpoint, TOKENS, metrics=[*naive.WINDOWS, *also], window=size)
    assert scores.window == size
    for name, naively in naive.WINDOWS.items():
        found = scores.blocks[name]
        assert found == pytest.approx(naively(checkpoint.directory, IDS, size), rel=2e-5, abs=1e-6), name


@pytest.mark.parametrize("window", [0, 8])
def test_a_size_that_the_model_has_not_is_refused(window):
    with pytest.raises(InputError, match=f"1 to 7 of the model's 8 layers, found {window}"):
        score(Checkpoint.open(tiny("llama")), TOKENS, metrics=["ppl"], window=window)


def test_neither_turns_of_few_batches_nor_another_order_change_anything(monkeypatch):
    checkpoint = Checkpoint.open(tiny("llama"))
    names = sorted(WALKED)
    whole = score(checkpoint, TOKENS, metrics=names, window=3)
    monkeypatch.setattr(shortstack.decoder.batching, "BATCH_TOKENS", 20)
    monkeypatch.setattr(shortstack.decoder.decoder, "STREAM_BYTES", 1)
    turned = score(checkpoint, replace(TOKENS, ids=IDS.flip(0)), metrics=names, window=3)
    for name in names:
        assert turned.scores[name] == pytest.approx(whole.scores[name], rel=1e-5, abs=1e-7)
        assert turned.order(name) == whole.order(name)
    for name, values in whole.blocks.items():
        assert turned.blocks[name] == pytest.approx(values, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("model_type", ["gemma3", "mixtral"])
def test_streaming_changes_nothing(model_type):
    checkpoint = Checkpoint.open(tiny(model_type))
    here, streamed = (
        score(checkpoint, TOKENS, metrics=sorted(WALKED), window=2, compute=Compute(stream=stream))
        for stream in (False, True)
    )
    assert streamed.scores == here.scores
    assert streamed.blocks == here.blocks


def test_each_metric_alone_is_what_it_is_in_company():
    checkpoint = Checkpoint.open(tiny("llama"))
    together = score(checkpoint, TOKENS, metrics=METRICS)
    for name in ("magnitude-l1", "bi", "kl", "taylor", "ppl"):  # one of each feed
        assert score(checkpoint, TOKENS, metrics=[name]).scores[name] == together.scores[name]


def test_a_nan_is_an_error_that_names_the_layer(monkeypatch):
    broken = replace(METRICS["bi"], function=lambda before, after: before[..., 0] * math.nan)
    monkeypatch.setattr(shortstack.scoring.metrics, "METRICS", {**METRICS, "bi": broken})
    with pytest.raises(ShortstackError, match=r"metric bi, layer 0.*NaN"):
        score(Checkpoint.open(tiny("llama")), TOKENS, metrics=["bi"])


def test_metrics_that_need_tokens_say_so_and_the_others_do_not_load_the_model(monkeypatch):
    checkpoint = Checkpoint.open(tiny("llama"))
    with pytest.raises(InputError, match="calibration text"):
        score(checkpoint, metrics=["ppl"])
    monkeypatch.setattr(Checkpoint, "model", lambda *a, **k: pytest.fail("loaded"))
    assert score(checkpoint, metrics=["reverse", "random"]).tokens is None


@pytest.mark.parametrize("metric", ["magnitude-l1", "magnitude-l2-authors"])
def test_codes_in_one_byte_are_not_weighed_without_their_scales(metric, tmp_path):
    source = make("llama", tmp_path / "model")
    file = source / "model.safetensors"
    stored = load_file(file)
    name = "model.layers.3.mlp.up_proj.weight"
    stored[name] = stored[name].to(torch.float8_e4m3fn)
    save_file(stored, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=f"expected 16 or 32 bit floating point weights.*{name} in F8_E4M3"):
        score(Checkpoint.open(source), metrics=[metric], progress=lambda *_, **__: pytest.fail("something is weighed"))
