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
    """Pad token ids to [rows, longest]: on the right, where no token of a causal model sees it, or on the left.

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

    ids: list[Tensor]
    kinds: list[Kind]
    kind_of: list[int]
    counted: list[Tensor | None]

    @classmethod
    def of(cls, tokens: Tokens, device: torch.device) -> Batches:
        size = max(1, BATCH_TOKENS // tokens.ids.shape[1])
        batches = cls([], [kind for kind, _ in tokens.parts], [], [])
        for number, (_, rows) in enumerate(tokens.parts):
            ids = tokens.ids[rows].to(device).split(size)
            counted = None if tokens.counted is None else tokens.counted[rows]
            batches.ids.extend(ids)
            batches.kind_of.extend([number] * len(ids))
            if counted is None or counted.all():
                batches.counted.extend([None] * len(ids))
            else:
                batches.counted.extend(counted.to(device).split(size))
        return batches

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def largest(self) -> int:
        """Tokens of the largest batch."""
        return max(batch.numel() for batch in self.ids)

    def predicted(self, kind: int) -> int:
        """Count the tokens of a kind that count when they are predicted."""
        batches = zip(self.kind_of, self.ids, self.counted, strict=True)
        own = [(ids, counted) for batch_kind, ids, counted in batches if batch_kind == kind]
        return sum(ids[:, 1:].numel() if counted is None else int(counted[:, 1:].sum()) for ids, counted in own)

    def mean(self, values: Sequence[float]) -> float:
        """Average a number of each kind by the kinds' weights."""
        total = sum(kind.weight for kind in self.kinds)
        return sum(kind.weight * value for kind, value in zip(self.kinds, values, strict=True)) / total


def by_length(lengths: Sequence[int], *, batch: int | None = None) -> list[list[int]]:
    """Group samples of alike length: `batch` of them, or with None as many as take BATCH_TOKENS with their padding."""
    groups: list[list[int]] = []
    for sample in sorted(range(len(lengths)), key=lambda sample: lengths[sample]):
        together = len(groups[-1]) + 1 if groups else 0
        full = together * lengths[sample] > BATCH_TOKENS if batch is None else together > batch
        if not groups or full:
            groups.append([])
        groups[-1].append(sample)
    return groups
