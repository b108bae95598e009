"""Hidden states on disk: packed rows without padding, one file per content hash, read by memory map."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortstack.machine.cache import MARGIN_BYTES, cache_directory, make_room, mark_used
from shortstack.machine.files import atomic_write, check_disk

if TYPE_CHECKING:
    import numpy
    from torch import Tensor


@dataclass(frozen=True)
class Activations:
    """The hidden states of many samples. states[i] is [length of sample i, width], in the dtype they were computed in."""

    path: Path
    lengths: tuple[int, ...]
    width: int
    dtype: str

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, sample: int) -> Tensor:
        """[length, width] of one sample, copied out of the file."""
        import torch

        start = self._starts[sample]
        rows = self._map[start : start + self.lengths[sample]].copy()
        return torch.from_numpy(rows).view(getattr(torch, self.dtype)).reshape(-1, self.width)

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
        return sum(self.lengths) * self.width * _item_size(self.dtype)

    @functools.cached_property
    def _map(self) -> numpy.ndarray[Any, Any]:
        import numpy

        kind = numpy.int16 if _item_size(self.dtype) == 2 else numpy.int32
        return numpy.memmap(self.path, dtype=kind, mode="r", shape=(sum(self.lengths), self.width))

    @functools.cached_property
    def _starts(self) -> Sequence[int]:
        return list(itertools.accumulate((0, *self.lengths)))


def _item_size(dtype: str) -> int:
    return 4 if dtype == "float32" else 2


def activations_under(key: str, lengths: Sequence[int], width: int, dtype: str) -> Activations:
    """The states under `key`, whether they are kept yet or not."""
    return Activations(cache_directory("activations") / f"{key}.states", tuple(lengths), width, dtype)


def check_room(nbytes: int) -> None:
    """Make room in the cache, and refuse what the disk has none for, before it is computed."""
    if nbytes:
        make_room(nbytes)
        fix = "free some space, set SHORTSTACK_CACHE to another disk, or use fewer samples"
        check_disk(cache_directory("activations"), nbytes + MARGIN_BYTES, fix=fix)


@contextmanager
def keeping(activations: Activations) -> Iterator[Callable[[int, Tensor], None]]:
    """put(sample, states) for every sample, in any order; the file is there when all that went well, else not at all."""
    import torch

    kind = torch.int32 if _item_size(activations.dtype) == 4 else torch.int16
    row = activations.width * _item_size(activations.dtype)
    with atomic_write(activations.path) as partial, partial.open("wb") as file:

        def put(sample: int, states: Tensor) -> None:
            file.seek(activations._starts[sample] * row)
            file.write(states.to(getattr(torch, activations.dtype)).contiguous().cpu().view(kind).numpy().tobytes())

        yield put
