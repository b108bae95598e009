"""draft(): whether a shorter model pays as the draft of its own original, whose text it is not to change."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shortstack.checkpoint import Checkpoint, Model
from shortstack.data import Tokens
from shortstack.decoder import Decoder
from shortstack.errors import InputError, parameter
from shortstack.machine.device import AUTO, Compute
from shortstack.machine.progress import Progress, in_notebooks
from shortstack.profiling.profiler import prompt_ids
from shortstack.profiling.speed import Ratio, ratio

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

QUESTIONS = (
    "What is the capital of Italy, and what is it known for?",
    "Name three things to think of before buying a used bicycle.",
    "Write a short message to a neighbour whose parcel was left with you.",
    "Why is the sky blue?",
)
TEXTS, TEXT_TOKENS = 4, 96  # windows of prose that are gone on with, beside the questions
GREEDY = {"do_sample": False, "num_beams": 1}


@dataclass(frozen=True)
class Drafting:
    """What a draft brings, over some prompts.

    draft_tokens: it proposes at a time. tokens_per_pass: new tokens for each pass over the original, which gives one alone.
    accepted: share of what was proposed. speedup: times as fast as the original alone, in turns. equal: of how many prompts
    the text is the original's own; other texts begin where two tokens are as likely, and sums were rounded otherwise.
    """

    draft: str
    original: str
    draft_tokens: int
    prompts: int
    new_tokens: int
    tokens_per_pass: float
    accepted: float
    speedup: Ratio
    equal: int

    @property
    def pays(self) -> bool:
        """Whether the slowest turn was still faster than the original alone."""
        return self.speedup.low > 1

    def to_dict(self) -> dict[str, Any]:
        return {**asdict(self), "pays": self.pays}


def draft(
    shorter: Model,
    original: Model,
    *,
    draft_tokens: int = 4,
    new_tokens: int = 64,
    compute: Compute = AUTO,
    progress: Progress = in_notebooks,
) -> Drafting:
    """Have the original write greedily, with and without the shorter model as transformers' assistant_model.

    Raises:
        InputError: the two have other vocabularies, or the device has no room for both.
    """
    shorter = Checkpoint.of(shorter)
    original = Checkpoint.of(original)
    _check(shorter, original, draft_tokens)
    tokenizer = original.tokenizer()
    models = [Decoder.open(each, compute).model for each in (original, shorter)]
    prompts = _prompts(tokenizer, models[0].device)
    runs = _Runs(models[0], models[1], draft_tokens, new_tokens)
    runs.written(prompts[0], assisted=True)  # to warm up
    alone, together, passes, equal = [], [], 0, 0
    for number, prompt in enumerate(prompts, start=1):
        plain = runs.written(prompt, assisted=False)
        assisted = runs.written(prompt, assisted=True)
        alone.append(new_tokens / plain.seconds)
        together.append(new_tokens / assisted.seconds)
        passes += assisted.passes
        equal += torch.equal(plain.ids, assisted.ids)
        progress("writing with a draft", number, len(prompts))
    written = new_tokens * len(prompts)
    return Drafting(
        shorter.source,
        original.source,
        draft_tokens,
        len(prompts),
        new_tokens,
        written / passes,
        (written - passes) / (passes * draft_tokens),
        ratio(together, alone),
        equal,
    )


@dataclass(frozen=True)
class _Written:
    """What was written after a prompt. passes: over the original."""

    ids: Tensor
    seconds: float
    passes: int


@dataclass(frozen=True)
class _Runs:
    """The two models."""

    original: PreTrainedModel
    shorter: PreTrainedModel
    draft_tokens: int
    new_tokens: int

    @torch.no_grad()
    def written(self, prompt: Tensor, *, assisted: bool) -> _Written:
        settings = self.shorter.generation_config
        settings.num_assistant_tokens, settings.num_assistant_tokens_schedule = self.draft_tokens, "constant"
        settings.assistant_confidence_threshold = 0.0
        draft = {"assistant_model": self.shorter} if assisted else {}
        length = {"max_new_tokens": self.new_tokens, "min_new_tokens": self.new_tokens}
        with _counted(self.original) as passes:
            started = time.perf_counter()
            ids = self.original.generate(
                prompt, attention_mask=torch.ones_like(prompt), pad_token_id=0, **GREEDY, **length, **draft
            )
            return _Written(ids, time.perf_counter() - started, len(passes))


@contextmanager
def _counted(model: PreTrainedModel) -> Iterator[list[None]]:
    """Something for each pass over a model."""
    passes: list[None] = []
    handle = model.register_forward_hook(lambda *_: passes.append(None))
    try:
        yield passes
    finally:
        handle.remove()


def _prompts(tokenizer: PreTrainedTokenizerBase, device: Any) -> list[Tensor]:
    """Questions, in the chat template where there is one, and prose that is gone on with."""
    windows = Tokens.read("pydoc", tokenizer, samples=TEXTS, length=TEXT_TOKENS, held_out=True).ids
    questions = [torch.tensor([prompt_ids(tokenizer, question)]) for question in QUESTIONS]
    return [prompt.to(device) for prompt in (*questions, *windows.split(1))]


def _check(shorter: Checkpoint, original: Checkpoint, draft_tokens: int) -> None:
    """Refuse models of other vocabularies.

    Raises:
        InputError: they are.
    """
    if shorter.vocabulary != original.vocabulary or shorter.tokenizer().get_vocab() != original.tokenizer().get_vocab():
        expected, found = f"the vocabulary of {shorter.source}", f"another, of {original.vocabulary:,} tokens"
        fix = "name the model that it was made from"
        raise InputError(parameter("draft_for", original.source), expected=expected, found=found, fix=fix)
    if draft_tokens < 1:
        found = str(draft_tokens)
        raise InputError(parameter("draft_tokens", draft_tokens), expected="at least one", found=found, fix="write 4")
