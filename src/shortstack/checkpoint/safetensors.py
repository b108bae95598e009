"""safetensors files as bytes: headers read and checked without trust, shards written from byte ranges without loading one.

The format (huggingface/safetensors README): 8 bytes little-endian header length, a JSON header naming dtype, shape and
[start, end) of every tensor, then one buffer that the tensors cover without gap or overlap.
"""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np

from shortstack.checkpoint.disk_errors import disk_errors
from shortstack.errors import CheckpointError

if TYPE_CHECKING:
    from torch import Tensor

MAX_HEADER_BYTES = 100_000_000  # the limit the reference implementation sets
BLOCK_BYTES = 1 << 20  # read, hashed and written at once while still in the processor's cache
KERNEL_BLOCK_BYTES = 32 << 20  # copied by one system call
PENDING = 16  # parts that are written and not yet in the digest: what the page cache surely still has
BITS = {
    **dict.fromkeys(("F4",), 4),
    **dict.fromkeys(("F6_E2M3", "F6_E3M2"), 6),
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
# What copy_file_range answers where the two files lie on different or older filesystems: the bytes then go through us.
CANNOT_COPY_IN_KERNEL = {errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.ENOSYS, errno.EBADF}


@dataclass(frozen=True)
class Span:
    """Bytes [start, end) of a file."""

    path: Path
    start: int
    end: int

    def __len__(self) -> int:
        return self.end - self.start


@dataclass(frozen=True)
class Columns:
    """The same byte ranges of every row of a span: a slice of a tensor along an axis."""

    span: Span
    row_bytes: int
    kept: tuple[tuple[int, int], ...]

    @property
    def path(self) -> Path:
        return self.span.path

    def __len__(self) -> int:
        return len(self.span) // self.row_bytes * sum(end - start for start, end in self.kept)


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as a checkpoint stores it: its name, its type, and where its bytes are (a file's, or in memory)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: Span | Columns | bytes

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
        return _digest([self.data])

    def blocks(self, axis: int, kept: Sequence[int], count: int) -> StoredTensor:
        """The tensor with only the `kept` of the `count` equal blocks it consists of along an axis.

        Raises:
            CheckpointError: the axis does not divide into `count` blocks of whole bytes.
        """
        row = math.prod(self.shape[axis:]) * BITS[self.dtype]
        if self.shape[axis] % count or row % (8 * count):
            raise CheckpointError(
                self.file,
                expected=f"{self.name} as {count} equal blocks along axis {axis}",
                found=f"shape {list(self.shape)} of {self.dtype}",
                fix="find the config that belongs to these weights",
            )
        assert isinstance(self.data, Span)  # noqa: S101  cut once, from what was read
        width = row // 8 // count
        shape = (*self.shape[:axis], self.shape[axis] // count * len(kept), *self.shape[axis + 1 :])
        columns = Columns(self.data, row // 8, tuple((number * width, (number + 1) * width) for number in kept))
        return replace(self, shape=shape, data=columns)


Piece = Span | Columns | bytes


def read_into(tensor: StoredTensor, buffer: memoryview) -> None:
    """Fill a buffer of tensor.size bytes with a stored tensor, read rather than mapped.

    Raises:
        CheckpointError: the file ends before the tensor does.
    """
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
    """Every tensor a safetensors file declares, in file order; only the header is read.

    Raises:
        CheckpointError: the file is missing, truncated, has trailing bytes, or a header that breaks the format's rules.
    """
    if path.exists() and not path.is_file():  # a pipe would never end
        raise _broken(path, "a file", "something else of that name")
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            header, data_start = _read_header(file, size, path)
    except OSError as error:
        raise CheckpointError(
            path,
            expected="a readable safetensors file",
            found=error.strerror or str(error),
            fix="download the checkpoint again",
        ) from error
    tensors = [_declared(path, name, entry, data_start) for name, entry in header.items() if name != "__metadata__"]
    tensors.sort(key=lambda tensor: (tensor.data.start, tensor.size))  # type: ignore[union-attr]  # empty ones first
    _check_cover(path, tensors, data_start, size)
    return tensors


def save_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str] | None = None) -> None:
    """Tensors in memory as a file of their own, by the reference implementation.

    Raises:
        OSError: the disk has no room or fails.
    """
    from safetensors.torch import save_file

    with disk_errors(path):
        save_file(dict(tensors), path, metadata=dict(metadata or {}))


def laid_down(tensor: StoredTensor, path: Path) -> StoredTensor:
    """A tensor in memory as one whose bytes are a file of their own, until it is written elsewhere.

    Raises:
        OSError: the disk has no room or fails.
    """
    assert isinstance(tensor.data, bytes)  # noqa: S101  others are in a file already
    with disk_errors(path):
        path.write_bytes(tensor.data)
    return replace(tensor, data=Span(path, 0, tensor.size))


def read_metadata(path: Path) -> dict[str, Any]:
    """What a safetensors file says of itself beside its tensors; of a file that read_shard() has read."""
    with path.open("rb") as file:
        header, _ = _read_header(file, path.stat().st_size, path)
    metadata = header.get("__metadata__")
    return metadata if isinstance(metadata, dict) else {}


def _broken(path: Path, expected: str, found: str) -> CheckpointError:
    return CheckpointError(path, expected=expected, found=found, fix="download or save this file again")


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


@dataclass(frozen=True)
class WrittenFile:
    """A file as the manifest lists it."""

    size: int
    sha256: str


def write_shard(path: Path, tensors: Sequence[StoredTensor], on_bytes: Callable[[int], None]) -> WrittenFile:
    """Write one durable shard from byte ranges, its digest computed on the way.

    Tensors keep their order but for alignment: wider dtypes come first, as the reference implementation lays them out.
    """
    ordered = sorted(tensors, key=lambda tensor: -BITS[tensor.dtype])
    with ThreadPoolExecutor(max_workers=1) as pool, path.open("xb", buffering=0) as file:
        digest = _RunningDigest(pool)
        for piece in (_header(ordered), *_merged(tensor.data for tensor in ordered)):
            for part in _parts(piece):
                digest.add(part)
                _write(part, file.fileno(), on_bytes)
        os.fsync(file.fileno())
        return WrittenFile(path.stat().st_size, digest.result())


class _RunningDigest:
    """sha256 of pieces, by a thread that is never more than PENDING behind: what it reads is still in the page cache."""

    def __init__(self, pool: ThreadPoolExecutor) -> None:
        self.pool, self.sha = pool, hashlib.sha256()
        self.pending: deque[Future[None]] = deque()

    def add(self, piece: Piece) -> None:
        self.pending.append(self.pool.submit(self._update, piece))
        while len(self.pending) > PENDING:
            self.pending.popleft().result()

    def result(self) -> str:
        while self.pending:
            self.pending.popleft().result()
        return self.sha.hexdigest()

    def _update(self, piece: Piece) -> None:
        for block in _blocks(piece):
            self.sha.update(block)


def _parts(piece: Piece) -> Iterator[Piece]:
    """What one system call copies at a time, or bytes that were read to be picked from."""
    if isinstance(piece, Span):
        for start in range(piece.start, piece.end, KERNEL_BLOCK_BYTES):
            yield Span(piece.path, start, min(start + KERNEL_BLOCK_BYTES, piece.end))
    else:
        yield from _blocks(piece)


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


def _merged(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Neighbouring ranges of one file as one range."""
    last: Span | None = None
    for piece in pieces:
        if isinstance(piece, Span) and last and last.path == piece.path and last.end == piece.start:
            last = Span(last.path, last.start, piece.end)
            continue
        if last:
            yield last
        last = piece if isinstance(piece, Span) else None
        if not isinstance(piece, Span):
            yield piece
    if last:
        yield last


def _blocks(piece: Piece) -> Iterator[bytes]:
    if isinstance(piece, bytes):
        yield piece
        return
    if isinstance(piece, Columns):
        yield from _columns(piece)
        return
    with piece.path.open("rb", buffering=0) as file:
        file.seek(piece.start)
        left = len(piece)
        while left:
            block = file.read(min(BLOCK_BYTES, left))
            if not block:
                raise _broken(piece.path, f"bytes up to {piece.end}", f"the end of the file at {piece.end - left}")
            left -= len(block)
            yield block


def _columns(piece: Columns) -> Iterator[bytes]:
    """Short rows are read many at once and picked from; of long ones only what is kept is read."""
    span, row = piece.span, piece.row_bytes
    if row > BLOCK_BYTES:
        for start in range(span.start, span.end, row):
            for first, last in piece.kept:
                yield from _blocks(Span(span.path, start + first, start + last))
        return
    picked = np.zeros(row, dtype=bool)
    for first, last in piece.kept:
        picked[first:last] = True
    rows = BLOCK_BYTES // row * row
    for start in range(span.start, span.end, rows):
        end = min(start + rows, span.end)
        block = np.frombuffer(b"".join(_blocks(Span(span.path, start, end))), dtype=np.uint8)
        yield block.reshape(-1, row)[:, picked].tobytes()


def _digest(pieces: Sequence[Piece]) -> str:
    digest = hashlib.sha256()
    for piece in pieces:
        for block in _blocks(piece):
            digest.update(block)
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """sha256 of a file, in hexadecimal."""
    return _digest([Span(path, 0, path.stat().st_size)])


def _write(piece: Piece, sink: int, on_bytes: Callable[[int], None]) -> None:
    if isinstance(piece, Span) and hasattr(os, "copy_file_range"):
        piece = _copy_in_kernel(piece, sink, on_bytes)
    for block in _blocks(piece):
        view = memoryview(block)
        while view:
            view = view[os.write(sink, view) :]
        on_bytes(len(block))


def _copy_in_kernel(piece: Span, sink: int, on_bytes: Callable[[int], None]) -> Span:
    """Copy what the kernel can copy by itself; returns the rest, empty when it copied all."""
    position = piece.start
    with piece.path.open("rb", buffering=0) as file:
        while position < piece.end:
            try:
                copied = os.copy_file_range(
                    file.fileno(), sink, min(KERNEL_BLOCK_BYTES, piece.end - position), position
                )
            except OSError as error:
                if error.errno not in CANNOT_COPY_IN_KERNEL:
                    raise
                break
            if not copied:
                break
            position += copied
            on_bytes(copied)
    return Span(piece.path, position, piece.end)
