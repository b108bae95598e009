"""How fast models prefill and decode, by greedy generation in turns; and forward passes, which amounts of work go by.

A noisy machine slows all who take turns alike, so that a ratio of two of them, turn by turn, says more than two medians.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from transformers.generation import BaseStreamer

from shortstack.checkpoint import Checkpoint
from shortstack.decoder.decoder import Decoder
from shortstack.machine.formats import shown
from shortstack.machine.progress import Progress, silent
from shortstack.machine.tables import Cell

if TYPE_CHECKING:
    from transformers import PreTrainedModel


CONFIDENCE = 0.95
ROWS, LENGTH = 2, 256  # of the tokens that pass
TRIALS, SECONDS = 4, 1.0  # so many passes, fewer where they take longer; the first warms up


@dataclass(frozen=True)
class Load:
    """A generation load: the sequences in a batch, their prompt tokens, and the new tokens after the first."""

    batch: int = 1
    prompt: int = 32
    new_tokens: int = 32


@dataclass(frozen=True)
class Speeds:
    """Tokens of all sequences per second, the medians of the runs; runs: all of them, in turn.

    prefill: prompt tokens until the first new one is there. decode: new tokens after the first.
    """

    batch: int
    prefill_tokens_per_s: float
    decode_tokens_per_s: float
    prefill_runs: tuple[float, ...]
    decode_runs: tuple[float, ...]


class Rates(NamedTuple):
    """Tokens per second of one run."""

    prefill: float
    decode: float


@dataclass(frozen=True)
class Ratio:
    """The median of ratios taken turn by turn, and an interval that covers the true median with `confidence`."""

    value: float
    low: float
    high: float
    confidence: float

    @property
    def cell(self) -> Cell:
        note = f"({shown((self.low, self.high), 'ratio')})" if self.confidence else ""
        return Cell(self.value, "ratio", note=note)


def ratio(above: Sequence[float], below: Sequence[float]) -> Ratio:
    """Divide above by below, turn by turn. The interval is that of the sign test, which assumes nothing about the noise.

    Of n ratios in order it runs from the k-th to the k-th from the end, with k as large as keeps
    1 - 2 P(Binomial(n, 1/2) < k) at 95 %; below six ratios none does, and k = 1 covers less, as `confidence` says.

    >>> ratio([2.0, 4.4, 6.0], [1.0, 2.0, 3.0])
    Ratio(value=2.0, low=2.0, high=2.2, confidence=0.75)
    """
    ratios = sorted(a / b for a, b in zip(above, below, strict=True))
    count = len(ratios)

    def covers(place: int) -> float:
        return 1.0 - 2 * sum(math.comb(count, wins) for wins in range(place)) / float(2**count)

    place = max((k for k in range(1, count // 2 + 1) if covers(k) >= CONFIDENCE), default=1)
    return Ratio(statistics.median(ratios), ratios[place - 1], ratios[count - place], covers(place))


def speeds(models: Sequence[PreTrainedModel], load: Load, *, repeats: int, progress: Progress = silent) -> list[Speeds]:
    """Return the speed of each model under one load: a turn to warm up, then `repeats` that count.

    In each turn every model runs once, and the next turn begins with the next model.
    """
    runs: list[list[Rates]] = [[] for _ in models]
    places = list(range(len(models)))
    for turn in range(repeats + 1):  # the first turn warms up
        for place in places[turn % len(models) :] + places[: turn % len(models)]:
            run = rates(models[place], load)
            if turn:
                runs[place].append(run)
        progress(f"timing, batch {load.batch}", turn + 1, repeats + 1)
    turns = [tuple(zip(*model_runs, strict=True)) for model_runs in runs]
    return [
        Speeds(load.batch, statistics.median(prefill), statistics.median(decode), prefill, decode)
        for prefill, decode in turns
    ]


@torch.no_grad()
def rates(model: PreTrainedModel, load: Load) -> Rates:
    """Time one run of generate(): from the prompt to the first new token, and from there to the last, as it gives them."""
    vocabulary = model.get_input_embeddings().weight.shape[0]
    ids = 3 + torch.arange(load.batch * load.prompt, device=model.device).view(load.batch, -1) % (vocabulary - 3)
    clock = _Clock()  # low ids, since images and sounds have theirs behind the text's
    model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=1 + load.new_tokens,
        min_new_tokens=1 + load.new_tokens,
        do_sample=False,
        pad_token_id=0,
        streamer=clock,
    )
    prompt, first, *later = clock.times
    return Rates(ids.numel() / (first - prompt), load.batch * len(later) / (later[-1] - first))


class _Clock(BaseStreamer):  # type: ignore[misc]  # transformers is untyped here
    """When the prompt and each new token came out of generate(), in seconds."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, value: torch.Tensor) -> None:
        self.times.append(time.perf_counter())

    def end(self) -> None:
        """Do nothing after the last token."""


@torch.no_grad()
def forward_speed(checkpoint: Checkpoint, *, dtype: torch.dtype, device: str, layers: int | None = None) -> float:
    """Measure tokens a second, forward, through the model and its head: by its last layer alone where layers are alike.

    layers: as if it had so many, such as the longer model that it was cut from.
    """
    last = checkpoint.anatomy.layers - 1
    decoder = Decoder.tail(checkpoint, last, dtype=dtype, device=device)
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.long, device=device)
    states = torch.randn(ROWS, LENGTH, checkpoint.hidden_width, device=device).to(dtype)
    if not decoder.bare:  # a layer takes more than hidden states
        decoder = Decoder.load(checkpoint, dtype=dtype, device=device)
        layer = _seconds(device, lambda: decoder.finish(ids)) / (last + 1)
    else:
        layer = _seconds(device, lambda: decoder.finish(ids, (last, states)))
    rows = min(ROWS * LENGTH, decoder.chunk_rows(states))
    head = _seconds(device, lambda: decoder.token_logits(states.flatten(0, 1)[:rows])) / rows
    return 1 / ((layers or last + 1) * layer / (ROWS * LENGTH) + head)


def _seconds(device: str, run: Callable[[], Any]) -> float:
    """Return the median of a few runs' seconds: beside other work the fastest one is luck."""
    taken: list[float] = []
    while len(taken) < 2 or (len(taken) < TRIALS and sum(taken) < SECONDS):
        began = time.perf_counter()
        run()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])
