"""Generation after prompts, a batch at a time: greedy, or sampled from the model's distribution."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from shortstack.decoder.batching import padded
from shortstack.machine.memory import available_memory
from shortstack.machine.numbers import checked
from shortstack.machine.progress import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ROWS = 64  # that are written at once: a step reads all weights, however many rows it is for
DRAWS = 2  # goes up when a seed draws something else than before: caches are named by it
UNEQUAL, EQUAL = (5, 12), (12, 12)  # tokens of the prompts that a model is tried on
TRIED_STEPS = 3
ROUNDING = 1e-4  # of the next token's probability, in fp32; what padding breaks differs by a hundredth and more
Processor = Callable[[Tensor, Tensor], Tensor]  # ids, logits [rows, vocabulary] -> logits


@torch.no_grad()
def generate(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    max_new_tokens: Sequence[int],
    *,
    seed: int | None = None,
    stage: str = "generating",
    progress: Progress = silent,
) -> list[list[int]]:
    """Write after each prompt: up to its `max_new_tokens`, or up to an end token, that included. Return the token ids.

    Greedy, or with a seed drawn at temperature 1 from the whole distribution; each prompt has draws of its own, by the seed
    and its number, so that nothing depends on the prompts beside it. Of the checkpoint's generation config only the end
    tokens count: its penalties and cut-offs would hide what the model itself does.
    """
    written: list[list[int]] = [[] for _ in prompts]
    ends, total, done = end_tokens(model), sum(max_new_tokens), 0
    with _nothing_else_asked(model), _head_in_one_piece(model):
        for numbers in _batches(model, prompts, max_new_tokens):
            limits = [max_new_tokens[number] for number in numbers]

            def watch(tokens: int, limits: Sequence[int] = limits, done: int = done) -> None:
                progress(stage, done + sum(min(tokens, limit) for limit in limits), total)

            drawn = None if seed is None else _drawing(model, [draw_seed(seed, number) for number in numbers])
            rows = _write(model, [prompts[number] for number in numbers], limits, ends=ends, change=drawn, watch=watch)
            for number, tokens, limit in zip(numbers, rows, limits, strict=True):
                end = next((place for place, token in enumerate(tokens) if token in ends), limit)
                written[number] = tokens[: min(end + 1, limit)]  # what follows is padding
            done += sum(limits)
            progress(stage, done, total)
    return written


def draw_seed(seed: int, what: object) -> int:
    """Derive a seed for one of many draws. Of more than 32 bits torch's generator on a CPU leaves the upper ones out."""
    return int(hashlib.sha256(f"{seed} {what}".encode()).hexdigest()[:8], 16)


def longest(prompts: Sequence[Sequence[int]], max_new_tokens: Sequence[int]) -> int:
    """Count the tokens of the longest prompt with what generate() may write after it.

    A batch goes on until its last one has ended.

    >>> longest([[1, 2], [3]], [4, 6])
    8
    """
    order = _by_total(prompts, max_new_tokens)
    groups = [order[first : first + ROWS] for first in range(0, len(order), ROWS)]
    return max(max(len(prompts[n]) for n in group) + max(max_new_tokens[n] for n in group) for group in groups)


def _batches(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], max_new_tokens: Sequence[int]
) -> Iterator[list[int]]:
    """Yield the numbers of prompts that are written together, those first that come to fewer tokens."""
    waiting = [number for number in _by_total(prompts, max_new_tokens) if max_new_tokens[number] > 0]
    if not waiting:
        return
    most = _rows(model, longest(prompts, max_new_tokens))
    for group in _groups(model, prompts, waiting):
        yield from (group[first : first + most] for first in range(0, len(group), most))


def _groups(model: PreTrainedModel, prompts: Sequence[Sequence[int]], waiting: list[int]) -> list[list[int]]:
    """Group prompts that the model may be given together: all of them, those of one length, or each alone.

    Some models count positions or sum up states over padding, others mix the rows of a batch.
    """
    if len(waiting) < 2 or (not _sees_lengths(model) and _writes_as_alone(model, UNEQUAL)):
        return [waiting]
    if not _writes_as_alone(model, EQUAL):
        return [[number] for number in waiting]
    by_length: dict[int, list[int]] = {}
    for number in waiting:
        by_length.setdefault(len(prompts[number]), []).append(number)
    return list(by_length.values())


def _sees_lengths(model: PreTrainedModel) -> bool:
    """Return whether a longer row in the batch changes what others get, beyond the lengths that a model is tried on.

    Positions may be scaled by the longest row, and attention to the k places of the highest scores counts padding.
    """
    config = model.config.get_text_config(decoder=True)
    ropes = getattr(config, "rope_parameters", None) or {}
    kinds = {rope.get("rope_type") for rope in (ropes, *ropes.values()) if isinstance(rope, dict)}
    return bool(kinds & {"dynamic", "longrope"}) or getattr(config, "index_topk", None) is not None


