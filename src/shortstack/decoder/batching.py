"""Which samples pass the layers together, and how they are made equally long."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

BATCH_TOKENS = 2048  # of a batch that passes the layers


def padded(
    rows: Sequence[Sequence[int]],
    device: torch.device | None = None,
    *,
    left: bool = False,
    filler: int | None = 0,
) -> Tensor:
    """Token ids [rows, longest], padded on the right, where no token of a causal model sees them, or on the left.

    filler: the id that is added; None is a row's own first token, which no library takes for padding that wants a mask.

    >>> padded([[7, 8], [9]], filler=None).tolist()
    [[7, 8], [9, 9]]
    """
    longest = max(map(len, rows))
    blanks = [[row[0] if filler is None else filler] * (longest - len(row)) for row in rows]
    filled = [[*blank, *row] if left else [*row, *blank] for blank, row in zip(blanks, rows, strict=True)]
    return torch.tensor(filled, device=device)


def batched(ids: Tensor, device: torch.device) -> list[Tensor]:
    """Samples [samples, length] on a device, about BATCH_TOKENS tokens at a time."""
    return list(ids.to(device).split(max(1, BATCH_TOKENS // ids.shape[1])))


def by_length(lengths: Sequence[int], *, batch: int | None = None) -> list[list[int]]:
    """Samples in groups of alike length: `batch` of them, or with None as many as take BATCH_TOKENS with their padding."""
    groups: list[list[int]] = []
    for sample in sorted(range(len(lengths)), key=lambda sample: lengths[sample]):
        together = len(groups[-1]) + 1 if groups else 0
        full = together * lengths[sample] > BATCH_TOKENS if batch is None else together > batch
        if not groups or full:
            groups.append([])
        groups[-1].append(sample)
    return groups
