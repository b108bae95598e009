"""score() and depth_curve() against naive loops over transformers, one model copy per layer or depth; what results must not
depend on; and metrics against closed forms.
"""

import math
from contextlib import nullcontext
from dataclasses import replace

import architectures
import pytest
import torch
from safetensors.torch import load_file, save_file

import naive
import shortstack.decoder.batching
import shortstack.decoder.decoder
from shortstack.checkpoint import Checkpoint
from shortstack.data import Tokens
from shortstack.decoder import Decoder
from shortstack.errors import ArchitectureError, CheckpointError, DataError, InputError
from shortstack.machine.device import Compute
from shortstack.scoring import METRICS, DepthCurve, Scores, depth_curve, score
from shortstack.scoring.depths import Depth
from shortstack.scoring.measurement import Measurement, check_differentiable
from shortstack.scoring.metrics import metrics_named
from zoo import make, tiny

IDS = torch.randint(3, 90, (6, 10), generator=torch.Generator().manual_seed(3))
TOKENS = Tokens.given(IDS)
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
    with pytest.raises(InputError, match="window"):
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


def test_metrics_of_the_layer_count_do_not_load_the_model(monkeypatch):
    monkeypatch.setattr(Checkpoint, "model", lambda *a, **k: pytest.fail("loaded"))
    assert score(tiny("llama"), metrics=["reverse", "random"]).tokens is None


def test_stored_causal_masks_are_no_weights(tmp_path):
    file = make("gpt2", tmp_path / "model") / "model.safetensors"
    plain, stored = score(tmp_path / "model", metrics="magnitude-l1"), load_file(file)
    (name,) = [name for name in stored if name.endswith("h.3.attn.c_attn.weight")]
    stored[name.replace("c_attn.weight", "bias")] = torch.ones(64, 64).tril()[None, None]
    save_file(stored, file, metadata={"format": "pt"})
    assert score(tmp_path / "model", metrics="magnitude-l1").scores == plain.scores


@pytest.mark.parametrize("weight", [None, torch.zeros(4, 4, dtype=torch.uint8)], ids=["in buffers", "in codes"])
def test_gradients_of_quantised_weights_are_refused(weight):
    decoder = Decoder.load(Checkpoint.open(tiny("llama")), dtype=torch.float32)
    for linear in [*decoder.layers[5].modules()]:
        if isinstance(linear, torch.nn.Linear):
            linear.weight = weight if weight is None else torch.nn.Parameter(weight, requires_grad=False)
    with pytest.raises(ArchitectureError, match="layer 5"):
        check_differentiable(decoder)


@pytest.mark.parametrize("name", ["deepseek_v4", "gemma3n_text"])
def test_models_of_several_states_per_token_are_scored_or_refused(name, tmp_path):
    checkpoint = Checkpoint.open(architectures.make(name, tmp_path / "model"))
    with nullcontext() if name == "deepseek_v4" else pytest.raises(ArchitectureError):
        assert all(map(math.isfinite, score(checkpoint, TOKENS, metrics=["bi"]).scores["bi"]))


def test_gradients_in_float16_do_not_underflow(monkeypatch):
    """Of two batches one says that it is a part of a million tokens, as if the text were that long."""
    checkpoint = Checkpoint.open(tiny("llama"))
    half = score(checkpoint, TOKENS, metrics=["taylor"], compute=Compute(dtype="float16"))
    monkeypatch.setattr(Measurement, "_predicted", lambda _self, _kind: 1e6)
    many = score(checkpoint, TOKENS, metrics=["taylor"], compute=Compute(dtype="float16"))
    counted = IDS.numel() - len(IDS)
    scaled = [value * 1e6 / counted for value in many.scores["taylor"]]
    assert scaled == pytest.approx(half.scores["taylor"], rel=1e-3)


def test_codes_in_one_byte_are_not_weighed(tmp_path):
    file = make("llama", tmp_path / "model") / "model.safetensors"
    stored = load_file(file)
    name = "model.layers.3.mlp.up_proj.weight"
    stored[name] = stored[name].to(torch.float8_e4m3fn)
    save_file(stored, file, metadata={"format": "pt"})
    with pytest.raises(CheckpointError) as error:
        score(tmp_path / "model", metrics="magnitude-l1", progress=lambda *_, **__: pytest.fail("something is weighed"))
    assert error.value.option == "metric"


