"""safetensors files as bytes: headers read and checked without trust, shards written from byte ranges without loading one.

The format (huggingface/safetensors README): 8 bytes little-endian header length, a JSON header naming dtype, shape and
[start, end) of every tensor, then one buffer that the tensors cover without gap or overlap.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from shortstack.checkpoint.pieces import Columns, Piece, Span, WrittenFile, pieces_digest, write_pieces
from shortstack.errors import CheckpointError
from shortstack.machine.files import disk_errors

if TYPE_CHECKING:
    from torch import Tensor

MAX_HEADER_BYTES = 100_000_000  # the limit the reference implementation sets
BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}


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

    def digest(self) -> str:
        """sha256 of the bytes, in hexadecimal."""
        return pieces_digest([self.data])

    def blocks(self, axis: int, kept: Sequence[int], count: int) -> StoredTensor:
        """The tensor with only the `kept` of the `count` equal blocks it consists of along an axis."""
        row = math.prod(self.shape[axis:]) * BITS[self.dtype]
        if self.shape[axis] % count or row % (8 * count):
            raise CheckpointError(
                f"shape {list(self.shape)} of {self.dtype}",
                expected=f"{self.name} as {count} equal blocks along axis {axis}",
                fix="find the config that belongs to these weights",
                where=self.file,
            )
        assert isinstance(self.data, Span)  # noqa: S101  cut once, from what was read
        width = row // 8 // count
        shape = (*self.shape[:axis], self.shape[axis] // count * len(kept), *self.shape[axis + 1 :])
        columns = Columns(self.data, row // 8, tuple((number * width, (number + 1) * width) for number in kept))
        return replace(self, shape=shape, data=columns)


def read_into(tensor: StoredTensor, buffer: memoryview) -> None:
    """Fill a buffer of tensor.size bytes with a stored tensor, read rather than mapped."""
    assert isinstance(tensor.data, Span)  # noqa: S101  what was read from a file, as it is there
    with tensor.file.open("rb", buffering=0) as file:
        file.seek(tensor.data.start)
        position = 0
        while position < tensor.size:
            count = file.readinto(buffer[position:])
            if not count:
                raise _broken(tensor.file, f"{tensor.size} bytes of {tensor.name}", f"{position}")
            position += count


def read_shard(path: Path) -> list[StoredTensor]:
    """Every tensor a safetensors file declares, in file order; only the header is read."""
    if path.exists() and not path.is_file():  # a pipe would never end
        raise _broken(path, "a file", "something else of that name")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header, data_start = _read_header(file, size, path)
    except OSError as error:
        raise CheckpointError(
            error.strerror or str(error),
            expected="a readable safetensors file",
            fix="download the checkpoint again",
            where=path,
        ) from error
    tensors = [_declared(path, name, entry, data_start) for name, entry in header.items() if name != "__metadata__"]
    tensors.sort(key=lambda tensor: (tensor.data.start, tensor.size))  # type: ignore[union-attr]  # empty ones first
    _check_cover(path, tensors, data_start, size)
    return tensors


def save_tensors(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Tensors in memory as a file of their own, by the reference implementation."""
    from safetensors.torch import save_file

    with disk_errors(path):
        save_file(dict(tensors), path)


def spill(tensor: StoredTensor, path: Path) -> StoredTensor:
    """A tensor in memory as one whose bytes are a file of their own, until it is written elsewhere."""
    assert isinstance(tensor.data, bytes)  # noqa: S101  others are in a file already
    with disk_errors(path):
        path.write_bytes(tensor.data)
    return replace(tensor, data=Span(path, 0, tensor.size))


def read_metadata(path: Path) -> dict[str, Any]:
    """Return the metadata in the header of a safetensors file that read_shard() has read."""
    with path.open("rb") as file:
        header, _ = _read_header(file, path.stat().st_size, path)
    metadata = header.get("__metadata__")
    return metadata if isinstance(metadata, dict) else {}


def _broken(path: Path, expected: str, found: str) -> CheckpointError:
    return CheckpointError(found, expected=expected, fix="download or save this file again", where=path)


def _read_header(file: BinaryIO, size: int, path: Path) -> tuple[dict[str, Any], int]:
    if size < 8:
        raise _broken(path, "a safetensors file of at least 8 bytes", f"{size} bytes")
    length = int.from_bytes(file.read(8), "little")
    if length > min(MAX_HEADER_BYTES, size - 8):
        raise _broken(
            path, f"a header of at most {min(MAX_HEADER_BYTES, size - 8)} bytes", f"a header length of {length}"
        )
    try:
        header = json.loads(file.read(length).decode(), object_pairs_hook=_no_duplicates)
    except (ValueError, RecursionError) as error:
        raise _broken(path, "a JSON header", str(error) or type(error).__name__) from error
    if not isinstance(header, dict):
        raise _broken(path, "a JSON object as header", type(header).__name__)
    return header, 8 + length


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    mapping = dict(pairs)
    if len(mapping) != len(pairs):
        raise ValueError("a name that occurs twice")
    return mapping


def _declared(path: Path, name: str, entry: Any, data_start: int) -> StoredTensor:
    try:
        bits, shape, (start, end) = BITS[entry["dtype"]], entry["shape"], entry["data_offsets"]
        valid = type(shape) is list and all(type(number) is int and number >= 0 for number in (*shape, start, end))
        name.encode()  # a lone surrogate, which JSON can spell, is no name
    except (KeyError, TypeError, ValueError) as error:
        raise _broken(path, f"a known dtype, shape and data_offsets for {name!r}", f"{entry!r:.200}") from error
    if not valid:
        raise _broken(path, f"non-negative numbers for {name!r}", f"{entry!r:.200}")
    if math.prod(shape) * bits != (end - start) * 8:
        raise _broken(path, f"bytes for {name!r} as its dtype and shape need", f"{entry!r:.200}")
    return StoredTensor(name, entry["dtype"], tuple(shape), Span(path, data_start + start, data_start + end))


def _check_cover(path: Path, tensors: Sequence[StoredTensor], data_start: int, size: int) -> None:
    position = data_start
    for tensor in tensors:
        assert isinstance(tensor.data, Span)  # noqa: S101  just built by _declared
        if tensor.data.start != position:
            raise _broken(
                path, f"{tensor.name} to start at byte {position}", f"byte {tensor.data.start} (a gap or an overlap)"
            )
        position = tensor.data.end
    if position != size:
        raise _broken(
            path,
            f"{position} bytes, as its header declares",
            f"{size} ({'truncated' if size < position else 'trailing bytes'})",
        )


def write_shard(path: Path, tensors: Sequence[StoredTensor], on_bytes: Callable[[int], None]) -> WrittenFile:
    """Write one durable shard from byte ranges, its digest computed on the way.

    Tensors keep their order but for alignment: wider dtypes come first, as the reference implementation lays them out.
    """
    ordered = sorted(tensors, key=lambda tensor: -BITS[tensor.dtype])
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
