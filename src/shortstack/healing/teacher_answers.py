"""The teacher's own answers to the prompts, for the shorter model to learn from.

That is self-data distillation (arXiv 2410.09982), without the original response as context.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from shortstack.checkpoint import Checkpoint
from shortstack.data import Example
from shortstack.decoder.generation import DRAWS, generate
from shortstack.errors import DataError
from shortstack.machine.cache import cache_directory, content_key, mark_used
from shortstack.machine.files import save_json
from shortstack.machine.progress import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KEPT = 256  # answers that are kept together: what a process that is killed may lose
TEXT_SHARE = 4  # of a text, one token in so many is the prompt


@dataclass(frozen=True)
class Answers:
    """The answers of a teacher: sampled at temperature 1 with the seed, up to max_length tokens with the prompt."""

    teacher: Checkpoint
    max_length: int
    seed: int = 0
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def to(self, examples: Sequence[Example], *, progress: Progress = silent) -> list[Example]:
        """The examples with the teacher's answers in place of their own; the answers are kept in the cache by content.

        An instruction or a chat is answered from its first response on, a text goes on from its first quarter. What gets an
        empty answer, or whose prompt leaves no room for one, is left out.
        """
        answerable = [example for example in examples if len(prompt_of(example)) < self.max_length]
        prompts = [prompt_of(example) for example in answerable]
        key = content_key(
            "answers",
            model=self.teacher.identity,
            dtype=str(self.dtype),
            device=torch.device(self.device).type,
            prompts=prompts,
            seed=self.seed,
            length=self.max_length,
            draws=[DRAWS, KEPT],
        )
        answers = self._answers(cache_directory("answers", key), prompts, progress)
        tokenizer = self.teacher.tokenizer()
        answered = [
            _answered(example, answer)
            for example, answer in zip(answerable, answers, strict=True)
            if tokenizer.decode(answer, skip_special_tokens=True).strip()  # more than an end token
        ]
        if not answered:
            raise DataError(
                f"none among {len(examples)} samples",
                expected="prompts that leave room for an answer, and answers",
                fix="raise max_length",
                option="self_generate",
            )
        return answered

    def _answers(self, kept: Path, prompts: Sequence[tuple[int, ...]], progress: Progress) -> list[list[int]]:
        """The answer to each prompt, empty ones included; in the cache KEPT at a time, as they are written."""
        mark_used(kept)
        answers: list[list[int]] = []
        model: PreTrainedModel | None = None
        for first in range(0, len(prompts), KEPT):
            path, some = kept / f"{first:07}.json", prompts[first : first + KEPT]
            if not path.exists():
                model = model or self.teacher.model(dtype=self.dtype, device=self.device)
                rooms, seed = [self.max_length - len(prompt) for prompt in some], self.seed + first
                stage = "the unpruned model answers" + (
                    f" {first} to {first + len(some)}" if len(prompts) > KEPT else ""
                )
                save_json(path, {"answers": generate(model, some, rooms, seed=seed, stage=stage, progress=progress)})
            answers += json.loads(path.read_text(encoding="utf-8"))["answers"]
        return answers


def prompt_of(example: Example) -> tuple[int, ...]:
    """The tokens before the first one to learn; the first quarter of a text, which counts whole."""
    first = example.learn.index(True)
    return example.ids[: first or max(1, len(example.ids) // TEXT_SHARE)]


def _answered(example: Example, answer: Sequence[int]) -> Example:
    prompt = prompt_of(example)
    return replace(example, ids=(*prompt, *answer), learn=(False,) * len(prompt) + (True,) * len(answer))
