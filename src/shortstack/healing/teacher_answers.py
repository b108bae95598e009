"""The teacher's own answers to the prompts, for the shorter model to learn from.

That is self-data distillation (arXiv 2410.09982), without the original response as context.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from shortstack.checkpoint import Checkpoint
from shortstack.data import Example
from shortstack.decoder.generation import generate
from shortstack.errors import DataError, parameter
from shortstack.machine.cache import cache_directory, content_key, mark_used
from shortstack.machine.files import save_json
from shortstack.machine.progress import Progress, silent

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

        Raises:
            DataError: nothing got an answer.
        """
        prompts = [prompt for prompt in map(prompt_of, examples) if len(prompt) < self.max_length]
        key = content_key(
            "answers",
            model=self.teacher.identity,
            dtype=str(self.dtype),
            prompts=prompts,
            seed=self.seed,
            length=self.max_length,
        )
        path = cache_directory("answers") / f"{key}.json"
        if not path.exists():
            save_json(path, {"answers": self._written(prompts, progress)})
        mark_used(path)
        answers = json.loads(path.read_text(encoding="utf-8"))["answers"]
        answered = [_example(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True) if answer]
        if not answered:
            raise DataError(
                parameter("self_generate"),
                expected="prompts that leave room for an answer, and answers",
                found=f"none among {len(examples)} samples",
                fix=f"raise {parameter('max_length')}",
            )
        return answered

    def _written(self, prompts: Sequence[tuple[int, ...]], progress: Progress) -> list[list[int]]:
        model = self.teacher.model(dtype=self.dtype, device=self.device)
        rooms = [self.max_length - len(prompt) for prompt in prompts]
        return generate(model, prompts, rooms, seed=self.seed, stage="the unpruned model answers", progress=progress)


def prompt_of(example: Example) -> tuple[int, ...]:
    """The tokens before the first one to learn; the first quarter of a text, which counts whole."""
    first = example.learn.index(True)
    return example.ids[: first or max(1, len(example.ids) // TEXT_SHARE)]


def _example(prompt: Sequence[int], answer: Sequence[int]) -> Example:
    return Example((*prompt, *answer), (False,) * len(prompt) + (True,) * len(answer))
