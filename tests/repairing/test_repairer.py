"""Repair against least squares on hidden states taken by hooks, and against what the written model then does."""

import math
from dataclasses import replace

import architectures
import pytest
import torch
from least_squares import best, left, solved, weighted
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

import shortstack.repairing.fit
import shortstack.repairing.repairer
from shortstack.checkpoint import Checkpoint
from shortstack.data import Tokens
from shortstack.decoder import Decoder
from shortstack.errors import ArchitectureError, CheckpointError, DataError
from shortstack.machine.device import Compute
from shortstack.pruning import prune, verify
from shortstack.repairing.fit import RIDGES
from shortstack.repairing.fold_points import find_fold_points
from shortstack.repairing.repairer import Repair, refit
from shortstack.repairing.ridge import ChannelRegression, MatrixRegression, ScaleRegression
from zoo import pass_over, tiny

IDS = torch.randint(3, 90, (64, 24), generator=torch.Generator().manual_seed(3))
TOKENS = Tokens(IDS, "made", False, 0)
JUDGING = torch.arange(64) % 8 == 7
SEEN = IDS[~JUDGING]
HELD_OUT = torch.arange(len(SEEN)) % 4 == 3  # of those
FLOAT32 = Compute(dtype="float32")

NORMS = [  # behind each block
    ("diagonal", "post_attention_layernorm", "pre_feedforward_layernorm"),
    ("diagonal", "post_feedforward_layernorm", ""),
]
FOLD_POINTS = {
    "llama": [("matrix", "self_attn.o_proj", "post_attention_layernorm"), ("matrix", "mlp.down_proj", "")],
    "gpt2": [("matrix", "attn.c_proj", "ln_2"), ("matrix", "mlp.c_proj", "")],
    "opt": [("matrix", "self_attn.out_proj", "final_layer_norm"), ("matrix", "fc2", "")],
    "phi": [("matrix", "mlp.fc2", "")],  # attention and feed-forward side by side
    "mamba": [("matrix", "mixer.out_proj", "")],
    "mixtral": [("matrix", "self_attn.o_proj", "post_attention_layernorm"), ("scalar", "mlp.experts.down_proj", "")],
    "gemma2": NORMS,
    "gemma3_text": NORMS,
    "olmo2": [("diagonal", "post_attention_layernorm", "mlp"), ("diagonal", "post_feedforward_layernorm", "")],
    "deepseek_v3": [
        ("matrix", "self_attn.o_proj", "post_attention_layernorm"),
        ("matrix", "mlp.shared_experts.down_proj", ""),
    ],
    "gpt_oss": [
        ("matrix", "self_attn.o_proj", "post_attention_layernorm")
    ],  # experts with biases, which a factor misses
    "jetmoe": [],  # experts in both blocks, and what each gives is gathered again
    "qwen4_exp": [],  # several streams, mixed again by every block
    "deepseek_v4": [],
}


QUIET = ("llama", "gpt2", "gemma2", "mixtral", "deepseek_v3")


@pytest.mark.parametrize(
    ("model_type", "dtype"),
    [*((name, torch.float32) for name in FOLD_POINTS), *((name, torch.bfloat16) for name in QUIET)],
)
def test_fold_points_of_each_architecture(model_type, dtype, tmp_path):
    """In 16 bits also of blocks that add next to nothing."""
    decoder = Decoder.load(Checkpoint.open(architectures.make(model_type, tmp_path / "model")), dtype=dtype)
    if dtype == torch.bfloat16:
        for weight in decoder.layers[3].parameters():
            weight.data *= 0.1 if weight.dim() > 1 else 1
    before = {name: weight.clone() for name, weight in decoder.model.state_dict().items()}
    found = find_fold_points(decoder, 3)
    assert [(point.kind, point.name, point.place) for point in found] == FOLD_POINTS[model_type]
    assert all(torch.equal(weight, before[name]) for name, weight in decoder.model.state_dict().items())


KINDS = {"matrix": MatrixRegression, "diagonal": ChannelRegression, "scalar": ScaleRegression}


