"""Windows scored by their loss after repair, against a fit and a forward of its own for each, in plain torch."""

import math

import architectures
import pytest
import torch
from least_squares import best, weighted

import naive
import shortstack.decoder.batching
import shortstack.decoder.decoder
import shortstack.repairing.fit
from shortstack.checkpoint import Checkpoint
from shortstack.data import Tokens
from shortstack.decoder import Decoder
from shortstack.errors import ArchitectureError
from shortstack.machine.device import Compute
from shortstack.machine.progress import silent
from shortstack.planning import select_layers
from shortstack.repairing.cut_families import repaired_windows
from shortstack.repairing.repairer import RepairWalk
from zoo import pass_over, tiny

IDS = torch.randint(3, 90, (24, 12), generator=torch.Generator().manual_seed(3))
TOKENS = Tokens(IDS, "made", False, 0)
HELD_OUT = torch.arange(24) % 4 == 3
LAST = {"llama": "mlp.down_proj", "qwen3": "mlp.down_proj", "gpt2": "mlp.c_proj"}


@torch.no_grad()
def naive_divergence(directory, matrix, start, size):
    """Held-out KL without the window, the matrix before it changed by the best of all ridges, in float64."""
    model = naive.load(directory)
    path, layers = naive.stack(model)
    log_p = model(input_ids=IDS[HELD_OUT], use_cache=False).logits[:, :-1].log_softmax(-1)
    if start:
        inner, states = [], naive.hidden_states(directory, IDS)
        module = layers[start - 1].get_submodule(matrix)
        hook = module.register_forward_pre_hook(lambda _module, args: inner.append(args[0]))
        model(input_ids=IDS, use_cache=False)
        hook.remove()
        change = best_change(inner[0].double(), states[start].double(), states[start + size].double())
        if change is not None:
            module.weight += change.T if matrix == "mlp.c_proj" else change
    pass_over(model, path, range(start, start + size))
    log_q = model(input_ids=IDS[HELD_OUT], use_cache=False).logits[:, :-1].log_softmax(-1)
    return float(torch.nn.functional.kl_div(log_q, log_p, log_target=True, reduction="none").sum(-1).mean())


def best_change(inputs, here, there):
    x, r = (part.flatten(0, 1) for part in weighted(there, inputs, there - here))
    error, change, _, before = best(x, r, HELD_OUT.repeat_interleave(IDS.shape[1]))
    return change.float() if error < before else None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("model_type", LAST)
def test_each_window_is_what_a_fit_and_a_forward_of_its_own_give(model_type, size, stream):
    checkpoint = Checkpoint.open(tiny(model_type))
    decoder = Decoder.open(checkpoint, Compute(dtype="float32", stream=stream))
    expected = {
        (start, size): naive_divergence(checkpoint.directory, LAST[model_type], start, size)
        for start in range(9 - size)
    }
    assert repaired_windows(decoder, TOKENS, [size]) == pytest.approx(expected, rel=1e-4, abs=1e-7)  # in float32


@pytest.mark.parametrize("model_type", ["gemma2", "mixtral"])
def test_windows_are_repaired_where_only_scales_can_be(model_type):
    """The last window is a tail: repair() fits nothing else there."""
    decoder = Decoder.load(Checkpoint.open(tiny(model_type)), dtype=torch.float32)
    changed = []
    for size in range(1, 8):
        walk = RepairWalk(decoder, frozenset(range(8 - size, 8)), Tokens.given(IDS), silent).walk()
        found = repaired_windows(decoder, Tokens.given(IDS), [size])[8 - size, size]
        assert found == pytest.approx(walk.divergence(), rel=1e-5)
        changed += walk.fits
    assert changed


def test_kinds_count_by_their_weights_and_only_the_tokens_that_count():
    """Against the logits of both models: of the second kind every third token counts, and the kind one half."""
    checkpoint, counted = Checkpoint.open(tiny("llama")), torch.zeros(12, 12, dtype=torch.bool)
    counted[:, ::3] = True
    prose, drills = Tokens(IDS[:12], "a", False, 0), Tokens(IDS[12:], "b", False, 0, counted=counted)
    decoder = Decoder.load(checkpoint, dtype=torch.float32)
    found = repaired_windows(decoder, Tokens.joined([prose, drills], [1.0, 0.5], "a,b=0.5"), [2])[0, 2]
    model, cut = naive.load(checkpoint.directory), naive.load(checkpoint.directory)
    pass_over(cut, naive.stack(cut)[0], (0, 1))  # nothing stands before layer 0, so nothing is refitted
    means = []
    for ids, mask in ((IDS[3:12:4], torch.ones(3, 12, dtype=torch.bool)), (IDS[15::4], counted[3::4])):
        with torch.no_grad():
            log_p, log_q = (
                each(input_ids=ids, use_cache=False).logits[:, :-1].log_softmax(-1) for each in (model, cut)
            )
        means.append(float((log_p.exp() * (log_p - log_q)).sum(-1)[mask[:, 1:]].mean()))
    assert found == pytest.approx((means[0] + 0.5 * means[1]) / 1.5, rel=1e-4)


@pytest.mark.parametrize("together", [1, 3])  # windows in a turn: each ends it at another
@pytest.mark.parametrize("sizes", [[3, 2], [2, 5], [1, 4, 6]])
def test_turns_and_batches_change_nothing(sizes, together, monkeypatch):
    decoder = Decoder.load(Checkpoint.open(tiny("llama")), dtype=torch.float32)
    whole, seen = repaired_windows(decoder, Tokens.given(IDS), sizes), []
    monkeypatch.setattr(shortstack.decoder.batching, "BATCH_TOKENS", 48)
    monkeypatch.setattr(shortstack.decoder.decoder, "STREAM_BYTES", together * len(sizes))
    monkeypatch.setattr(Decoder, "stream_bytes", lambda *_: 1)
    turned = repaired_windows(
        decoder, Tokens.given(IDS), sizes, progress=lambda _stage, done, total, **_: seen.append((done, total))
    )
    assert turned == pytest.approx(whole, rel=1e-6)
    layers_walked = math.ceil((9 - min(sizes)) / together) * 8
    assert seen == [(done, layers_walked) for done in range(1, layers_walked + 1)], "a turn for so many windows"


@pytest.mark.parametrize("model_type", ["gemma3n_text", "jetmoe"])
def test_models_that_cannot_be_refitted_are_refused(model_type, tmp_path):
    checkpoint = Checkpoint.open(architectures.make(model_type, tmp_path / "model"))
    with pytest.raises(ArchitectureError):
        select_layers(checkpoint, TOKENS, drop=2, strategy="repaired-blocks")
