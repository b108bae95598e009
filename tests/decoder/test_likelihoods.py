"""Likelihoods against one forward of the whole model for each request, logits everywhere and no cache."""

import random

import architectures
import pytest
import torch
from transformers import AutoModelForCausalLM

import shortstack.decoder.batching
from shortstack.checkpoint import Checkpoint
from shortstack.decoder import Decoder
from shortstack.decoder import likelihoods as module
from shortstack.decoder.likelihoods import Request, greedy_endings, likelihoods, shares_contexts
from zoo import ZOO, tiny


def requests(seed: int = 0) -> list[Request]:
    """Contexts of several lengths, longer than a sliding window too, with choices of one token and of more; some alone."""
    rng, made = random.Random(seed), []
    for length, choices in ((9, 3), (4, 2), (13, 4), (7, 1), (1, 1), (20, 2), (2, 3)):
        context = [rng.randrange(3, 90) for _ in range(length)]
        for number in range(choices):
            ending = [rng.randrange(3, 90) for _ in range(1 + number * 3 % 7)]
            made.append(Request((*context, *ending), length))
    return rng.sample(made, len(made))


@torch.no_grad()
def naively(directory, asked):
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    found = []
    for request in asked:
        logits = model(input_ids=torch.tensor([request.ids]), use_cache=False).logits[0].double().log_softmax(-1)
        places = range(request.start, len(request.ids))
        value = sum(float(logits[place - 1, request.ids[place]]) for place in places)
        greedy = all(int(logits[place - 1].argmax()) == request.ids[place] for place in places)
        found.append((value, greedy))
    return found


@pytest.mark.parametrize(("model_type", "batch"), [*((name, None) for name in ZOO), ("llama", 3), ("gpt2", 3)])
def test_likelihoods_are_those_of_one_forward_for_each_request(model_type, batch, monkeypatch):
    monkeypatch.setattr(shortstack.decoder.batching, "BATCH_TOKENS", 60)
    checkpoint, asked = Checkpoint.open(tiny(model_type)), requests()
    decoder = Decoder.load(checkpoint, dtype=torch.float32)
    assert shares_contexts(decoder)
    found = likelihoods(decoder, asked, batch=batch)
    expected = naively(checkpoint.directory, asked)
    assert [each.value for each in found] == pytest.approx([value for value, _ in expected], rel=2e-5, abs=2e-5)
    assert [each.greedy for each in found] == [greedy for _, greedy in expected]


def test_a_greedy_ending_is_told_from_others():
    checkpoint = Checkpoint.open(tiny("llama"))
    model = checkpoint.model(dtype=torch.float32)
    context, ids = (5, 6, 7, 8, 9), [5, 6, 7, 8, 9]
    for _ in range(3):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    other = [*ids[:-1], (ids[-1] + 1) % 90]
    asked = [Request(tuple(ids), len(context)), Request(tuple(other), len(context))]
    found = likelihoods(Decoder.load(checkpoint, dtype=torch.float32), asked)
    assert [each.greedy for each in found] == [True, False]


@pytest.mark.parametrize("streamed", [False, True])
def test_greedy_endings_are_the_likeliest_tokens_of_whole_forwards(streamed):
    checkpoint = Checkpoint.open(tiny("llama"))
    decoder = Decoder.load(checkpoint, stream=streamed, dtype=torch.float32)
    requests = [Request(tuple(range(first, first + 9)), 5 + first) for first in range(3)]
    model = checkpoint.model(dtype=torch.float32)
    with torch.no_grad():
        logits = [model(torch.tensor([request.ids])).logits[0] for request in requests]
    expected = [
        each[request.start - 1 : -1].argmax(-1).tolist() for each, request in zip(logits, requests, strict=True)
    ]
    assert greedy_endings(decoder, requests) == expected


def test_a_shared_context_passes_the_layers_once(monkeypatch):
    """Tokens of the context, and of endings but for their last; without sharing, all that padding makes equally long."""
    decoder, passed = Decoder.load(Checkpoint.open(tiny("llama")), dtype=torch.float32), []
    original = Decoder.finish
    monkeypatch.setattr(
        Decoder, "finish", lambda self, ids, **inputs: passed.append(ids.numel()) or original(self, ids, **inputs)
    )
    context = tuple(range(10, 20))
    asked = [Request((*context, *ending), 10) for ending in ((3,), (4,), (5, 6, 7))]
    for sharing, expected in ((True, [10, 2]), (False, [3 * 12])):
        monkeypatch.setattr(module, "shares_contexts", lambda _decoder, sharing=sharing: sharing)
        passed.clear()
        likelihoods(decoder, asked)
        assert passed == expected


@pytest.mark.parametrize("model_type", ["mamba", "jamba", "bloom", "moshi"])
def test_what_cannot_continue_a_copied_context_shares_nothing(model_type, tmp_path):
    """States without a row for each token, no positions to give, or positions numbered another way."""
    checkpoint = Checkpoint.open(architectures.make(model_type, tmp_path / model_type))
    decoder = Decoder.load(checkpoint, dtype=torch.float32)
    assert not shares_contexts(decoder)
    asked = requests()
    found = likelihoods(decoder, asked)
    expected = naively(checkpoint.directory, asked)
    assert [each.value for each in found] == pytest.approx([value for value, _ in expected], rel=1e-4, abs=1e-4)
