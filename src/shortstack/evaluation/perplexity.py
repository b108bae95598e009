"""Held-out perplexity, through the same walk and the same BOS rule as scoring."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shortstack.data import Tokens
from shortstack.decoder import Decoder
from shortstack.decoder.decoder import UNPRUNED, SkippedLayers
from shortstack.decoder.losses import next_token_losses
from shortstack.machine.numbers import checked, in_float64
from shortstack.machine.numbers import perplexity as value
from shortstack.machine.progress import Progress, paced, silent
from shortstack.machine.tables import Cell


@dataclass(frozen=True)
class Perplexity:
    """exp(mean next-token loss). tokens: how many were predicted. loss_stderr: over windows; None of a single one.

    window_losses: of each window, for a comparison on the same windows: the sum of its losses by the mean number of tokens
    of a window, so that their mean is the loss.
    """

    value: float
    tokens: int
    loss: float
    loss_stderr: float | None
    windows: Mapping[str, Any]
    dtype: str
    window_losses: tuple[float, ...] = ()

    @property
    def cell(self) -> Cell:
        return Cell(self.value, "perplexity", None if self.loss_stderr is None else self.value * self.loss_stderr)

    @property
    def loss_cell(self) -> Cell:
        return Cell(self.loss, "loss", self.loss_stderr)


@torch.no_grad()
def measure(
    decoder: Decoder, tokens: Tokens, *, route: SkippedLayers = UNPRUNED, progress: Progress = silent
) -> Perplexity:
    """Measure the perplexity of a loaded model without the layers of `route`; a window's first token is not predicted.

    Of a text of which only some tokens count it is that of these.
    """
    losses = list(_losses(decoder, tokens, route, paced(progress, tokens.ids.numel())))
    table = torch.cat(losses)
    mean = checked(float(table.mean()), f"loss on {tokens.source}")
    # The mean is a ratio, of losses to tokens, of which windows may have unlike numbers.
    windows = torch.stack([(window - mean).sum() for window in losses]) * (len(losses) / table.numel())
    stderr = float(windows.std() / math.sqrt(len(windows))) if len(windows) > 1 else None
    shares = tuple(float(window.sum()) * len(losses) / table.numel() for window in losses)
    return Perplexity(value(mean), table.numel(), mean, stderr, tokens.record(), decoder.dtype, shares)


def _losses(decoder: Decoder, tokens: Tokens, route: SkippedLayers, progress: Progress) -> Iterator[Tensor]:
    """Yield the losses of each window's tokens that count; of streamed weights many batches pass a layer together."""
    size = max(1, 1024 // tokens.ids.shape[1])
    ids = [batch.to(decoder.device) for batch in tokens.ids.split(size)]
    counted = [None] * len(ids) if tokens.counted is None else tokens.counted.to(decoder.device).split(size)
    batches = list(zip(ids, counted, strict=True))
    together = (
        decoder.memory_batches(batches, tokens=ids[0].numel(), streams=1)
        if decoder.weights
        else [[batch] for batch in batches]
    )
    done, depth = 0, len(decoder.layers)
    for turn in together:
        walks = [decoder.enter(batch, [route]) for batch, _ in turn]
        for layer in decoder.through(walks, range(depth)):
            progress("measuring perplexity", done * depth + (layer + 1) * len(turn), len(batches) * depth)
        done += len(turn)
        for walk, (batch, counts) in zip(walks, turn, strict=True):
            losses = next_token_losses(decoder, batch, walk.hidden[route], counts)
            predicted = [batch.shape[1] - 1] * len(batch) if counts is None else counts[:, 1:].sum(1).tolist()
            yield from in_float64(losses).cpu().split(predicted)