def test_metrics_are_named_once_and_all_is_every_one():
    assert [metric.name for metric in metrics_named(["all"])] == list(METRICS)
    assert [metric.name for metric in metrics_named("bi, ppl,bi")] == ["bi", "ppl"]
    for names in ([5], "none", []):
        with pytest.raises(InputError) as error:
            metrics_named(names)
        assert error.value.option == "metric"


WHOLE = Scores(3, {"ppl": (3.0, 1.0, 2.0)}, window=2, blocks={"ppl": (4.0, 5.0)}).to_dict()
BROKEN = [
    *({"scores": table} for table in ([], {}, {"ppl": 5}, {"ppl": ["x"] * 3}, {"ppl": [10**400] * 3})),
    *({"scores": {"ppl": row}} for row in ([-math.inf] * 3, [math.nan] * 3, [1.0, 2.0])),
    {"layers": 7},
    {"layers": 3.5},
    {"blocks": {"ppl": [1.0]}},
    {"window": 0},
    {"window": None},
]


@pytest.mark.parametrize("changes", BROKEN, ids=str)
def test_malformed_scores_are_refused(changes):
    assert Scores.from_dict(WHOLE, where="scores.json").to_dict() == WHOLE
    with pytest.raises(DataError):
        Scores.from_dict(WHOLE | changes, where="scores.json")
    with pytest.raises(DataError):
        Scores.from_dict({}, where="scores.json")


@pytest.mark.parametrize(("model_type", "stream"), [("llama", False), ("gemma2", True), ("mixtral", False)])
def test_depth_curve_equals_pruned_models(model_type, stream):
    checkpoint = Checkpoint.open(tiny(model_type))
    found = depth_curve(checkpoint, TOKENS, compute=Compute(stream=stream))
    assert [depth.layers for depth in found.depths] == [8, 7, 6, 5, 4, 3, 2, 1]
    tails = [list(range(kept, 8)) for kept in range(8, 0, -1)]
    losses = naive.losses(checkpoint.directory, IDS, tails)
    assert [depth.loss for depth in found.depths] == pytest.approx(losses, rel=2e-5)
    assert [depth.perplexity for depth in found.depths] == pytest.approx([math.exp(loss) for loss in losses], rel=1e-4)
    kls = naive.divergences(checkpoint.directory, IDS, tails)
    assert [depth.kl for depth in found.depths] == pytest.approx(kls, rel=1e-4, abs=1e-6)


def test_depth_curve_runs_each_layer_once(monkeypatch):
    seen, calls, loaded = [], [0] * 8, Checkpoint.model

    def counted(self, **options):
        model = loaded(self, **options)
        for number, layer in enumerate(model.model.layers):
            layer.self_attn.register_forward_hook(
                lambda *_, number=number: calls.__setitem__(number, calls[number] + 1)
            )
        return model

    monkeypatch.setattr(Checkpoint, "model", counted)
    depth_curve(
        Checkpoint.open(tiny("llama")), TOKENS, progress=lambda _stage, done, total, **_: seen.append((done, total))
    )
    head = (seen[-1][1] - 8) / (8 + 1)
    assert head == int(head), "eight layers, a head for each depth and one for the reference"
    assert seen[-1][0] == seen[-1][1]
    assert calls == [2] * 8, "once to learn how layers hand on, once to walk"


def test_removable_ends_at_the_first_depth_that_loses_too_much():
    losses = (2.0, 2.1, 2.0 + math.log(1.5) - 1e-9, 2.2, 2.0 + math.log(1.5) + 1e-9, 2.0)
    curve = DepthCurve(tuple(Depth(6 - gone, loss, 0.0, 0.0) for gone, loss in enumerate(losses)))
    assert curve.removable == 3
    assert DepthCurve(curve.depths[:4]).removable == 3
    assert DepthCurve(curve.depths[:1]).removable == 0
