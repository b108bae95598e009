"""Batched generation against one prompt at a time, a whole forward pass for each token, and its distribution."""

import pytest
import torch

from shortstack.checkpoint import Checkpoint
from shortstack.decoder.generation import generate
from zoo import tiny

PROMPTS = [(5, 9, 30), (7,), tuple(range(20, 34)), (40, 41, 42, 43, 44)]
ROOMS = [6, 9, 3, 9]


def greedy(model, prompt, room):
    """Without a cache, a batch or padding."""
    ids = list(prompt)
    while len(ids) < len(prompt) + room:
        ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
        if ids[-1] == 2:
            break
    return ids[len(prompt) :]


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2", "opt"])
@torch.no_grad()
def test_a_batch_writes_what_each_prompt_alone_gets(model_type):
    model = Checkpoint.open(tiny(model_type)).model(dtype=torch.float32)
    model.generation_config.eos_token_id = 2
    expected = [greedy(model, prompt, room) for prompt, room in zip(PROMPTS, ROOMS, strict=True)]
    assert generate(model, PROMPTS, ROOMS) == expected


@torch.no_grad()
def test_an_end_token_closes_what_is_written():
    model = Checkpoint.open(tiny("llama")).model(dtype=torch.float32)
    whole = generate(model, PROMPTS, [8] * 4)
    model.generation_config.eos_token_id = [whole[3][2], 2]
    ended = generate(model, PROMPTS, [8] * 4)
    assert ended[3] == whole[3][: whole[3].index(whole[3][2]) + 1]
    for some, all_of_it in zip(ended, whole, strict=True):
        assert some == all_of_it[: len(some)]


@torch.no_grad()
def test_what_the_checkpoint_asks_for_does_not_count():
    model = Checkpoint.open(tiny("llama")).model(dtype=torch.float32)
    plain = generate(model, PROMPTS, [12] * 4), generate(model, PROMPTS, [12] * 4, seed=1)
    asked = {"repetition_penalty": 5.0, "no_repeat_ngram_size": 2, "top_p": 0.01, "top_k": 1, "temperature": 0.01}
    model.generation_config.update(**asked, do_sample=True, min_new_tokens=12, num_beams=3)
    assert (generate(model, PROMPTS, [12] * 4), generate(model, PROMPTS, [12] * 4, seed=1)) == plain


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
    assert generate(model, PROMPTS, [8] * 4, seed=3) == generate(model, PROMPTS, [8] * 4, seed=3)
    assert generate(model, PROMPTS, [8] * 4, seed=3) != generate(model, PROMPTS, [8] * 4, seed=4)


def test_the_head_gets_the_last_positions_in_one_piece():
    """A slice of all positions would have torch copy the head's weights for each row."""
    model = Checkpoint.open(tiny("llama")).model(dtype=torch.float32)
    seen = []
    hook = model.lm_head.register_forward_hook(lambda _head, args, _out: seen.append(args[0].is_contiguous()))
    generate(model, [[3, 4, 5], [6, 7, 8]], [2, 2])
    hook.remove()
    assert seen == [True, True]
