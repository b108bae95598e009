"""Neurons of removed layers in the MLP before the cut, against a plain forward pass, sorting and least squares."""

import architectures
import pytest
import torch
from least_squares import best, weighted
from transformers import AutoModelForCausalLM

from shortstack.checkpoint import Checkpoint
from shortstack.data import Tokens
from shortstack.decoder import Decoder
from shortstack.machine.device import Compute
from shortstack.pruning import prune
from shortstack.repairing.fold_points import find_fold_points
from shortstack.repairing.merging import MergedMlp, mergeable_mlp
from shortstack.repairing.repairer import Repair, refit
from zoo import make

IDS = torch.randint(3, 90, (64, 24), generator=torch.Generator().manual_seed(3))
TOKENS = Tokens(IDS, "made", False, 0)
SEEN = IDS[torch.arange(64) % 8 != 7]  # by what is fitted or chosen; the others judge
HELD_OUT = (torch.arange(len(SEEN)) % 4 == 3).repeat_interleave(SEEN.shape[1])  # of its tokens
BEFORE, REMOVED = 2, (3, 4)


def uneven(directory, **config):
    """A tiny llama whose norms differ from layer to layer and channel to channel, and whose biases are not 0.

    Its blocks add little to the stream, so that what a removed MLP gives is near to what it gives before the cut.
    """
    make("llama", directory, **config)
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32)
    random = torch.Generator().manual_seed(5)
    for number, layer in enumerate(model.model.layers):
        layer.post_attention_layernorm.weight.data = torch.rand(32, generator=random) + 0.5
        layer.self_attn.o_proj.weight.data *= 0.1
        for name, weight in layer.mlp.named_parameters():
            scale = 0.01 * (1 + number % 4) if name == "down_proj.weight" else 0.3
            weight.data = scale * torch.randn(weight.shape, generator=random)
    model.save_pretrained(directory)
    return Checkpoint.open(directory)


@torch.no_grad()
def whole(directory):
    """The model, what enters the MLP of layer BEFORE's norm, and what leaves each layer, [tokens, width] each."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    inside, after = [], {}
    norm = model.model.layers[BEFORE].post_attention_layernorm
    hooks = [norm.register_forward_pre_hook(lambda _module, args: inside.append(args[0].flatten(0, 1)))]
    for number, layer in enumerate(model.model.layers):
        hooks.append(layer.register_forward_hook(lambda *each, n=number: after.update({n: each[2].flatten(0, 1)})))
    model(input_ids=SEEN, use_cache=False)
    for hook in hooks:
        hook.remove()
    return model, inside[0], after


@torch.no_grad()
def neurons(model, inside, after):
    """For each neuron of layer BEFORE and the removed ones: what it gives [tokens], its column, and its strength."""
    given, columns, strengths = [], [], []
    for number in (BEFORE, *REMOVED):
        layer = model.model.layers[number]
        entering = layer.post_attention_layernorm(inside)
        each = torch.nn.functional.silu(layer.mlp.gate_proj(entering)) * layer.mlp.up_proj(entering)
        weights = 1 / after[max(number, REMOVED[0])].norm(dim=1)
        given.append(each)
        columns.append(layer.mlp.down_proj.weight)
        strengths.append((each.square() * weights[:, None])[~HELD_OUT].sum(0).sqrt() * columns[-1].norm(dim=0))
    return torch.cat(given, dim=1), torch.cat(columns, dim=1), torch.cat(strengths)


@torch.no_grad()
def both(given, columns, strongest, after):
    """Return what best() finds with the strongest neurons in place, and with the layer's own."""
    here, there = after[BEFORE], after[REMOVED[-1]]
    taken, gone = strongest[strongest >= 48], torch.tensor(sorted(set(range(48)) - set(strongest.tolist())))
    merged = here + given[:, taken] @ columns[:, taken].T - given[:, gone] @ columns[:, gone].T
    pairs = (given[:, strongest], there - merged), (given[:, :48], there - here)
    return [best(*weighted(there, *pair), HELD_OUT) for pair in pairs]