@pytest.mark.parametrize(
    ("kind", "size"), [("matrix", 7), ("matrix", 30), ("matrix", 80), ("diagonal", 7), ("scalar", 7)]
)
def test_ridge_equals_least_squares(kind, size):
    """Fifty tokens: more than inputs, so that sums are kept from the first or from the second part on, and fewer."""
    torch.manual_seed(0)
    inputs, weights = torch.randn(50, size), torch.rand(50) + 0.1
    residuals = torch.randn(2, 50, 3 if kind == "matrix" else size)
    regression = KINDS[kind]()
    regression.add(inputs[:20], residuals[:, :20], weights[:20])
    regression.add(inputs[20:], residuals[:, 20:], weights[20:])
    found, root = regression.solve(0.1), weights.double().sqrt()[:, None]
    for number in range(2):
        x, r = inputs.double() * root, residuals[number].double() * root
        expected = solved(x, r, 0.1, kind)
        torch.testing.assert_close(found[number].view(expected.shape), expected, rtol=1e-5, atol=1e-7)
        error = left(x, r, expected, kind).square().sum() / r.square().sum()
        assert regression.errors(found)[number] == pytest.approx(float(error), rel=1e-5)


@pytest.mark.parametrize("size", [10, 200])
def test_ridge_chosen_on_a_sketch_is_the_best_on_all_channels(size):
    """Kept tokens of noise, and of what the inputs explain: a sketch of 64 of 150 channels tells them apart."""
    torch.manual_seed(0)
    inputs, explained = torch.randn(160, size), torch.randn(size, 150)
    residuals = torch.stack([torch.randn(160, 150), inputs @ explained])
    fitted, judged = MatrixRegression(), MatrixRegression()
    fitted.add(inputs[:120], residuals[:, :120], torch.ones(120))
    judged.add(inputs[120:], residuals[:, 120:], torch.ones(40))
    found = fitted.fitted(judged, RIDGES)
    for number, fit in enumerate(found):
        changes = {ridge: fitted.solve(ridge) for ridge in RIDGES}
        errors = {ridge: judged.errors(each)[number] for ridge, each in changes.items()}
        best = min(errors, key=errors.__getitem__)
        assert fit.ridge == best
        torch.testing.assert_close(fit.change, changes[best][number])
        assert fit.error == pytest.approx(errors[best])
    assert found[0].ridge > found[1].ridge


@pytest.mark.parametrize("kind", KINDS.values())
@pytest.mark.parametrize("tokens", [4, 50])
def test_ridge_of_zero_inputs_or_residuals_is_no_change(kind, tokens):
    """Such as of an expert that no token reaches. NaN is not taken for zero."""
    idle, exact, none = kind(), kind(), kind()
    idle.add(torch.zeros(tokens, 7), torch.randn(1, tokens, 7), torch.ones(tokens))
    exact.add(torch.randn(tokens, 7), torch.zeros(1, tokens, 7), torch.ones(tokens))
    none.add(torch.randn(tokens, 7), torch.full((1, tokens, 7), torch.nan), torch.ones(tokens))
    for regression in (idle, exact):
        assert not regression.solve(0.1).any()
        assert regression.errors(regression.solve(0.1)) == [1.0]
    assert math.isnan(none.errors(exact.solve(0.1))[0])


BEFORE = {  # a tail cut has one fit: what is fitted in the last kept layer, and the stored weights that it is in
    "llama": ("matrix", "mlp.down_proj", ["mlp.down_proj.weight"]),
    "gemma2": ("diagonal", "post_feedforward_layernorm", ["post_feedforward_layernorm.weight"]),
    "olmo2": ("diagonal", "post_feedforward_layernorm", ["post_feedforward_layernorm.weight"]),
    "mixtral": ("scalar", "mlp.experts.down_proj", [f"block_sparse_moe.experts.{n}.w2.weight" for n in range(4)]),
}


@torch.no_grad()
def multiplied(model, kind, ids):
    """Return what the change of layer 5 multiplies, and what leaves layers 5 and 7, [tokens, width] each, in float64."""
    heard, after = [], {}
    layer = model.model.layers[5]
    if kind == "scalar":
        layer.mlp.register_forward_hook(lambda _module, _args, output: heard.append(output))
    else:
        module = layer.mlp.down_proj if kind == "matrix" else layer.post_feedforward_layernorm
        module.register_forward_pre_hook(lambda _module, args: heard.append(args[0]))
    for number in (5, 7):
        model.model.layers[number].register_forward_hook(lambda *each, number=number: after.update({number: each[2]}))
    model(input_ids=ids, use_cache=False)
    x, h, y = (state.flatten(0, 1).double() for state in (heard[0], after[5], after[7]))
    return (x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt() if kind == "diagonal" else x), h, y


