"""Held-out perplexity, through the same walk and the same BOS rule as scoring."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from shortstack.data import Tokens
from shortstack.decoder import Decoder
from shortstack.decoder.decoder import UNPRUNED, SkippedLayers
from shortstack.decoder.losses import next_token_losses
from shortstack.machine.files import plain
from shortstack.machine.numbers import checked, in_float64
from shortstack.machine.numbers import perplexity as value
from shortstack.machine.progress import Progress, silent


@dataclass(frozen=True)
class Perplexity:
    """exp(mean next-token loss). tokens: how many were predicted; standard error of the loss over windows beside it."""

    value: float
    tokens: int
    loss: float
    loss_stderr: float
    windows: Mapping[str, Any]
    dtype: str

    def to_dict(self) -> dict[str, Any]:
        return dict(plain(self))


@torch.no_grad()
def measure(
    decoder: Decoder, tokens: Tokens, *, route: SkippedLayers = UNPRUNED, progress: Progress = silent
) -> Perplexity:
    """Perplexity of a loaded model run without the layers of `route`; each window's first token is not predicted.

    Of a text of which only some tokens count it is that of these.
    """
    size = max(1, 1024 // tokens.ids.shape[1])
    batches = tokens.ids.split(size)
    counted = [None] * len(batches) if tokens.counted is None else tokens.counted.split(size)
    losses: list[Tensor] = []  # of each window
    for number, (batch, counts) in enumerate(zip(batches, counted, strict=True), start=1):
        ids = batch.to(decoder.device)
        counts = None if counts is None else counts.to(decoder.device)
        found = next_token_losses(decoder, ids, decoder.walk(ids, [route])[route], counts)
        predicted = [ids.shape[1] - 1] * len(ids) if counts is None else counts[:, 1:].sum(1).tolist()
        losses += in_float64(found).cpu().split(predicted)
        progress("measuring perplexity", number, len(batches))
    table, windows = torch.cat(losses), torch.stack([window.mean() for window in losses])
    mean = checked(float(table.mean()), f"loss on {tokens.source}")
    stderr = float(windows.std() / math.sqrt(len(windows))) if len(windows) > 1 else math.nan
    return Perplexity(value(mean), table.numel(), mean, stderr, tokens.record(), decoder.dtype)
