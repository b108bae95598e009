"""What a model writes after prompts, a batch at a time: greedy, or drawn from its own distribution."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shortstack.decoder.batching import BATCH_TOKENS
from shortstack.decoder.rows import Rows, Write, can_leave, side_by_side
from shortstack.machine.memory import available_memory
from shortstack.machine.numbers import checked
from shortstack.machine.progress import Progress, silent

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedModel

ROWS = 64  # that are written at once: a step reads all weights, however many rows it is for
FREE = 4  # others enter when one place in so many is free
BURST = 16  # tokens between two looks at which rows have ended
DRAWN = (ROWS, FREE, BURST, BATCH_TOKENS)  # what is drawn by a seed depends on


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
    work = Work(prompts, max_new_tokens, _ends(model), partial(progress, stage))
    if not work.waiting:
        return work.written
    write = partial(_write, model, sampled=seed is not None)
    most = _rows(model, longest(prompts, max_new_tokens))
    with _seeded(seed), _head_in_one_piece(model):
        if len(work.waiting) > 1 and can_leave(model, prompts[work.waiting[0]], partial(_write, model, sampled=False)):
            _in_and_out(model, work, most, write)
        else:
            _batch_by_batch(model, work, most, sampled=seed is not None)
    return work.written


def _in_and_out(model: PreTrainedModel, work: Work, most: int, write: Write) -> None:
    """So many rows at once: those that have ended leave, and the next ones enter."""
    rows, room = None, longest(work.prompts, work.limits)
    while rows or work.waiting:
        entering = not rows or (most - len(rows)) * FREE >= most
        while entering and work.waiting and len(rows or ()) < most:
            new = Rows.of(work.next(most - len(rows or ()), tokens=BATCH_TOKENS), work.prompts, model)
            new.leave(work.add(new.go_on(1, write)))
            rows = rows.joined(new) if rows else new
        if rows:
            tokens = min(BURST, work.left(rows.numbers), room - rows.longest)
            rows.leave(work.add(rows.go_on(tokens, write)))


def _batch_by_batch(model: PreTrainedModel, work: Work, most: int, *, sampled: bool) -> None:
    """So many rows at once, each batch to its end."""
    while work.waiting:
        numbers = work.next(most)
        ids, mask = side_by_side([work.prompts[number] for number in numbers], model)
        told = partial(_tell, work, numbers)
        written, _ = _write(model, ids, mask, work.left(numbers), None, sampled=sampled, watch=told)
        work.add(dict(zip(numbers, written[:, ids.shape[1] :].tolist(), strict=True)))


def _tell(work: Work, numbers: Sequence[int], tokens: int) -> None:
    work.tell(dict.fromkeys(numbers, tokens))


def longest(prompts: Sequence[Sequence[int]], max_new_tokens: Sequence[int]) -> int:
    """Tokens of the longest prompt with what generate() may write after it: a batch goes on until its last one has ended.

    >>> longest([[1, 2], [3]], [4, 6])
    8
    """
    order = by_total(prompts, max_new_tokens)
    groups = [order[first : first + ROWS] for first in range(0, len(order), ROWS)]
    return max(max(len(prompts[n]) for n in group) + max(max_new_tokens[n] for n in group) for group in groups)


@dataclass
class Work:
    """What is to be written, what has been, and what waits for its turn."""

    prompts: Sequence[Sequence[int]]
    limits: Sequence[int]
    ends: frozenset[int]
    progress: Callable[..., None]

    def __post_init__(self) -> None:
        self.written: list[list[int]] = [[] for _ in self.prompts]
        self.waiting = [number for number in by_total(self.prompts, self.limits) if self.limits[number] > 0]
        self.begun = time.monotonic()

    def next(self, most: int, *, tokens: int | None = None) -> list[int]:
        """The next ones, at most so many, whose prompts come to so many tokens with padding; they wait no longer."""
        longest, count = 0, 0
        for number in self.waiting[:most]:
            longest = max(longest, len(self.prompts[number]))
            if count and tokens and (count + 1) * longest > tokens:
                break
            count += 1
        numbers, self.waiting = self.waiting[:count], self.waiting[count:]
        return numbers

    def add(self, tokens: Mapping[int, Sequence[int]]) -> list[int]:
        """Take what was written after these; those that have ended."""
        for number, some in tokens.items():
            self.written[number] += _ended(some, self.ends)[: self.limits[number] - len(self.written[number])]
        self.tell({})
        return [number for number in tokens if self._done(number)]

    def left(self, numbers: Sequence[int]) -> int:
        """Tokens that the one of these with the most to write may still write."""
        return max(self.limits[number] - len(self.written[number]) for number in numbers)

    def tell(self, ahead: Mapping[int, int]) -> None:
        """How far it is; what has ended counts as written to its limit. ahead: tokens written and not yet added."""
        written = sum(map(len, self.written)) + sum(min(tokens, self.limits[n]) for n, tokens in ahead.items())
        unused = sum(self.limits[n] - len(self.written[n]) for n in range(len(self.prompts)) if self._done(n))
        spent = time.monotonic() - self.begun
        note = f"{written / spent:,.0f} tokens/s" if spent > 0 else ""
        self.progress(written + unused, sum(self.limits), note=note)

    def _done(self, number: int) -> bool:
        written = self.written[number]
        return len(written) == self.limits[number] or (bool(written) and written[-1] in self.ends)


def by_total(prompts: Sequence[Sequence[int]], limits: Sequence[int]) -> list[int]:
    """The prompts' numbers, those first that come to fewer tokens with what may be written after them."""
    return sorted(range(len(prompts)), key=lambda number: (len(prompts[number]) + limits[number], len(prompts[number])))


def _rows(model: PreTrainedModel, tokens: int) -> int:
    """ROWS, or as many as half of the free memory holds keys, values and logits of, at the most an architecture keeps."""
    config = model.config.get_text_config()
    keys_and_values = 2 * config.num_hidden_layers * config.hidden_size * tokens * model.dtype.itemsize
    logits = 4 * 4 * config.vocab_size  # a few copies in fp32
    room = available_memory(str(model.device)) // 2
    fits = min(ROWS, room // int(keys_and_values + logits))
    return 1 << max(0, fits.bit_length() - 1)  # so that batches are parts of those of ROWS, which longest() looks at


def _write(
    model: PreTrainedModel,
    ids: Tensor,
    mask: Tensor,
    tokens: int,
    cache: Any,
    *,
    sampled: bool,
    watch: Callable[[int], None] | None = None,
) -> tuple[Tensor, Any]:
    """ids [rows, tokens] and up to so many more after each, padding after an end token; and the model's cache.

    cache: of all tokens but the last; None where nothing has been read yet. watch: called with the number of tokens written.
    """
    before, ended = ids.shape[1], torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    def watched(so_far: Tensor, _scores: Tensor) -> Tensor:
        if watch is not None:
            watch(so_far.shape[1] - before)
        return ended

    name = cache_name()
    written = model.generate(
        ids,
        attention_mask=mask,
        generation_config=_settings(tokens, _ends(model), sampled=sampled),
        logits_processor=[_numbers] if sampled else None,
        stopping_criteria=[watched],
        **({} if cache is None else {name: cache}),
    )
    return written.sequences, getattr(written, name)


def cache_name() -> str:
    """What generate() calls the cache, in its arguments and its result: it was renamed."""
    from transformers.generation import GenerateDecoderOnlyOutput

    return "cache" if hasattr(GenerateDecoderOnlyOutput, "cache") else "past_key_values"


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
        return_dict_in_generate=True,  # not beside a config, where transformers warns of it
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
