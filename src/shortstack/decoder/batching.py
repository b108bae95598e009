"""Which samples pass the layers together, and how they are made equally long."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shortstack.data import Tokens
from shortstack.data.tokens import Kind

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


@dataclass(frozen=True)
class Batches:
    """Windows on a device, about BATCH_TOKENS tokens at a time; each batch is of one kind.

    ids: token ids [batch, length] each. kind_of: each batch's place among `kinds`. counted: [batch, length], which tokens of
    each batch count when they are predicted; None: all.
    """

    ids: Sequence[Tensor]
    kinds: Sequence[Kind]
    kind_of: Sequence[int]
    counted: Sequence[Tensor | None]

    @classmethod
    def of(cls, tokens: Tokens, device: torch.device) -> Batches:
        size = max(1, BATCH_TOKENS // tokens.ids.shape[1])
        slices = [rows for _, rows in tokens.parts]
        parts = [tokens.ids[rows].to(device).split(size) for rows in slices]
        ids = [batch for part in parts for batch in part]
        return cls(
            ids,
            [kind for kind, _ in tokens.parts],
            [number for number, part in enumerate(parts) for _ in part],
            [each for rows, part in zip(slices, parts, strict=True) for each in _counted(tokens, rows, part)],
        )

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def largest(self) -> int:
        """Tokens of the largest batch."""
        return max(batch.numel() for batch in self.ids)

    def predicted(self, kind: int) -> int:
        """How many tokens of a kind count when they are predicted."""
        own = [number for number, each in enumerate(self.kind_of) if each == kind]
        return sum(_predicted(self.ids[number], self.counted[number]) for number in own)

    def mean(self, values: Sequence[float]) -> float:
        """Of a number for each kind, by the kinds' weights."""
        total = sum(kind.weight for kind in self.kinds)
        return sum(kind.weight * value for kind, value in zip(self.kinds, values, strict=True)) / total


def _counted(tokens: Tokens, rows: slice, batches: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """Of each of a kind's batches, which tokens count; None where all do."""
    counted = None if tokens.counted is None else tokens.counted[rows]
    if counted is None or counted.all():
        return [None] * len(batches)
    return list(counted.to(batches[0].device).split([len(batch) for batch in batches]))


def _predicted(ids: Tensor, counted: Tensor | None) -> int:
    return ids[:, 1:].numel() if counted is None else int(counted[:, 1:].sum())


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
