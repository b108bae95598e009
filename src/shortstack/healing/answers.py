"""Targets that the unpruned model writes itself: it answers the prompts, and the shorter model learns from that
(self-data distillation, arXiv 2410.09982, without the original response as context).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch

from shortstack.activations import content_key
from shortstack.cache import cache_directory
from shortstack.checkpoint import Checkpoint
from shortstack.errors import DataError
from shortstack.examples import Example
from shortstack.jsonfiles import save_json
from shortstack.progress import Progress, silent
from shortstack.walk import by_length

TEXT_SHARE = 4  # of a text, one token in so many is the prompt


@dataclass(frozen=True)
class Answers:
    """How a teacher answers: sampled at temperature 1 with the seed, up to max_length tokens with the prompt."""

    teacher: Checkpoint
    max_length: int
    seed: int = 0
    device: str = "cpu"
    dtype: torch.dtype = torch.float32

    def to(self, examples: Sequence[Example], *, progress: Progress = silent) -> list[Example]:
        """The examples with what the teacher says in place of what they say; kept in the cache by content.

        An instruction or a chat is answered from its first response on, a text goes on from its first quarter. What gets an
        empty answer, or whose prompt leaves no room for one, is left out.

        Raises:
            DataError: nothing got an answer.
        """
        prompts = [prompt for prompt in map(prompt_of, examples) if len(prompt) < self.max_length]
        key = content_key(
            weights=self.teacher.weights_sha256,
            config=self.teacher.config,
            dtype=str(self.dtype),
            prompts=prompts,
            seed=self.seed,
            length=self.max_length,
        )
        path = cache_directory("answers") / f"{key}.json"
        if not path.exists():
            save_json(path, {"answers": self._asked(prompts, progress)})
        answers = json.loads(path.read_text(encoding="utf-8"))["answers"]
        found = [_example(prompt, answer) for prompt, answer in zip(prompts, answers, strict=True) if answer]
        if not found:
            raise DataError(
                "--self-generate",
                expected="prompts that leave room for an answer, and answers",
                found=f"none among {len(examples)} samples",
                fix="raise --max-length",
            )
        return found

    @torch.no_grad()
    def _asked(self, prompts: Sequence[tuple[int, ...]], progress: Progress) -> list[list[int]]:
        model = self.teacher.model(dtype=self.dtype, device=self.device)
        answers: list[list[int]] = [[] for _ in prompts]
        # A group is as large as its samples are with their answers.
        room = [self.max_length] * len(prompts)
        order = sorted(range(len(prompts)), key=lambda number: len(prompts[number]))
        groups = [[order[place] for place in group] for group in by_length(room)]
        with _seeded(self.seed):
            for count, group in enumerate(groups, start=1):
                for number, answer in zip(group, self._answered(model, [prompts[n] for n in group]), strict=True):
                    answers[number] = answer
                progress("the unpruned model answers", count, len(groups))
        return answers

    def _answered(self, model: Any, prompts: Sequence[tuple[int, ...]]) -> list[list[int]]:
        from transformers import GenerationConfig

        longest = max(map(len, prompts))
        ends = _ends(model)
        settings = GenerationConfig(
            do_sample=True,
            temperature=1.0,
            top_k=0,
            max_new_tokens=self.max_length - min(map(len, prompts)),
            eos_token_id=sorted(ends) or None,
            pad_token_id=min(ends, default=0),
        )
        ids = torch.tensor([[0] * (longest - len(prompt)) + [*prompt] for prompt in prompts], device=self.device)
        mask = torch.tensor(
            [[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts], device=self.device
        )
        written = model.generate(ids, attention_mask=mask, generation_config=settings)[:, longest:].tolist()
        return [
            _ended(answer, ends)[: self.max_length - len(prompt)]
            for prompt, answer in zip(prompts, written, strict=True)
        ]


def prompt_of(example: Example) -> tuple[int, ...]:
    """What comes before the first token to learn; of a text, which counts whole, its first quarter."""
    first = example.learn.index(True)
    return example.ids[: first or max(1, len(example.ids) // TEXT_SHARE)]


def _example(prompt: Sequence[int], answer: Sequence[int]) -> Example:
    return Example((*prompt, *answer), (False,) * len(prompt) + (True,) * len(answer))


def _ended(answer: Sequence[int], ends: frozenset[int]) -> list[int]:
    """The answer up to its end token, that included; what follows is padding."""
    place = next((place for place, token in enumerate(answer) if token in ends), len(answer))
    return list(answer[: place + 1])


def _ends(model: Any) -> frozenset[int]:
    found = model.generation_config.eos_token_id
    return frozenset(found if isinstance(found, list) else [] if found is None else [found])


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """While it lasts, torch draws by the seed; after it as before."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        yield
