"""References for a shortened model: the unpruned model's answers and speed, its int8 version, and cutting the last
layers.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.record import skipped_layers
from shortstack.data import Tokens
from shortstack.decoder import Decoder
from shortstack.decoder.decoder import UNPRUNED
from shortstack.decoder.generation import generate
from shortstack.decoder.quantisation import INT8, quantise, saved_bytes, uncovered
from shortstack.decoder.wrapping import arithmetic
from shortstack.evaluation.perplexity import Perplexity, measure
from shortstack.machine.device import Compute, pick_device
from shortstack.machine.progress import Progress, silent
from shortstack.profiling import Timing, profile
from shortstack.profiling.profiler import prompt_ids
from shortstack.profiling.speed import Ratio
from shortstack.runs.records import TailCurve
from shortstack.scoring.measurement import Measurement, MeasurementSpec
from shortstack.scoring.metrics import METRICS

PROMPTS = (
    "What is the capital of France, and what is the city known for?",
    "Write two sentences about why people keep gardens.",
    'Text: "Anna keeps the red lamp in the kitchen and the green bottle in the garden." '
    "Where does Anna keep the green bottle?",
)
ANSWER_TOKENS = 48
TIMING = Timing((1,), prompt=128, new_tokens=32, repeats=3)
WINDOWS, DEPTHS = 2, 8  # of the text; of the curve, to half of the layers


@dataclass(frozen=True)
class Int8:
    """The unpruned model with the matrices of its layers in int8: bytes of weights, and the perplexity of each text.

    reason: why there is none of it.
    """

    bytes: int | None = None
    perplexity: Mapping[str, float] | None = None
    reason: str = ""


@dataclass(frozen=True)
class Speed:
    """Of the cut beside the unpruned model. reason: why nothing was timed."""

    prefill: Ratio | None = None
    decode: Ratio | None = None
    reason: str = ""


def answers(checkpoint: Checkpoint, compute: Compute, progress: Progress = silent) -> tuple[str, ...]:
    """Generate a model's answers to PROMPTS."""
    model, tokenizer = loaded(checkpoint, compute).model, checkpoint.tokenizer()
    prompts = [prompt_ids(tokenizer, prompt) for prompt in PROMPTS]
    written = generate(model, prompts, [ANSWER_TOKENS] * len(prompts), stage="answering", progress=progress)
    return tuple(tokenizer.decode(tokens, skip_special_tokens=True).strip() for tokens in written)


def speed(cut: Checkpoint, unpruned: Checkpoint, compute: Compute, progress: Progress = silent) -> Speed:
    """Both models in turns, one text at a time."""
    measured = profile(cut, against=unpruned, timing=TIMING, compute=compute, progress=progress)
    if measured.untimed or not measured.against:
        return Speed(reason=measured.untimed)
    ratios = measured.against.ratios[0]
    return Speed(ratios.prefill, ratios.decode)


@torch.no_grad()
def int8(unpruned: Checkpoint, windows: Mapping[str, Tokens], compute: Compute, progress: Progress = silent) -> Int8:
    """The unpruned model in int8, on the same windows as every other measurement of these texts."""
    if missing := INT8.missing(pick_device(compute.device)):
        return Int8(reason=missing)
    decoder = loaded(unpruned, compute)
    if uncovered_by := uncovered(decoder):
        return Int8(reason=uncovered_by)
    nbytes = unpruned.weight_bytes - saved_bytes(unpruned, quantise(decoder, INT8))
    return Int8(nbytes, {name: measure(decoder, text, progress=progress).value for name, text in windows.items()})


def tail_curve(
    cut: Checkpoint, unpruned: Checkpoint, text: Tokens, compute: Compute, progress: Progress = silent
) -> TailCurve:
    """The loss of a model without so many of its last layers, and without those of a cut; one walk."""
    decoder, tokens, removed = loaded(unpruned, compute), few(text), skipped_layers(cut, unpruned)
    layers = len(decoder.layers)
    amounts = depths(layers, [len(removed)])
    tails = [frozenset(range(layers - amount, layers)) for amount in amounts]
    spec = MeasurementSpec([METRICS["ppl"]], singles=False, sets=[UNPRUNED, *tails, removed])
    run = Measurement(decoder, tokens, spec, progress=progress, stage="cutting the last layers").go()
    losses = tuple(run.loss(tail) for tail in tails)
    samples, length = tokens.ids.shape
    return TailCurve(tokens.source, samples, length, tuple(amounts), losses, len(removed), run.loss(removed))


def with_made_loss(curve: TailCurve, made: Perplexity) -> TailCurve:
    """The curve with the loss of what was made of the cut, on the same windows."""
    losses = made.window_losses[: curve.samples]
    return replace(curve, made_loss=math.fsum(losses) / len(losses))


def few(tokens: Tokens) -> Tokens:
    """The first windows of a text: enough to see a curve."""
    counted = None if tokens.counted is None else tokens.counted[:WINDOWS]
    return replace(tokens, ids=tokens.ids[:WINDOWS], counted=counted)


def depths(layers: int, amounts: Collection[int]) -> list[int]:
    """How many of the last layers go at each point of the curve: none, DEPTHS numbers to half of them, and `amounts`.

    >>> depths(30, [8])
    [0, 2, 4, 6, 8, 9, 11, 13, 15]
    >>> depths(4, [3])
    [0, 1, 2, 3]
    """
    even = {max(1, round(layers // 2 * place / DEPTHS)) for place in range(1, DEPTHS + 1)}
    return sorted({0, *even, *amounts})


def loaded(checkpoint: Checkpoint, compute: Compute) -> Decoder:
    device = pick_device(compute.device)
    return Decoder.load(checkpoint, dtype=arithmetic(compute.dtype, checkpoint, device), device=device)


def beside(unpruned: Sequence[str], shortened: Sequence[str]) -> list[dict[str, str]]:
    """Each prompt with what the models say to it; models without answers are left out."""
    by_model = {name: said for name, said in (("unpruned", unpruned), ("shortened", shortened)) if said}
    each = zip(PROMPTS, *by_model.values(), strict=True) if by_model else ()
    return [dict(zip(("prompt", *by_model), said, strict=True)) for said in each]
