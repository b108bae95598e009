"""Batches of samples of alike length, so that little is padding."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils.data import Dataset

Batch = Mapping[str, Tensor]
IGNORED = -100  # the label that counts in no loss
GROUPED = 50  # batches, at most, whose samples are sorted by length together; a quarter of an epoch where that is fewer


@dataclass(frozen=True)
class Data:
    """Samples of any kind to train on and held out; the lengths of the former, in tokens.

    collate(samples) gives the module's arguments, among them `labels` [batch, length] with IGNORED where a token does not
    count in the loss.
    """

    training: Sequence[Any]
    held_out: Sequence[Any]
    lengths: Sequence[int]
    collate: Callable[[list[Any]], Batch]


class Ordered(Dataset[Any]):
    """Samples in the order of an epoch: seeded, those of alike length in one batch, so that little is padding."""

    def __init__(self, data: Data, batch_size: int, *, seed: int) -> None:
        self.samples, self.lengths = data.training, data.lengths
        self.batch_size, self.seed = batch_size, seed
        self.handed = [0]  # tokens handed out so far, after each sample
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self.order = grouped(self.lengths, self.batch_size, seed=self.seed * 1_000_003 + epoch)

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> Any:
        sample = self.order[index]
        self.handed.append(self.handed[-1] + self.lengths[sample])
        return self.samples[sample]

    def tokens(self, samples: int) -> int:
        """Count the tokens of the first so many samples handed out: those fetched ahead have not passed the model yet."""
        return self.handed[min(samples, len(self.handed) - 1)]


def grouped(lengths: Sequence[int], batch: int, *, seed: int) -> list[int]:
    """Order all samples, by number: batches in random order, each of samples of alike length; a short one is last."""
    rng = random.Random(seed)
    shuffled = rng.sample(range(len(lengths)), len(lengths))
    size = batch * max(1, min(GROUPED, len(shuffled) // (4 * batch)))
    pools = [shuffled[start : start + size] for start in range(0, len(shuffled), size)]
    order = [sample for pool in pools for sample in sorted(pool, key=lambda sample: lengths[sample])]
    batches = [order[start : start + batch] for start in range(0, len(order), batch)]
    last = [batches.pop()] if len(batches[-1]) < batch else []  # the short one stays last, or all others would shift
    return [sample for group in rng.sample(batches, len(batches)) + last for sample in group]
