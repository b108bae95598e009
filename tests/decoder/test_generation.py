"""Batched generation against one prompt at a time, a whole forward pass for each token, and its distribution."""

from functools import partial

import pytest
import torch
from transformers import BartConfig, BartForCausalLM

import shortstack.decoder.generation
from shortstack.checkpoint import Checkpoint
from shortstack.decoder.generation import Work, _write, generate, longest
from shortstack.decoder.rows import can_leave
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


@pytest.mark.parametrize("model_type", ["llama", "gemma2", "gpt2", "opt"])
@torch.no_grad()
def test_a_batch_writes_what_each_prompt_alone_gets(model_type):
    model = Checkpoint.open(tiny(model_type)).model(dtype=torch.float32)
    model.generation_config.eos_token_id = 2
    expected = [greedy(model, prompt, room) for prompt, room in zip(PROMPTS, ROOMS, strict=True)]
    assert generate(model, PROMPTS, ROOMS) == expected


BURST_HERE = 3
MANY = [tuple(range(3 + number, 5 + number + number % 7)) for number in range(24)]
LIMITS = [1 + (7 * number) % 11 for number in range(24)]


@pytest.mark.parametrize("model_type", ["llama", "gpt2", "opt"])
@torch.no_grad()
def test_rows_that_leave_and_enter_write_what_each_prompt_alone_gets(model_type, few_rows):
    model = Checkpoint.open(tiny(model_type)).model(dtype=torch.float32)
    model.generation_config.eos_token_id = 2
    expected = [greedy(model, prompt, room) for prompt, room in zip(MANY, LIMITS, strict=True)]
    model.generation_config.eos_token_id = [2, expected[-1][0]]
    expected = [greedy(model, prompt, room, (2, expected[-1][0])) for prompt, room in zip(MANY, LIMITS, strict=True)]
    assert min(map(len, expected)) < 3
    assert max(map(len, expected)) > 6
    assert generate(model, MANY, LIMITS) == expected
    assert can_leave(model, MANY[0], partial(_write, model, sampled=False))


@pytest.fixture
def few_rows(monkeypatch):
    monkeypatch.setattr(shortstack.decoder.generation, "ROWS", 8)
    monkeypatch.setattr(shortstack.decoder.generation, "BATCH_TOKENS", 24)
    monkeypatch.setattr(shortstack.decoder.generation, "BURST", BURST_HERE)


@torch.no_grad()
def test_rows_that_have_ended_are_not_read_on(few_rows):
    """Rows times tokens that pass the model: in batches to their end, each row of a batch until its longest."""
    model = Checkpoint.open(tiny("llama")).model(dtype=torch.float32)
    limits, passed = [2] * 21 + [30] * 3, []
    model.model.layers[0].register_forward_pre_hook(lambda _layer, args: passed.append(args[0].shape[:2]))
    written = generate(model, MANY, limits)
    assert [len(tokens) for tokens in written] == limits
    steps = sum(rows for rows, tokens in passed if tokens == 1)
    assert steps < 24 * (2 + BURST_HERE) + 3 * 30
    assert max(rows for rows, _ in passed) == 8, "as many as there is room for"


def test_prompts_are_read_so_many_tokens_at_a_time():
    """Padding counts, and a prompt that is longer is read alone."""
    work = Work([(1,) * length for length in (9, 2, 3, 3, 20)], [4] * 5, frozenset(), lambda *_, **__: None)
    taken = [[len(work.prompts[number]) for number in work.next(8, tokens=9)] for _ in range(3)]
    assert taken == [[2, 3, 3], [9], [20]]
    assert work.waiting == []


@torch.no_grad()
def test_no_row_needs_a_position_beyond_what_is_said(few_rows, tmp_path):
    """Learned positions: one too many would be an error. A burst of three tokens would go on beyond the fifth."""
    prompts, limits = [(5, 9), (7, 3), (8, 4)], [5, 5, 4]
    most = longest(prompts, limits)
    model = Checkpoint.open(make("gpt2", tmp_path / "model", n_positions=most)).model(dtype=torch.float32)
    assert can_leave(model, prompts[0], partial(_write, model, sampled=False))
    assert [len(tokens) for tokens in generate(model, prompts, limits)] == limits


@torch.no_grad()
def test_a_window_that_slides_keeps_rows_to_the_end():
    model = Checkpoint.open(tiny("gemma2")).model(dtype=torch.float32)
    assert not can_leave(model, MANY[0], partial(_write, model, sampled=False))


@torch.no_grad()
def test_positions_that_count_padding_keep_rows_to_the_end():
    sizes = {"d_model": 16, "decoder_layers": 2, "decoder_attention_heads": 2, "decoder_ffn_dim": 32, "vocab_size": 96}
    model = BartForCausalLM(BartConfig(**sizes, eos_token_id=2)).eval()
    assert not can_leave(model, MANY[0], partial(_write, model, sampled=False))


@torch.no_grad()
def test_progress_is_told_within_a_batch_and_ends_at_its_end(few_rows):
    for model_type in ("llama", "gemma2"):
        model, told = Checkpoint.open(tiny(model_type)).model(dtype=torch.float32), []
        generate(
            model, MANY, LIMITS, progress=lambda stage, done, total, note="", told=told: told.append((done, total))
        )
        assert {total for _, total in told} == {sum(LIMITS)}
        assert [done for done, _ in told] == sorted(done for done, _ in told)
        assert told[-1][0] == sum(LIMITS)
        assert len(told) > 6


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
    assert seen
    assert all(seen)
