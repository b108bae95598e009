"""The state of a walk on disk, so that one which was killed goes on from the last layer it had finished.

One safetensors file for each walk, named by a digest of all that its result depends on: tensors as they are, everything else
as JSON in the header. It is replaced whole, and removed when the walk is done.
"""

from __future__ import annotations

import errno
import functools
import json
import math
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.safetensors import save_tensors
from shortstack.errors import ShortstackWarning
from shortstack.machine.cache import MARGIN_BYTES, cache_directory, content_key, make_room
from shortstack.machine.files import whole

KEEP_SECONDS = 30.0  # between two times that the state is written
SHARE = 0.05  # of the time, at most, goes into writing it


class Keeper:
    """Keeps the state of one walk: nested dictionaries and lists of tensors, numbers and strings."""

    def __init__(self, checkpoint: Checkpoint, **identity: object) -> None:
        """identity: what, beside the weights and the versions of the libraries, the walk's result depends on."""
        files = [(str(path.resolve()), path.stat().st_size, path.stat().st_mtime_ns) for path in checkpoint.shards]
        known = {"files": files, "config": checkpoint.config, "beside": checkpoint.beside}
        key = content_key("walk", **known, **identity)
        self.path = cache_directory("walks") / f"{key}.safetensors"
        self._due = time.monotonic() + KEEP_SECONDS

    @classmethod
    def of(cls, checkpoint: Checkpoint, **identity: object) -> Keeper | None:
        """A keeper, or None and a warning where the cache cannot be written to: a walk does without."""
        try:
            keeper = cls(checkpoint, **identity)
            tempfile.TemporaryFile(dir=keeper.path.parent).close()
        except OSError as error:
            _cannot_keep(error)
            return None
        return keeper

    def keep(self, state: Callable[[], Mapping[str, Any]]) -> None:
        """Write what state() gives, if that was long enough ago and the disk has room for it."""
        if time.monotonic() < self._due:
            return
        started = time.monotonic()
        tensors: dict[str, Tensor] = {}
        form = json.dumps(_packed(state(), tensors, {}))
        try:
            self._write(tensors, form)
        except OSError as error:
            _cannot_keep(error)
            self._due = math.inf
            return
        taken = time.monotonic() - started
        self._due = time.monotonic() + max(KEEP_SECONDS, taken / SHARE)

    def _write(self, tensors: Mapping[str, Tensor], form: str) -> None:
        nbytes = sum(tensor.nbytes for tensor in tensors.values())
        make_room(nbytes)
        needed = nbytes + MARGIN_BYTES
        if shutil.disk_usage(self.path.parent).free < needed:
            raise OSError(errno.ENOSPC, f"not {needed / 1e6:,.0f} MB free", str(self.path.parent))
        with whole(self.path) as partial:
            save_tensors(tensors, partial, {"state": form})

    def kept(self, device: torch.device) -> Any | None:
        """The state that was kept last, tensors on the device; None without one, or with one that a power cut broke."""
        if not self.path.exists():
            return None
        try:
            with safe_open(self.path, "pt", device=str(device)) as file:
                # Cloned, since what memory begins at odd places is multiplied with another rounding on some CPUs.
                read = functools.cache(lambda name: file.get_tensor(name).clone())
                return _unpacked(json.loads(file.metadata()["state"]), read)
        except SafetensorError:
            return None

    def forget(self) -> None:
        """Remove the state: the walk is done."""
        self.path.unlink(missing_ok=True)


def _cannot_keep(error: Exception) -> None:
    said = f"the walk's state is not kept, so a killed one starts again: {error}"
    warnings.warn(said, ShortstackWarning, stacklevel=3)


def _packed(value: Any, tensors: dict[str, Tensor], names: dict[tuple[Any, ...], str]) -> Any:
    """The value with the name of each tensor in its place; the tensors go to `tensors`, each once."""
    if isinstance(value, Tensor):
        place = value.data_ptr(), value.shape, value.stride(), value.dtype
        if place not in names:
            names[place] = str(len(tensors))
            tensors[names[place]] = value.contiguous()
        return {"tensor": names[place]}
    if isinstance(value, Mapping):
        return {key: _packed(item, tensors, names) for key, item in value.items()}
    return [_packed(item, tensors, names) for item in value] if isinstance(value, list | tuple) else value


def _unpacked(value: Any, tensor: Callable[[str], Tensor]) -> Any:
    """The inverse of _packed."""
    if isinstance(value, dict):
        if value.keys() == {"tensor"}:
            return tensor(value["tensor"])
        return {key: _unpacked(item, tensor) for key, item in value.items()}
    return [_unpacked(item, tensor) for item in value] if isinstance(value, list) else value
