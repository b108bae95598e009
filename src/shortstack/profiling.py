"""Decode speed and answers of a loaded model, as a user meets them: greedy generation with the cache on."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from transformers.generation import BaseStreamer

from shortstack.generating import generate
from shortstack.progress import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Speed:
    """New tokens per second with one sequence, prefill excluded: the median of `repeats` runs, and their spread."""

    decode_tokens_per_s: float
    slowest: float
    fastest: float
    repeats: int


@torch.no_grad()
def decode_speeds(
    models: Sequence[PreTrainedModel],
    *,
    prompt_tokens: int = 32,
    new_tokens: int = 32,
    repeats: int = 5,
    progress: Progress = silent,
) -> list[Speed]:
    """Decode speed of each model; their runs take turns, so that a noisy machine hits all of them alike."""
    rates: list[list[float]] = [[] for _ in models]
    for turn in range(repeats + 1):  # the first turn warms up
        for model, found in zip(models, rates, strict=True):
            rate = _decode_rate(model, prompt_tokens, new_tokens)
            if turn:
                found.append(rate)
        progress("timing decoding", turn + 1, repeats + 1)
    return [Speed(statistics.median(found), min(found), max(found), repeats) for found in rates]


def _decode_rate(model: PreTrainedModel, prompt_tokens: int, new_tokens: int) -> float:
    """Tokens per second from the first new token to the last, as generate() hands them out."""
    ids, clock = torch.arange(3, 3 + prompt_tokens, device=model.device)[None], _Clock()
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=1 + new_tokens,
        min_new_tokens=1 + new_tokens,
        do_sample=False,
        pad_token_id=0,
        streamer=clock,
    )
    _prompt, first, *later = clock.times
    return len(later) / (later[-1] - first)


class _Clock(BaseStreamer):  # type: ignore[misc]  # transformers is untyped here
    """When the prompt and each new token came out of generate(), in seconds."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """generate() calls it after the last token."""


def answer(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, *, new_tokens: int = 48) -> str:
    """The greedy answer to a prompt, in the model's chat template when it has one."""
    if tokenizer.chat_template:
        said = [{"role": "user", "content": prompt}]
        ids = tokenizer.apply_chat_template(said, add_generation_prompt=True, return_dict=True)["input_ids"]
    else:
        ids = tokenizer(prompt)["input_ids"]
    (written,) = generate(model, [ids], [new_tokens])
    return str(tokenizer.decode(written, skip_special_tokens=True)).strip()
