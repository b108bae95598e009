"""References for a shortened model: the unpruned model's answers and speed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from shortstack.checkpoint import Checkpoint
from shortstack.decoder import Decoder
from shortstack.decoder.generation import generate
from shortstack.decoder.wrapping import arithmetic
from shortstack.machine.device import Compute, pick_device
from shortstack.machine.progress import Progress, silent
from shortstack.profiling import Timing, profile
from shortstack.profiling.profiler import prompt_ids
from shortstack.profiling.speed import Ratio

PROMPTS = (
    "What is the capital of France, and what is the city known for?",
    "Write two sentences about why people keep gardens.",
    'Text: "Anna keeps the red lamp in the kitchen and the green bottle in the garden." '
    "Where does Anna keep the green bottle?",
)
ANSWER_TOKENS = 48
TIMING = Timing("1", prompt=128, new_tokens=32, repeats=3)


NO_TIME = "no time was left for it"


@dataclass(frozen=True)
class Speed:
    """Of the cut beside the unpruned model. reason: why nothing was timed."""

    prefill: Ratio | None = None
    decode: Ratio | None = None
    reason: str = ""


def late(tried: Speed) -> bool:
    """Say whether it was left out for want of time."""
    return tried.reason == NO_TIME


def answers(checkpoint: Checkpoint, compute: Compute, progress: Progress = silent) -> tuple[str, ...]:
    """Generate a model's answers to PROMPTS."""
    model, tokenizer = loaded(checkpoint, compute).model, checkpoint.tokenizer()
    prompts = [prompt_ids(tokenizer, prompt) for prompt in PROMPTS]
    written = generate(model, prompts, [ANSWER_TOKENS] * len(prompts), stage="answering", progress=progress)
    return tuple(tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in written)


def speed(cut: Checkpoint, unpruned: Checkpoint, compute: Compute, progress: Progress = silent) -> Speed:
    """Time both models in turns, one text at a time."""
    measured = profile(cut, base=unpruned, timing=TIMING, compute=compute, progress=progress)
    if not measured.ratios:
        return Speed(reason=measured.untimed)
    return Speed(measured.ratios[0].prefill, measured.ratios[0].decode)


def loaded(checkpoint: Checkpoint, compute: Compute) -> Decoder:
    device = pick_device(compute.device)
    return Decoder.load(checkpoint, dtype=arithmetic(compute.dtype, checkpoint, device), device=device)


def beside(unpruned: Sequence[str], shortened: Sequence[str]) -> list[dict[str, str]]:
    """Set each prompt beside what the models say to it; leave out models without answers."""
    by_model = {name: said for name, said in (("unpruned", unpruned), ("shortened", shortened)) if said}
    rows = zip(PROMPTS, *by_model.values(), strict=True) if by_model else ()
    return [dict(zip(("prompt", *by_model), said, strict=True)) for said in rows]
