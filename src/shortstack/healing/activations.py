"""Hidden states on disk: packed rows without padding, one file per content hash, read by memory map."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy
import torch
from torch import Tensor

from shortstack.machine.cache import MARGIN_BYTES, cache_directory, make_room, mark_used
from shortstack.machine.files import atomic_write, check_disk


@dataclass(frozen=True)
class Activations:
    """The hidden states of many samples. states[i] is [length of sample i, width], in the dtype they were computed in."""

    path: Path
    lengths: tuple[int, ...]
    width: int
    dtype: torch.dtype

    def __getitem__(self, sample: int) -> Tensor:
        """Copy one sample's states, [length, width], out of the file."""
        start = self._starts[sample]
        rows = torch.from_numpy(self._map[start : start + self.lengths[sample]].copy())
        return rows.view(self.dtype)

    @property
    def kept(self) -> bool:
        """Whether they are on disk; if so, they are used."""
        there = self.path.exists() and self.path.stat().st_size == self.size
        if there:
            mark_used(self.path)
        return there

    @property
    def size(self) -> int:
        """Bytes on disk."""
        return sum(self.lengths) * self._row_bytes

    @functools.cached_property
    def _map(self) -> numpy.ndarray[Any, Any]:
        shape = sum(self.lengths), self._row_bytes
        return numpy.memmap(self.path, dtype=numpy.uint8, mode="r", shape=shape)

    @functools.cached_property
    def _starts(self) -> Sequence[int]:
        return list(itertools.accumulate((0, *self.lengths)))

    @property
    def _row_bytes(self) -> int:
        return self.width * self.dtype.itemsize


def activations_under(key: str, lengths: Sequence[int], width: int, dtype: torch.dtype) -> Activations:
    """Name the states under `key`, whether they are kept yet or not."""
    return Activations(cache_directory("activations") / f"{key}.states", tuple(lengths), width, dtype)


def check_room(nbytes: int) -> None:
    """Make room in the cache, and refuse what the disk has none for, before it is computed."""
    if nbytes:
        make_room(nbytes)
        fix = "free some space, set SHORTSTACK_CACHE to another disk, or use fewer samples"
        check_disk(cache_directory("activations"), nbytes + MARGIN_BYTES, fix=fix)


@contextmanager
def keeping(activations: Activations) -> Iterator[Callable[[int, Tensor], None]]:
    """Take put(sample, states) for every sample, in any order; the file is there when all went well, else not at all."""
    with atomic_write(activations.path) as partial, partial.open("wb") as file:

        def put(sample: int, states: Tensor) -> None:
            file.seek(activations._starts[sample] * activations._row_bytes)
            file.write(states.to(activations.dtype).contiguous().cpu().view(torch.uint8).numpy().tobytes())

        yield put