def _writes_as_alone(model: PreTrainedModel, lengths: Sequence[int]) -> bool:
    """Say whether a batch of prompts of these lengths gets the probabilities that each gets alone, up to rounding."""
    vocabulary = model.config.get_text_config(decoder=True).vocab_size
    starts = [vocabulary // 2 + row for row in range(len(lengths))]  # no special tokens there
    prompts = [
        [(start + place) % vocabulary for place in range(length)] for start, length in zip(starts, lengths, strict=True)
    ]
    together = _probabilities(model, prompts)
    alone = torch.cat([_probabilities(model, [prompt]) for prompt in prompts])
    differing = (together - alone).abs().sum(-1).mean(-1).max() / 2  # of the row that differs most
    return float(differing) <= max(ROUNDING, 8 * torch.finfo(model.dtype).eps)


def _probabilities(model: PreTrainedModel, prompts: Sequence[Sequence[int]]) -> Tensor:
    """Compute each token's probabilities, [rows, TRIED_STEPS, vocabulary], as a prompt's last token is written again."""
    seen: list[Tensor] = []

    def repeat(ids: Tensor, logits: Tensor) -> Tensor:
        seen.append(logits.softmax(-1))
        return torch.zeros_like(logits).scatter_(1, ids[:, -1:], 1.0)

    _write(model, prompts, [TRIED_STEPS] * len(prompts), change=repeat)
    return torch.stack(seen, 1)


def _by_total(prompts: Sequence[Sequence[int]], limits: Sequence[int]) -> list[int]:
    """Order the prompts' numbers, those first that come to fewer tokens with what may be written after them."""
    return sorted(range(len(prompts)), key=lambda number: (len(prompts[number]) + limits[number], len(prompts[number])))


def _rows(model: PreTrainedModel, tokens: int) -> int:
    """Return ROWS, or as many rows as half of the free memory holds the logits, keys and values of, these at their most."""
    config = model.config.get_text_config(decoder=True)
    keys_and_values = 2 * config.num_hidden_layers * config.hidden_size * tokens * model.dtype.itemsize
    logits = 4 * 4 * config.vocab_size  # a few copies in fp32
    room = available_memory(str(model.device)) // 2
    fits = min(ROWS, room // int(keys_and_values + logits))
    return 1 << max(0, fits.bit_length() - 1)  # so that batches are parts of those of ROWS, which longest() looks at


def _write(
    model: PreTrainedModel,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    *,
    ends: frozenset[int] = frozenset(),
    change: Processor | None = None,
    watch: Callable[[int], None] = lambda _tokens: None,
) -> list[list[int]]:
    """Generate with transformers after each prompt, at least up to its limit or an end token; padding may follow.

    change: of the logits, before the largest is taken. watch: called with the number of tokens written.
    """
    from transformers import GenerationConfig

    ids = padded(prompts, model.device, left=True)
    mask = padded([[1] * len(prompt) for prompt in prompts], model.device, left=True)
    most, before = torch.tensor(limits, device=ids.device), ids.shape[1]

    def stop(so_far: Tensor, _scores: Tensor) -> Tensor:
        if so_far.shape[1] - before < max(limits):  # the end is told by who knows what was written
            watch(so_far.shape[1] - before)
        return so_far.shape[1] - before >= most

    config = GenerationConfig(
        do_sample=False,
        max_new_tokens=max(limits),
        eos_token_id=sorted(ends) or None,
        pad_token_id=min(ends, default=0),
    )
    written = model.generate(
        ids,
        attention_mask=mask,
        generation_config=config,
        logits_processor=[] if change is None else [change],
        stopping_criteria=[stop],
    )
    rows: list[list[int]] = written[:, before:].tolist()
    return rows


def _drawing(model: PreTrainedModel, seeds: Sequence[int]) -> Processor:
    """Make logits whose largest is a draw from their distribution: with Gumbel noise, of a generator for each row."""
    generators = [torch.Generator(model.device).manual_seed(seed) for seed in seeds]

    def drawn(_ids: Tensor, logits: Tensor) -> Tensor:
        checked(float(logits.sum()), "the logits that text is drawn from")
        noise = [torch.empty_like(logits[0]).exponential_(generator=generator) for generator in generators]
        return logits - torch.stack(noise).log_()

    return drawn


@contextmanager
def _nothing_else_asked(model: PreTrainedModel) -> Iterator[None]:
    """Hide, while it lasts, the checkpoint's own generation config: transformers takes from it what is not stated."""
    from transformers import GenerationConfig

    own_config = model.generation_config
    model.generation_config = GenerationConfig()
    try:
        yield
    finally:
        model.generation_config = own_config


@contextmanager
def _head_in_one_piece(model: PreTrainedModel) -> Iterator[None]:
    """Make what enters the head contiguous, while it lasts.

    Of a prompt the head gets the last position alone, a slice of all; of that torch makes a product for each row, and copies
    the head's weights for each of them: 64 rows of SmolLM2 took 3.4 GB.
    """
    head = model.get_output_embeddings()
    if head is None:
        yield
        return
    hook = head.register_forward_pre_hook(lambda _head, args: (args[0].contiguous(), *args[1:]))
    try:
        yield
    finally:
        hook.remove()


def end_tokens(model: PreTrainedModel) -> frozenset[int]:
    """Return the tokens that end what a model writes."""
    ends = model.generation_config.eos_token_id
    return frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])
