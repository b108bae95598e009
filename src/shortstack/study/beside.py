"""What shortened models are held against once they are made: what the unpruned one says, its speed, and that in int8."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass

import torch

from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.record import skipped_layers
from shortstack.data import Tokens
from shortstack.decoder import Decoder
from shortstack.decoder.quantisation import INT8, quantise, saved_bytes, uncovered
from shortstack.decoder.wrapping import arithmetic
from shortstack.evaluation import EvaluationText
from shortstack.evaluation.perplexity import measure
from shortstack.machine.device import Compute, pick_device
from shortstack.machine.progress import Progress, silent, under
from shortstack.profiling import Timing, profile
from shortstack.profiling.profiler import answer
from shortstack.runs.records import TailsRecord
from shortstack.study.sizes import ModelSize
from shortstack.study.tails import DEPTHS, WINDOWS, few, measured_tails

PROMPTS = (
    "What is the capital of France, and what is the city known for?",
    "Write two sentences about why people keep gardens.",
    'Text: "Anna keeps the red lamp in the kitchen and the green bottle in the garden." '
    "Where does Anna keep the green bottle?",
)
ANSWER_TOKENS = 48
TIMING = Timing((1,), prompt=128, new_tokens=32, repeats=3)
RUNS = 2 * (TIMING.repeats + 1) + 1  # of both models, the first of each to warm up, and one for the memory


@dataclass(frozen=True)
class Int8:
    """The unpruned model with the matrices of its layers in int8: bytes of weights, and the perplexity of each text.

    reason: why there is none of it.
    """

    bytes: int | None = None
    perplexity: Mapping[str, float] | None = None
    reason: str = ""


@dataclass(frozen=True)
class Beside:
    """bytes: of the shortened model's weights. answers: a prompt, and what each model says. speed: how many times as fast as
    the unpruned model, by kind of work.

    Each of speed is a ratio with the lowest and the highest of the turns; slow: why nothing was timed. tails: the last
    layers cut, with this cut, on the first text.
    """

    bytes: int
    answers: Sequence[Mapping[str, str]]
    speed: Mapping[str, Mapping[str, float]]
    int8: Int8
    tails: TailsRecord
    slow: str = ""


def beside(
    shorts: Sequence[Checkpoint],
    unpruned: Checkpoint,
    *,
    texts: EvaluationText,
    compute: Compute,
    progress: Progress = silent,
) -> list[Beside]:
    """Hold shortened models against the unpruned one; at most two are in memory."""
    windows = texts.read(unpruned.tokenizer(), compute.seed)
    text = few(next(iter(windows.values())))
    told = under(progress, "the unpruned model: ")
    decoder = _loaded(unpruned, compute)
    said = _answers(decoder, unpruned, told)
    curve, cuts = measured_tails(decoder, text, [skipped_layers(short, unpruned) for short in shorts], progress=told)
    del decoder
    heard = [_heard(short, text, compute, under(progress, "the shortened model: ")) for short in shorts]
    int8 = _int8(unpruned, windows, compute, progress)
    found = []
    for number, (short, (its, loss)) in enumerate(zip(shorts, heard, strict=True)):
        answers = [
            {"prompt": prompt, "unpruned": before, "shortened": after}
            for prompt, before, after in zip(PROMPTS, said, its, strict=True)
        ]
        speed, slow = _speed(short, unpruned, compute, progress)
        removed = unpruned.anatomy.layers - short.anatomy.layers
        samples, length = text.ids.shape
        points = tuple(curve), tuple(curve.values())
        tails = TailsRecord(text.source, samples, length, *points, removed, cuts[number], loss)
        found.append(Beside(short.weight_bytes, answers, speed, int8, tails, slow))
    return found


def beside_seconds(size: ModelSize, kept: Sequence[int], texts: float) -> float:
    """About how long that takes. kept: layers of each shortened model; texts: seconds of measuring a text's perplexity."""
    every, pairs = [size.layers, *kept], [layers for short in kept for layers in (short, size.layers)]
    few_tokens, cuts = WINDOWS * EvaluationText.length, sum(kept)
    curve = few_tokens * (size.passed(size.layers + cuts, DEPTHS + 1 + len(kept)) + size.passed(cuts, len(kept)))
    spoken = sum(len(PROMPTS) * ANSWER_TOKENS * size.step(layers, 1) for layers in every)
    timed = sum(TIMING.prompt * size.passed(layers) + TIMING.new_tokens * size.step(layers, 1) for layers in pairs)
    opened = sum(map(size.opened, [*every, *pairs, size.layers]))
    return opened + spoken + curve + RUNS / 2 * timed + texts


def _heard(short: Checkpoint, text: Tokens, compute: Compute, progress: Progress) -> tuple[list[str], float]:
    """What a shortened model says to each of PROMPTS, and its loss on the text."""
    decoder = _loaded(short, compute)
    answers = _answers(decoder, short, progress)
    return answers, measure(decoder, text, progress=progress).loss


def _answers(decoder: Decoder, checkpoint: Checkpoint, progress: Progress) -> list[str]:
    """What a model says to each of PROMPTS."""
    answers = []
    for number, prompt in enumerate(PROMPTS, start=1):
        answers.append(answer(decoder.model, checkpoint.tokenizer(), prompt, new_tokens=ANSWER_TOKENS))
        progress("answers", number, len(PROMPTS))
    return answers


def _loaded(checkpoint: Checkpoint, compute: Compute) -> Decoder:
    device = pick_device(compute.device)
    return Decoder.load(checkpoint, dtype=arithmetic(compute.dtype, checkpoint, device), device=device)


def _speed(
    short: Checkpoint, unpruned: Checkpoint, compute: Compute, progress: Progress
) -> tuple[dict[str, dict[str, float]], str]:
    """Ratios of prefill and decode, or why there are none."""
    found = profile(short, against=unpruned, timing=TIMING, compute=compute, progress=progress)
    assert found.against  # noqa: S101  it was asked for
    if found.untimed:
        return {}, found.untimed
    ratios = found.against.ratios[0]
    return {"prefill": asdict(ratios.prefill), "decode": asdict(ratios.decode)}, ""


@torch.no_grad()
def _int8(unpruned: Checkpoint, windows: Mapping[str, Tokens], compute: Compute, progress: Progress) -> Int8:
    """The unpruned model in int8, on the same windows as every other measurement of these texts."""
    if unpruned.config.get("quantization_config"):
        return Int8(reason="the model is quantised already")
    if missing := INT8.missing(pick_device(compute.device)):
        return Int8(reason=missing)
    decoder = _loaded(unpruned, compute)
    if uncovered_by := uncovered(decoder):
        return Int8(reason=uncovered_by)
    nbytes = unpruned.weight_bytes - saved_bytes(unpruned, quantise(decoder, INT8))
    told = under(progress, "int8: ")
    return Int8(nbytes, {name: measure(decoder, tokens, progress=told).value for name, tokens in windows.items()})
