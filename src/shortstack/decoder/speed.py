"""How fast tokens pass a model on this machine: one measured rate, by which amounts of work are chosen."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from shortstack.checkpoint import Checkpoint
from shortstack.decoder.decoder import Decoder

ROWS, LENGTH = 2, 256  # of the tokens that pass
TRIALS, SECONDS = 4, 1.0  # so many passes, fewer where they take longer; the first warms up


@torch.no_grad()
def forward_speed(checkpoint: Checkpoint, *, dtype: torch.dtype, device: str, layers: int | None = None) -> float:
    """Tokens a second, forward, through the model, its head included: by its last layer alone where layers are alike.

    layers: as if it had so many, such as the longer model that it was cut from.
    """
    last = checkpoint.anatomy.layers - 1
    decoder = Decoder.tail(checkpoint, last, dtype=dtype, device=device)
    ids = torch.zeros(ROWS, LENGTH, dtype=torch.long, device=device)
    states = torch.randn(ROWS, LENGTH, checkpoint.width, device=device).to(dtype)
    if not decoder.bare:  # a layer takes more than hidden states
        decoder = Decoder.load(checkpoint, dtype=dtype, device=device)
        layer = _seconds(device, lambda: decoder.finish(ids)) / (last + 1)
    else:
        layer = _seconds(device, lambda: decoder.finish(ids, (last, states)))
    rows = min(ROWS * LENGTH, decoder.chunk_rows(states))
    head = _seconds(device, lambda: decoder.token_logits(states.flatten(0, 1)[:rows])) / rows
    return 1 / ((layers or last + 1) * layer / (ROWS * LENGTH) + head)


def _seconds(device: str, run: Callable[[], Any]) -> float:
    """The median of a few runs' seconds: beside other work the fastest one is luck."""
    taken: list[float] = []
    while len(taken) < 2 or (len(taken) < TRIALS and sum(taken) < SECONDS):
        began = time.perf_counter()
        run()
        if device.startswith("cuda"):
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - began)
    return statistics.median(taken[1:])