@pytest.mark.parametrize("model_type", BEFORE)
def test_weight_before_the_cut_is_the_weighted_ridge_of_the_removed_layers(model_type, tmp_path, monkeypatch):
    checkpoint = Checkpoint.open(architectures.make(model_type, tmp_path / "model"))
    monkeypatch.setattr(shortstack.repairing.repairer, "mergeable_mlp", lambda *_: None)
    monkeypatch.setattr(shortstack.repairing.repairer.RepairWalk, "helps", lambda _self: True)
    found, changed = refit(checkpoint, [6, 7], TOKENS, compute=FLOAT32)
    (fit,) = found.fits
    kind, name, weights = BEFORE[model_type]
    assert (fit.layer, fit.kind, fit.weight) == (5, kind, name)
    model = AutoModelForCausalLM.from_pretrained(checkpoint.directory, dtype=torch.float32).eval()
    x, here, there = multiplied(model, kind, SEEN)
    held_out = HELD_OUT.repeat_interleave(IDS.shape[1])
    error, change, ridge, missing = best(*weighted(there, x, there - here), held_out, kind)
    assert fit.ridge == ridge
    assert fit.error == pytest.approx(error / missing, rel=1e-4)
    stored = load_file(checkpoint.directory / "model.safetensors")
    assert set(changed) == {f"model.layers.5.{weight}" for weight in weights}
    for name, tensor in changed.items():
        written = torch.frombuffer(bytearray(tensor.data), dtype=torch.float32).view(tensor.shape)
        expected = stored[name] * (1 + change) if kind == "scalar" else stored[name] + change
        torch.testing.assert_close(written.double(), expected.double(), rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_first_weight_behind_the_cut_is_the_weighted_ridge_to_the_base_model(tmp_path):
    checkpoint, heard = Checkpoint.open(architectures.make("llama", tmp_path / "model")), []
    found, _ = refit(checkpoint, [0, 1], TOKENS, compute=FLOAT32)
    for removed in ((), (0, 1)):
        model = AutoModelForCausalLM.from_pretrained(checkpoint.directory, dtype=torch.float32).eval()
        layer, seen = pass_over(model, "model.layers", removed).model.layers[2], {}
        layer.self_attn.o_proj.register_forward_pre_hook(
            lambda _, args, seen=seen: seen.update(x=args[0].flatten(0, 1))
        )
        layer.post_attention_layernorm.register_forward_pre_hook(
            lambda _, args, seen=seen: seen.update(h=args[0].flatten(0, 1))
        )
        model(input_ids=SEEN, use_cache=False)
        heard.append({name: state.double() for name, state in seen.items()})
    whole, short = heard
    held_out = HELD_OUT.repeat_interleave(IDS.shape[1])
    error, _, ridge, missing = best(*weighted(whole["h"], short["x"], whole["h"] - short["h"]), held_out, "matrix")
    fit = found.fits[0]
    assert (fit.layer, fit.weight, fit.ridge) == (2, "self_attn.o_proj", ridge)
    assert fit.error == pytest.approx(error / missing, rel=1e-3)


def loss_of(directory, ids):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    with torch.no_grad():
        logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    return float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), ids[:, 1:].flatten()))


@torch.no_grad()
def own_words(checkpoint) -> torch.Tensor:
    """Token ids [64, 24] that the model finds likely, so that whoever is more like it has the lower loss."""
    model, rng = checkpoint.model(dtype=torch.float32), torch.Generator().manual_seed(0)
    ids = torch.randint(3, 90, (64, 1), generator=rng)
    for _ in range(23):
        logits = model(input_ids=ids, use_cache=False).logits[:, -1]
        ids = torch.cat([ids, (20 * logits).softmax(-1).multinomial(1, generator=rng)], dim=1)
    return ids


TAIL, MIDDLE, SCATTERED, FIRST = [6, 7], [2, 3], [1, 4, 6], [0, 1]
LIKE_THE_BASE = [  # cuts of which own_words() have a lower loss once repaired
    *(("llama", removed, stream) for removed in (TAIL, MIDDLE, SCATTERED, FIRST) for stream in (False, True)),
    *(
        (model_type, MIDDLE, False)
        for model_type in ("gpt2", "qwen3", "phi", "gemma2", "gemma3_text", "olmo2", "mixtral")
    ),
    *((model_type, SCATTERED, True) for model_type in ("gpt2", "gemma2", "mixtral")),
]


