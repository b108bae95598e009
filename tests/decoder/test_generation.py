"""Batched generation against one prompt at a time, a whole forward pass for each token, and its distribution."""

from functools import partial

import architectures
import pytest
import torch
from transformers import GenerationConfig

import shortstack.decoder.generation
from shortstack.checkpoint import Checkpoint
from shortstack.decoder.generation import generate, longest
from zoo import make, tiny

PROMPTS = [(5, 9, 30), (7,), tuple(range(20, 34)), (40, 41, 42, 43, 44)]
ROOMS = [6, 9, 3, 9]


def greedy(model, prompt, room, ends=(2,)):
    """Without a cache, a batch or padding."""
    ids = list(prompt)
    while len(ids) < len(prompt) + room:
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] in ends:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("model_type", ["gemma2", "gpt2", "opt"])
@torch.no_grad()
def test_a_batch_writes_what_each_prompt_alone_gets(model_type):
    model = Checkpoint.open(tiny(model_type)).model(dtype=torch.float32)
    model.generation_config.eos_token_id = 2
    expected = [greedy(model, prompt, room) for prompt, room in zip(PROMPTS, ROOMS, strict=True)]
    assert generate(model, PROMPTS, ROOMS) == expected


def phi3(directory):
    """Its positions are scaled otherwise from 20 tokens on."""
    rope = {"rope_type": "longrope", "short_factor": [1.0] * 4, "long_factor": [3.0] * 4, "rope_theta": 10000.0}
    sizes = {"original_max_position_embeddings": 20, "max_position_embeddings": 80, "rope_parameters": rope}
    return make("phi3", directory, **sizes)


@pytest.mark.parametrize("made", [phi3, partial(architectures.make, "glm_moe_dsa")], ids=["longrope", "index_topk"])
def test_a_batch_of_other_lengths_than_those_tried_writes_what_each_gets_alone(made, tmp_path):
    prompts = [tuple(range(5, 5 + length)) for length in (3, 30, 31, 7, 30)]
    checkpoint = Checkpoint.open(made(tmp_path / "model"))

    def written(some):
        return generate(checkpoint.model(dtype=torch.float32), some, [8] * len(some))

    assert written(prompts) == [text for prompt in prompts for text in written([prompt])]


MANY = [tuple(range(3 + number, 5 + number + number % 7)) for number in range(24)]
LIMITS = [1 + (7 * number) % 11 for number in range(24)]


@torch.no_grad()
def test_what_is_drawn_depends_on_the_seed_and_the_prompts_number_alone(monkeypatch):
    """Not on free memory, and not on the prompts beside it, which share experts."""
    model = Checkpoint.open(tiny("mixtral")).model(dtype=torch.float32)
    model.generation_config.eos_token_id = None
    drawn = []
    for most in (2, 8, 64):
        monkeypatch.setattr(shortstack.decoder.generation, "_rows", lambda *_, most=most: most)
        drawn.append(generate(model, MANY, LIMITS, seed=5))
    assert drawn[1:] == drawn[:1] * 2
    assert generate(model, MANY[:3], LIMITS[:3], seed=5) == drawn[0][:3]
    longer = generate(model, [MANY[0], *MANY[:1] * 3], [8] * 4, seed=5)
    assert len(set(map(tuple, longer))) == 4, "each prompt has draws of its own"


@torch.no_grad()
def test_no_row_needs_a_position_beyond_what_is_said(tmp_path):
    """Learned positions: one too many would be an error."""
    prompts, limits = [tuple(range(5, 15)), (7, 3), (8, 4)], [10, 10, 4]
    most = longest(prompts, limits)
    model = Checkpoint.open(make("gpt2", tmp_path / "model", n_positions=most)).model(dtype=torch.float32)
    assert [len(tokens) for tokens in generate(model, prompts, limits)] == limits


@torch.no_grad()
def test_an_end_token_closes_what_is_written():
    model = Checkpoint.open(tiny("llama")).model(dtype=torch.float32)
    whole = generate(model, PROMPTS, [8] * 4)
    model.generation_config.eos_token_id = [whole[3][2], 2]
    ended = generate(model, PROMPTS, [8] * 4)
    assert ended[3] == whole[3][: whole[3].index(whole[3][2]) + 1]
    for some, all_of_it in zip(ended, whole, strict=True):
        assert some == all_of_it[: len(some)]


ASKED = {  # fields of a checkpoint's generation config, set to what would be seen
    "bad_words_ids": [[number] for number in range(3, 60)],
    "bos_token_id": 7,
    "do_sample": True,
    "forced_eos_token_id": 9,
    "max_new_tokens": 1,
    "min_new_tokens": 12,
    "num_beams": 3,
    "pad_token_id": 7,
    "repetition_penalty": 5.0,
    "suppress_tokens": list(range(3, 60)),
    "temperature": 0.01,
    "top_k": 1,
}


@torch.no_grad()
def test_what_the_checkpoint_asks_for_does_not_count():
    model = Checkpoint.open(tiny("llama")).model(dtype=torch.float32)
    model.generation_config.eos_token_id = None
    plain = generate(model, PROMPTS, [4] * 4), generate(model, PROMPTS, [4] * 4, seed=1)
    model.generation_config = asked = GenerationConfig()
    vars(asked).update(ASKED)
    assert (generate(model, PROMPTS, [4] * 4), generate(model, PROMPTS, [4] * 4, seed=1)) == plain
    assert model.generation_config is asked, "the model has its own again"


@torch.no_grad()
def test_with_a_seed_tokens_are_drawn_from_the_models_distribution():
    model = Checkpoint.open(tiny("llama")).model(dtype=torch.float32)
    state = torch.get_rng_state()
    drawn = torch.tensor(generate(model, [PROMPTS[0]] * 4000, [1] * 4000, seed=0))[:, 0]
    assert torch.equal(torch.get_rng_state(), state), "whoever else draws is not disturbed"
    p = model(input_ids=torch.tensor([PROMPTS[0]]), use_cache=False).logits[0, -1].softmax(-1)
    share = torch.bincount(drawn, minlength=len(p)) / 4000
    assert (share - p).abs().max() < 4 * 0.5 / 4000**0.5
    assert p.max() < 0.5, "a case in which greedy would be seen"
    assert generate(model, PROMPTS, [8] * 4, seed=3) != generate(model, PROMPTS, [8] * 4, seed=4)


def test_the_head_gets_the_last_positions_in_one_piece():
    """A slice of all positions would have torch copy the head's weights for each row."""
    model = Checkpoint.open(tiny("llama")).model(dtype=torch.float32)
    seen = []
    hook = model.lm_head.register_forward_hook(lambda _head, args, _out: seen.append(args[0].is_contiguous()))
    generate(model, [[3, 4, 5], [6, 7, 8]], [2, 2])
    hook.remove()
    assert seen
    assert all(seen)
