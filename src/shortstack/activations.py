"""Hidden states on disk: packed rows without padding, one file per content hash, read by memory map."""

from __future__ import annotations

import functools
import hashlib
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortstack.cache import cache_directory
from shortstack.errors import OutputError

if TYPE_CHECKING:
    import numpy
    from torch import Tensor

MARGIN_BYTES = 256 << 20


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


def content_key(**parts: object) -> str:
    """A short digest of everything the states depend on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]


def stored(
    key: str, lengths: Sequence[int], width: int, dtype: str, batches: Iterator[Sequence[Tensor]]
) -> Activations:
    """The states under `key`: found when a finished file is there, else taken from `batches` and kept.

    batches: lists of [length, width] tensors, in the order of `lengths`; not touched when the file exists.

    Raises:
        OutputError: the disk is too small; checked before anything is computed.
    """
    folder = cache_directory("activations")
    activations = Activations(folder / f"{key}.states", tuple(lengths), width, dtype)
    if activations.path.exists() and activations.path.stat().st_size == activations.size:
        return activations
    free = shutil.disk_usage(folder).free
    if free < activations.size + MARGIN_BYTES:
        raise OutputError(
            folder,
            expected=f"{activations.size / 1e9:.2f} GB of free disk for the frozen layers' output",
            found=f"{free / 1e9:.2f} GB",
            fix="free some space, or set SHORTSTACK_CACHE to another disk",
        )
    partial = activations.path.with_suffix(f".partial-{uuid.uuid4().hex[:8]}")
    try:
        _write(partial, batches, dtype)
        os.replace(partial, activations.path)
    finally:
        partial.unlink(missing_ok=True)
    return activations


def _write(path: Path, batches: Iterator[Sequence[Tensor]], dtype: str) -> None:
    import torch

    kind = torch.int32 if _item_size(dtype) == 4 else torch.int16
    with path.open("wb") as file:
        for batch in batches:
            for states in batch:
                file.write(states.to(getattr(torch, dtype)).contiguous().cpu().view(kind).numpy().tobytes())
        file.flush()
        os.fsync(file.fileno())