@pytest.mark.parametrize(("model_type", "removed", "stream"), LIKE_THE_BASE)
def test_written_model_has_the_reported_loss(model_type, removed, stream, tmp_path, monkeypatch):
    checkpoint = Checkpoint.open(architectures.make(model_type, tmp_path / "model"))
    monkeypatch.setattr(shortstack.decoder.batching, "BATCH_TOKENS", 200)
    ids = own_words(checkpoint)
    tokens, compute = Tokens(ids, "own", False, 0), Compute(dtype="float32", stream=stream)
    plain = prune(checkpoint, removed, tmp_path / "plain")
    repaired = prune(checkpoint, removed, tmp_path / "repaired", repair=tokens, compute=compute)
    found = Repair.from_dict(repaired.record["repair"])
    choosing, ids = ids[~JUDGING][HELD_OUT], ids[JUDGING]
    assert found.kept
    assert found.removed == tuple(removed)
    assert found.loss_unpruned == pytest.approx(loss_of(checkpoint.directory, ids), rel=1e-5)
    assert found.loss_before == pytest.approx(loss_of(plain.directory, ids), rel=1e-5)
    assert found.loss_after == pytest.approx(loss_of(repaired.directory, ids), rel=1e-4)
    assert loss_of(repaired.directory, choosing) < loss_of(plain.directory, choosing)
    assert all(fit.error < 1 for fit in found.fits)
    assert verify(repaired, base=checkpoint).ok
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model", "plain", "repaired"], "no scratch is left"


def test_changed_tensors_in_files_equal_those_in_memory(tmp_path):
    checkpoint = Checkpoint.open(architectures.make("llama", tmp_path / "model"))
    tokens, scratch = Tokens(own_words(checkpoint), "own", False, 0), tmp_path / "scratch"
    scratch.mkdir()
    (found, held), (_, laid) = refit(checkpoint, [2, 5], tokens), refit(checkpoint, [2, 5], tokens, scratch=scratch)
    assert found.kept
    assert {name: each.digest() for name, each in laid.items()} == {name: each.digest() for name, each in held.items()}
    assert {each.file for each in laid.values()} == set(scratch.iterdir())
    assert len(laid) == len([*scratch.iterdir()])


def test_a_repair_that_does_not_lower_the_loss_changes_nothing(tmp_path, monkeypatch):
    checkpoint = Checkpoint.open(tiny("llama"))
    worse = iter([torch.full((8, 23), loss) for loss in (1.0, 2.0, 1.5, 2.5, 2.4)])  # judged, then by what chose
    monkeypatch.setattr(shortstack.repairing.fit, "next_token_losses", lambda *_: next(worse))
    repaired = prune(checkpoint, [6, 7], tmp_path / "repaired", repair=TOKENS)
    found = repaired.record["repair"]
    assert not found["kept"]
    assert found["loss_after"] == found["loss_before"] == 2.0
    assert repaired.weights_sha256 == prune(checkpoint, [6, 7], tmp_path / "plain").weights_sha256


@pytest.mark.parametrize(
    ("model_type", "tokens", "error"),
    [
        ("gpt_oss", TOKENS, ArchitectureError),  # experts with biases
        ("jetmoe", TOKENS, ArchitectureError),
        ("gemma3n_text", TOKENS, ArchitectureError),  # layers share keys
        ("llama", Tokens(IDS[:7], "made", False, 0), DataError),
    ],
)
def test_repair_refuses_what_cannot_be_refitted(model_type, tokens, error, tmp_path):
    checkpoint = Checkpoint.open(architectures.make(model_type, tmp_path / "model"))
    with pytest.raises(error):
        prune(checkpoint, [6, 7], tmp_path / "out", repair=tokens)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_repair_refuses_quantised_weights():
    config = {"quantization_config": {"quant_method": "bitsandbytes"}}
    with pytest.raises(CheckpointError):
        refit(replace(Checkpoint.open(tiny("llama")), config=config), [6, 7], TOKENS)


def test_judging_windows_choose_nothing():
    """Other windows to judge on: the fits and the decision stay, the losses alone change."""
    checkpoint, other = Checkpoint.open(tiny("llama")), IDS.clone()
    other[JUDGING] = torch.randint(3, 90, (8, 24), generator=torch.Generator().manual_seed(9))
    (found, _), (same, _) = (
        refit(checkpoint, [3, 4], Tokens(ids, "made", False, 0), compute=FLOAT32) for ids in (IDS, other)
    )
    assert (found.fits, found.kept) == (same.fits, same.kept)
    assert found.loss_before != same.loss_before
