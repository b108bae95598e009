"""The evaluations of the base model and of the pruned model: the same for both, as far as there is time."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from shortstack.checkpoint import Checkpoint
from shortstack.decoder import Decoder
from shortstack.decoder.generation import generate
from shortstack.evaluation import EvalConfig, EvalResult, evaluate
from shortstack.machine.clock import Clock
from shortstack.machine.device import Compute
from shortstack.machine.progress import Progress
from shortstack.profiling import Timing, profile
from shortstack.profiling.profiler import prompt_ids
from shortstack.shrinking.budget import Budget
from shortstack.shrinking.options import ShrinkOptions
from shortstack.shrinking.result import Measured, Speed

PROMPTS = (
    "What is the capital of France, and what is the city known for?",
    "Write two sentences about why people keep gardens.",
    'Text: "Anna keeps the red lamp in the kitchen and the green bottle in the garden." '
    "Where does Anna keep the green bottle?",
)
ANSWER_TOKENS = 48
TIMING = Timing("1", prompt=128, new_tokens=32, repeats=3)


class TimeOver(Exception):
    """Leaves a measure when the time is over."""


def measure(
    checkpoint: Checkpoint,
    configs: Sequence[tuple[str, EvalConfig]],
    *,
    compute: Compute,
    progress: Progress,
    until: Clock | None = None,
) -> Measured:
    """Evaluate a model by each config, and ask it PROMPTS. configs: with what they measure; the first is never skipped.

    until: after it nothing begins, and what has begun is left.
    """
    began, result, skipped = time.monotonic(), EvalResult(checkpoint.source), list[str]()

    def watched(stage: str, done: int, total: int, /, *, note: str = "") -> None:
        if until and until.over and result.perplexity:
            raise TimeOver
        progress(stage, done, total, note=note)

    for name, config in configs:
        try:
            watched(f"measuring {name}", 0, 1)
            some = evaluate(checkpoint, config, compute=compute, progress=watched)
        except TimeOver:
            skipped.append(name)
            continue
        merged: dict[str, Any] = {
            part: {**getattr(result, part), **getattr(some, part)} for part in ("perplexity", "probes", "tasks")
        }
        result = replace(result, **merged)
    answers: tuple[str, ...] = ()
    try:
        answers = answer(checkpoint, compute, watched)
    except TimeOver:
        skipped.append("answers")
    return Measured(result, answers, tuple(skipped), time.monotonic() - began)


def configs(options: ShrinkOptions, budget: Budget, subtasks: Mapping[str, int]) -> Iterator[tuple[str, EvalConfig]]:
    """Yield what is measured of both models, in order of importance: texts, probes, each task."""
    yield "perplexity", options.evaluation(budget.perplexity_windows, 0, 0)
    if budget.probe_items:
        yield "probes", options.evaluation(0, budget.probe_items, 0)
    for name in options.evaluation(0, 0, budget.documents).tasks if options.tasks else ():
        documents = budget.documents
        if documents != options.limit and isinstance(documents, int):  # of a group as many in all
            documents = max(1, documents // subtasks.get(name, 1))
        yield name, replace(options.evaluation(0, 0, documents), tasks=(name,))


def answer(checkpoint: Checkpoint, compute: Compute, progress: Progress) -> tuple[str, ...]:
    """Generate a model's answers to PROMPTS."""
    model, tokenizer = Decoder.open(checkpoint, replace(compute, stream=False)).model, checkpoint.tokenizer()
    prompts = [prompt_ids(tokenizer, prompt) for prompt in PROMPTS]
    written = generate(model, prompts, [ANSWER_TOKENS] * len(prompts), stage="answering", progress=progress)
    return tuple(tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in written)


def side_by_side(base: Sequence[str], pruned: Sequence[str]) -> list[dict[str, str]]:
    """Return each prompt with the models' answers; a model without answers is left out."""
    by_model = {name: said for name, said in (("base", base), ("pruned", pruned)) if said}
    rows = zip(PROMPTS, *by_model.values(), strict=True) if by_model else ()
    return [dict(zip(("prompt", *by_model), said, strict=True)) for said in rows]


def time_both(pruned: Checkpoint, base: Checkpoint, compute: Compute, progress: Progress) -> Speed:
    """Time both models in turns, one text at a time."""
    measured = profile(pruned, base=base, timing=TIMING, compute=compute, progress=progress)
    if measured.untimed or not measured.ratios:
        return Speed(reason=measured.untimed)
    ratios = measured.ratios[0]
    return Speed(ratios.prefill, ratios.decode)
