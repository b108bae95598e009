"""Files made of byte ranges of other files: copied by the kernel where it can, and digested meanwhile."""

from __future__ import annotations

import errno
import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from shortstack.errors import CheckpointError

BLOCK_BYTES = 1 << 20  # read, hashed and written at once while still in the processor's cache
KERNEL_BLOCK_BYTES = 32 << 20  # copied by one system call, or read at once for a digest
PENDING = 16  # parts that are written and not yet in the digest: what the page cache surely still has
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


Piece = Span | Columns | bytes


@dataclass(frozen=True)
class WrittenFile:
    """A file as the manifest lists it."""

    size: int
    sha256: str


def broken(path: Path, wrong: str) -> CheckpointError:
    return CheckpointError(f"{path} {wrong}; download or save it again")


def write_pieces(path: Path, pieces: Iterable[Piece], on_bytes: Callable[[int], None]) -> WrittenFile:
    """Write one new, durable file of pieces, one after the other, its digest computed on the way."""
    with ThreadPoolExecutor(max_workers=1) as pool, path.open("xb", buffering=0) as file:
        digest = _RunningDigest(pool, bytearray(KERNEL_BLOCK_BYTES))
        for piece in _merged(pieces):
            for part in _parts(piece):
                digest.add(part)
                _write(part, file.fileno(), on_bytes)
        os.fsync(file.fileno())
        return WrittenFile(path.stat().st_size, digest.result())


class _RunningDigest:
    """sha256 of pieces, by a thread that is never more than PENDING behind: what it reads is still in the page cache."""

    def __init__(self, pool: ThreadPoolExecutor, buffer: bytearray) -> None:
        self.pool, self.buffer, self.sha = pool, buffer, hashlib.sha256()
        self.pending: deque[Future[None]] = deque()

    def add(self, piece: Piece) -> None:
        self.pending.append(self.pool.submit(_digest, piece, self.sha, self.buffer))
        while len(self.pending) > PENDING:
            self.pending.popleft().result()

    def result(self) -> str:
        while self.pending:
            self.pending.popleft().result()
        return self.sha.hexdigest()


def _digest(piece: Piece, sha: Any, buffer: bytearray) -> None:
    """Take a piece into a digest. A span is read into the buffer, as much at once as that holds.

    Between two reads a thread may wait for Python's lock, up to 5 ms where another one imports; so blocks are long.
    """
    if not isinstance(piece, Span):
        for block in _blocks(piece):
            sha.update(block)
        return
    for view in _read(piece, buffer):
        sha.update(view)


def _read(span: Span, buffer: bytearray) -> Iterator[memoryview]:
    """Read a span, one buffer of bytes after the other."""
    with span.path.open("rb", buffering=0) as file:
        file.seek(span.start)
        left = len(span)
        while left:
            count = file.readinto(memoryview(buffer)[:left])
            if not count:
                raise broken(span.path, f"ends after {span.end - left:,} bytes, and has {span.end:,} by its header")
            yield memoryview(buffer)[:count]
            left -= count


def _parts(piece: Piece) -> Iterator[Piece]:
    """Split a piece into parts that one system call copies, or into blocks of bytes that were read."""
    if isinstance(piece, Span):
        for start in range(piece.start, piece.end, KERNEL_BLOCK_BYTES):
            yield Span(piece.path, start, min(start + KERNEL_BLOCK_BYTES, piece.end))
    else:
        yield from _blocks(piece)


def _merged(pieces: Iterable[Piece]) -> Iterator[Piece]:
    """Join neighbouring ranges of one file into one."""
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
    elif isinstance(piece, Columns):
        yield from _columns(piece)
    else:
        yield from map(bytes, _read(piece, bytearray(min(BLOCK_BYTES, len(piece)))))


def _columns(piece: Columns) -> Iterator[bytes]:
    """Read what is kept of each row: many short rows at once, to pick from; of long ones nothing else."""
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


def piece_digest(piece: Piece) -> str:
    """Hash a piece by sha256, in hexadecimal."""
    sha = hashlib.sha256()
    _digest(piece, sha, bytearray(min(KERNEL_BLOCK_BYTES, len(piece))))
    return sha.hexdigest()


def same_bytes(one: Span, other: Span, *, padding: int = 1) -> bool:
    """Say whether two ranges hold the same bytes; one may have fewer than `padding` bytes more, at its end."""
    both = min(len(one), len(other))
    if abs(len(one) - len(other)) >= padding:
        return False
    spans = (Span(span.path, span.start, span.start + both) for span in (one, other))
    return all(a == b for a, b in zip(*map(_blocks, spans), strict=True))


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
