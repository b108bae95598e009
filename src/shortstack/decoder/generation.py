"""What a model writes after prompts, a batch at a time: greedy, or drawn from its own distribution."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from shortstack.decoder.batching import by_length, padded
from shortstack.machine.memory import available_memory
from shortstack.machine.numbers import checked
from shortstack.machine.progress import Progress, silent

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

ROWS = 64  # that are written at once: a step reads all weights, however many rows it is for


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
    """The token ids written after each prompt: up to its `max_new_tokens`, or up to an end token, that included.

    Greedy, or with a seed drawn at temperature 1 from the whole distribution. Penalties and cut-offs that the checkpoint
    asks for are left aside: they would hide what the model itself does.

    Raises:
        ShortstackError: logits to draw from are no numbers.
    """
    written: list[list[int]] = [[] for _ in prompts]
    if not prompts:
        return written
    groups = _groups(prompts, max_new_tokens, _rows(model, longest(prompts, max_new_tokens)))
    with _seeded(seed):
        for count, numbers in enumerate(groups, start=1):
            some, limits = [prompts[number] for number in numbers], [max_new_tokens[number] for number in numbers]
            for number, tokens in zip(numbers, _batch(model, some, limits, sampled=seed is not None), strict=True):
                written[number] = tokens
            progress(stage, count, len(groups))
    return written


def longest(prompts: Sequence[Sequence[int]], max_new_tokens: Sequence[int]) -> int:
    """Tokens of the longest prompt with what generate() may write after it: a batch goes on until its last one has ended.

    >>> longest([[1, 2], [3]], [4, 6])
    8
    """
    groups = _groups(prompts, max_new_tokens, ROWS)
    return max(max(len(prompts[n]) for n in group) + max(max_new_tokens[n] for n in group) for group in groups)


def _groups(prompts: Sequence[Sequence[int]], limits: Sequence[int], rows: int) -> list[list[int]]:
    """Which prompts go together: those of alike length, so many at once."""
    order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
    groups = by_length([len(prompts[number]) + limits[number] for number in order], batch=rows)
    return [[order[place] for place in group] for group in groups]


def _rows(model: PreTrainedModel, tokens: int) -> int:
    """ROWS, or as many as half of the free memory holds keys, values and logits of, at the most an architecture keeps."""
    config = model.config.get_text_config()
    keys_and_values = 2 * config.num_hidden_layers * config.hidden_size * tokens * model.dtype.itemsize
    logits = 4 * 4 * config.vocab_size  # a few copies in fp32
    room = available_memory(str(model.device)) // 2
    return max(1, min(ROWS, room // int(keys_and_values + logits)))


def _batch(
    model: PreTrainedModel, prompts: Sequence[Sequence[int]], limits: Sequence[int], *, sampled: bool
) -> list[list[int]]:
    """One batch, padded on the left so that all go on from the same place."""
    longest, ends = max(map(len, prompts)), _ends(model)
    ids = padded(prompts, model.device, left=True)
    mask = padded([[1] * len(prompt) for prompt in prompts], model.device, left=True)
    settings = _settings(max(limits), ends, sampled=sampled)
    with _head_in_one_piece(model):
        written = model.generate(
            ids, attention_mask=mask, generation_config=settings, logits_processor=[_numbers] if sampled else None
        )[:, longest:].tolist()
    return [_ended(tokens, ends)[:limit] for tokens, limit in zip(written, limits, strict=True)]


@contextmanager
def _head_in_one_piece(model: PreTrainedModel) -> Iterator[None]:
    """While it lasts, what enters the head is contiguous.

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


def _numbers(_ids: Tensor, scores: Tensor) -> Tensor:
    """The logits [rows, vocabulary], if they are numbers: drawing from others ends in an error that names nothing."""
    checked(float(scores.sum()), "the logits that text is drawn from")
    return scores


def _settings(limit: int, ends: frozenset[int], *, sampled: bool) -> GenerationConfig:
    """All that shapes the distribution is stated: transformers takes what is not from the checkpoint."""
    from transformers import GenerationConfig

    drawn = {"temperature": 1.0, "top_k": 0, "top_p": 1.0} if sampled else {}
    return GenerationConfig(
        do_sample=sampled,
        max_new_tokens=limit,
        min_new_tokens=0,
        num_beams=1,
        repetition_penalty=1.0,
        no_repeat_ngram_size=0,
        eos_token_id=sorted(ends) or None,
        pad_token_id=min(ends, default=0),
        **drawn,
    )


def _ended(tokens: Sequence[int], ends: frozenset[int]) -> list[int]:
    """The tokens up to the end token, that included; what follows is padding."""
    place = next((place for place, token in enumerate(tokens) if token in ends), len(tokens))
    return list(tokens[: place + 1])


def _ends(model: PreTrainedModel) -> frozenset[int]:
    ends = model.generation_config.eos_token_id
    return frozenset(ends if isinstance(ends, list) else [] if ends is None else [ends])


@contextmanager
def _seeded(seed: int | None) -> Iterator[None]:
    """While it lasts, torch draws by the seed; after it as before."""
    with torch.random.fork_rng(enabled=seed is not None):
        if seed is not None:
            torch.manual_seed(seed)
        yield