@pytest.mark.parametrize("stream", [False, True])
def test_merge_keeps_and_refits_the_strongest_neurons(stream, tmp_path):
    checkpoint = uneven(tmp_path / "model", mlp_bias=True)
    model, inside, after = whole(checkpoint.directory)
    given, columns, strengths = neurons(model, inside, after)
    strongest = strengths.topk(48).indices
    (left, change, ridge, _), (own_left, *_, missing) = both(given, columns, strongest, after)
    taken = strongest[strongest >= 48]
    assert left < own_left, "else this test would be of nothing"
    compute = Compute(dtype="float32", stream=stream)
    pruned = prune(checkpoint, REMOVED, tmp_path / "pruned", repair=TOKENS, compute=compute)
    found = Repair.from_dict(pruned.record["repair"])
    fit = next(fit for fit in found.fits if fit.layer == BEFORE)
    assert (fit.weight, fit.neurons, fit.ridge) == ("mlp.down_proj", len(taken), ridge)
    assert fit.error == pytest.approx(left / missing, rel=1e-3)
    mlp = AutoModelForCausalLM.from_pretrained(pruned.directory, dtype=torch.float32).eval().model.layers[BEFORE].mlp
    entering = model.model.layers[BEFORE].post_attention_layernorm(inside)
    expected = given[:, strongest].double() @ (columns[:, strongest] + change).T
    expected += model.model.layers[BEFORE].mlp.down_proj.bias
    with torch.no_grad():
        torch.testing.assert_close(mlp(entering).double(), expected, rtol=1e-3, atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_merged_neurons_are_rounded_to_the_stored_dtype_alone(dtype, tmp_path):
    """Whatever is computed in: rows of gate and up, each times the ratio of the norms' weights."""
    checkpoint = uneven(tmp_path / "model", mlp_bias=True)
    model = AutoModelForCausalLM.from_pretrained(checkpoint.directory, dtype=dtype)
    model.save_pretrained(checkpoint.directory)
    checkpoint = Checkpoint.open(checkpoint.directory)
    pruned = prune(checkpoint, REMOVED, tmp_path / "pruned", repair=TOKENS, compute=Compute(dtype="bfloat16"))
    assert next(fit for fit in pruned.record["repair"]["fits"] if fit["layer"] == BEFORE)["neurons"]
    merged = AutoModelForCausalLM.from_pretrained(pruned.directory, dtype=dtype).model.layers[BEFORE].mlp
    layers = [model.model.layers[number] for number in (BEFORE, *REMOVED)]
    norms = [layer.post_attention_layernorm.weight.float() for layer in layers]
    for matrix in ("gate_proj", "up_proj"):
        weights = [layer.mlp.get_submodule(matrix).weight.float() for layer in layers]
        offered = torch.cat([weight * (norm / norms[0]) for weight, norm in zip(weights, norms, strict=True)]).to(dtype)
        rows, rtol = merged.get_submodule(matrix).weight.float(), max(torch.finfo(dtype).eps, 1e-5)
        same = torch.isclose(rows[:, None], offered.float(), rtol=rtol, atol=1e-6)
        assert same.all(-1).any(1).all(), "each row is one of those on offer"


def test_own_neurons_stay_where_they_leave_a_smaller_error(tmp_path):
    checkpoint = uneven(tmp_path / "model")
    model, inside, after = whole(checkpoint.directory)
    given, columns, strengths = neurons(model, inside, after)
    merged, (own_left, _, ridge, missing) = both(given, columns, strengths.topk(48).indices, after)
    assert own_left < merged[0], "else this test would be of nothing"
    found, changed = refit(checkpoint, REMOVED, TOKENS, compute=Compute(dtype="float32"))
    fit = next(fit for fit in found.fits if fit.layer == BEFORE)
    assert (fit.neurons, fit.ridge, fit.error) == (0, ridge, pytest.approx(own_left / missing, rel=1e-3))
    assert "model.layers.2.mlp.gate_proj.weight" not in changed


def mlp_of(decoder, number):
    (point,) = [point for point in find_fold_points(decoder, number) if not point.place]
    return mergeable_mlp(decoder, number, point)


@pytest.mark.parametrize(
    ("model_type", "norm"),
    [
        ("llama", "post_attention_layernorm"),
        ("gemma", "post_attention_layernorm"),
        ("gpt_neox", "post_attention_layernorm"),
        ("phi", "input_layernorm"),
        ("gpt2", None),  # its matrices are no linear layers
        ("opt", None),  # the matrices lie in the layer itself
        ("gemma2", None),  # a norm stands behind the MLP
        ("phi3", None),  # gate and up are one matrix
        ("mixtral", None),
        ("ernie4_5_moe", "post_attention_layernorm"),  # of the shared experts, which see all tokens in one row
        ("zamba2", None),  # has adapters that run in another layer
    ],
)
def test_which_mlps_can_be_merged(model_type, norm, tmp_path):
    decoder = Decoder.load(Checkpoint.open(architectures.make(model_type, tmp_path / "model")), dtype=torch.float32)
    found = mlp_of(decoder, 3)
    assert (found.norm if found else None) == norm


def test_mlp_with_another_activation_offers_no_neurons(tmp_path):
    """Apertus has one with parameters, of each layer its own: a neuron gives something else in another layer."""
    folder = architectures.make("apertus", tmp_path / "model")
    decoder = Decoder.load(Checkpoint.open(folder), dtype=torch.float32)
    mine, removed, mlp = decoder.layers[BEFORE], decoder.layers[REMOVED[0]], mlp_of(decoder, BEFORE)
    removed.mlp.act_fn.load_state_dict(mine.mlp.act_fn.state_dict())
    inputs, weights = torch.randn(1, 24, mlp.mlp.neurons), [torch.ones(24)]
    entering = torch.randn(1, 24, 32, generator=torch.Generator().manual_seed(1))
    removed.mlp.down_proj.weight.data *= 100
    for alike in (True, False):
        if not alike:
            removed.mlp.act_fn.alpha_p.data += 1
        merged = MergedMlp(mine, mlp, [entering], [inputs.clone()], 1)
        merged.offer(removed, REMOVED[0], weights)
        assert bool(len(merged.taken)) is alike


@pytest.mark.parametrize("model_type", ["llama", "gemma", "gpt_neox"])
def test_gains_are_those_of_the_norm(model_type, tmp_path):
    decoder = Decoder.load(Checkpoint.open(architectures.make(model_type, tmp_path / "model")), dtype=torch.float32)
    for number in (3, 4):
        norm = decoder.layers[number].post_attention_layernorm
        norm.weight.data = torch.rand(norm.weight.shape, generator=torch.Generator().manual_seed(number)) + 0.5
    found = mlp_of(decoder, 3)
    ratio = found.gains(decoder.layers[4]) / found.gains(decoder.layers[3])
    multiplied = [decoder.layers[n].post_attention_layernorm.weight + (model_type == "gemma") for n in (3, 4)]
    torch.testing.assert_close(ratio, multiplied[1] / multiplied[0], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("model_type", "kinds"),
    [("deepseek_v3", {"first_k_dense_replace": 3}), ("qwen2_moe", {"mlp_only_layers": [0, 1, 2, 5]})],
)
def test_layers_of_experts_offer_no_neurons_to_a_dense_one(model_type, kinds, tmp_path, monkeypatch):
    """Layer 2 is dense, 3 and 4 are not; behind them dense layers would offer what they have."""
    monkeypatch.setitem(architectures.VARIETY, model_type, {**architectures.VARIETY.get(model_type, {}), **kinds})
    checkpoint = Checkpoint.open(architectures.make(model_type, tmp_path / "model"))
    found, _ = refit(checkpoint, REMOVED, TOKENS, compute=Compute(dtype="float32"))
    assert not any(fit.neurons for fit in found.fits)
    assert [fit.weight.rpartition(".")[2] for fit in found.fits if fit.layer == BEFORE] == ["down_proj"]
    if "first_k_dense_replace" not in kinds:
        decoder = Decoder.load(checkpoint, dtype=torch.float32)
        mlp = mlp_of(decoder, BEFORE)
        assert [layer for layer in range(3, 8) if mlp.stands_in(decoder.layers[layer])] == [5]
