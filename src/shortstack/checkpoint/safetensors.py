"""safetensors files as bytes: headers read, shards written from byte ranges without loading one.

The format (huggingface/safetensors README): 8 bytes little-endian header length, a JSON header naming dtype, shape and
[start, end) of every tensor, then one buffer that the tensors cover without gap or overlap.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shortstack.checkpoint.pieces import Columns, Piece, Span, WrittenFile, broken, piece_digest, write_pieces
from shortstack.errors import CheckpointError, one_line

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a checkpoint stores it: its name, its type, and where its bytes are (a file's, or in memory)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Piece

    @property
    def file(self) -> Path:
        """The file the bytes are in; only for a tensor that was read from one."""
        assert not isinstance(self.data, bytes)  # noqa: S101  in-memory tensors are only ever written
        return self.data.path

    @property
    def size(self) -> int:
        """Bytes."""
        return len(self.data)

    @property
    def parameters(self) -> int:
        return math.prod(self.shape)

    @property
    def bits(self) -> int:
        """Of each number."""
        return 8 * self.size // (self.parameters or 1)

    def digest(self) -> str:
        """Hash the bytes by sha256, in hexadecimal."""
        return piece_digest(self.data)

    def blocks(self, axis: int, kept: Sequence[int], count: int) -> StoredTensor:
        """Keep only the `kept` of the `count` equal blocks that the tensor consists of along an axis."""
        row = math.prod(self.shape[axis:]) * self.bits
        if self.shape[axis] % count or row % (8 * count):
            wrong = f"{self.name} of shape {list(self.shape)} is not {count} equal blocks along axis {axis}"
            raise CheckpointError(f"{self.file}: {wrong}; find the config that belongs to these weights")
        assert isinstance(self.data, Span)  # noqa: S101  cut once, from what was read
        width = row // 8 // count
        shape = (*self.shape[:axis], self.shape[axis] // count * len(kept), *self.shape[axis + 1 :])
        columns = Columns(self.data, row // 8, tuple((number * width, (number + 1) * width) for number in kept))
        return replace(self, shape=shape, data=columns)


def read_into(tensor: StoredTensor, buffer: memoryview) -> None:
    """Fill a buffer of tensor.size bytes with a stored tensor, read rather than mapped."""
    assert isinstance(tensor.data, Span)  # noqa: S101  what was read from a file, as it is there
    with tensor.file.open("rb") as file:
        file.seek(tensor.data.start)
        count = file.readinto(buffer)
    if count < tensor.size:
        raise broken(tensor.file, f"has {count:,} of the {tensor.size:,} bytes of {tensor.name}")


def read_shard(path: Path) -> list[StoredTensor]:
    """Read every tensor a safetensors file declares, in file order, from its header, which the library checks."""
    header, data_start = _read_header(path)
    tensors = []
    for name, entry in header.items():
        if name != "__metadata__":
            start, end = entry["data_offsets"]
            data = Span(path, data_start + start, data_start + end)
            tensors.append(StoredTensor(name, entry["dtype"], tuple(entry["shape"]), data))
    return sorted(tensors, key=lambda tensor: (tensor.data.start, tensor.size))  # type: ignore[union-attr]  # empty ones first


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Save tensors in memory as a file of their own, by the reference implementation."""
    from safetensors.torch import save_file

    save_file(dict(tensors), path)


def spill(tensor: StoredTensor, path: Path) -> StoredTensor:
    """Move a tensor in memory into a file of its own, where its bytes stay until it is written elsewhere."""
    assert isinstance(tensor.data, bytes)  # noqa: S101  others are in a file already
    path.write_bytes(tensor.data)
    return replace(tensor, data=Span(path, 0, tensor.size))


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata in the header of a safetensors file."""
    return dict(_read_header(path)[0].get("__metadata__") or {})


def _read_header(path: Path) -> tuple[dict[str, Any], int]:
    """Read the header, once the library has found it whole and true of the file, and where the first tensor begins."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, "np"), path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            header: dict[str, Any] = json.loads(file.read(length))
    except (OSError, SafetensorError) as error:
        raise broken(path, f"is not a whole safetensors file ({one_line(error)})") from error
    return header, 8 + length


def write_shard(path: Path, tensors: Sequence[StoredTensor], on_bytes: Callable[[int], None]) -> WrittenFile:
    """Write one durable shard from byte ranges, its digest computed on the way.

    Tensors keep their order but for alignment: wider dtypes come first, as the reference implementation lays them out.
    """
    ordered = sorted(tensors, key=lambda tensor: -tensor.bits)
    return write_pieces(path, [_header(ordered), *(tensor.data for tensor in ordered)], on_bytes)


def _header(tensors: Sequence[StoredTensor]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for tensor in tensors:
        entries[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [position, position + tensor.size],
        }
        position += tensor.size
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text
