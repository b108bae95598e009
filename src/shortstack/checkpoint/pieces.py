"""Files made of byte ranges of other files, and their digests."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from shortstack.errors import CheckpointError

BLOCK_BYTES = 1 << 20  # read, hashed and written at once while still in the processor's cache


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


def write_pieces(path: Path, pieces: Iterable[Piece], on_bytes: Callable[[int], None]) -> WrittenFile:
    """Write one new, durable file of pieces, one after the other, its digest computed on the way."""
    sha = hashlib.sha256()
    with path.open("xb", buffering=0) as file:
        for piece in pieces:
            for block in _blocks(piece):
                sha.update(block)
                view = memoryview(block)
                while view:
                    view = view[os.write(file.fileno(), view) :]
                on_bytes(len(block))
        os.fsync(file.fileno())
    return WrittenFile(path.stat().st_size, sha.hexdigest())


def piece_digest(piece: Piece) -> str:
    """sha256 of a piece, in hexadecimal."""
    sha = hashlib.sha256()
    for block in _blocks(piece):
        sha.update(block)
    return sha.hexdigest()


def same_bytes(one: Span, other: Span, *, padding: int = 1) -> bool:
    """Whether two ranges hold the same bytes; one may have fewer than `padding` bytes more, at its end."""
    both = min(len(one), len(other))
    if abs(len(one) - len(other)) >= padding:
        return False
    spans = (Span(span.path, span.start, span.start + both) for span in (one, other))
    return all(a == b for a, b in zip(*map(_blocks, spans), strict=True))


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
                raise CheckpointError(
                    f"the end of the file at {piece.end - left}",
                    expected=f"bytes up to {piece.end}",
                    fix="download or save this file again",
                    where=piece.path,
                )
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
