"""GGUF files as bytes: their metadata and where their tensors are, read without trust, and new files of the same bytes.

The format (ggml-org/ggml, docs/gguf.md): a magic number, a version, two counts, metadata, descriptions of tensors, and after
padding the tensors, each at an aligned offset. A model may be split into parts; the first has its metadata.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from shortstack.checkpoint.pieces import Piece, Span, WrittenFile, broken, write_pieces
from shortstack.checkpoint.sizes import Sizes
from shortstack.machine.files import check_new, rename_new, scratch_beside, sync_tree
from shortstack.machine.locks import OutputLock

MAGIC = b"GGUF"
VERSIONS = (2, 3)
UINT32, INT32, FLOAT32, BOOL, STRING, ARRAY, UINT64 = 4, 5, 6, 7, 8, 9, 10
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
ALIGNMENT = 32  # of tensors, where general.alignment says no other
MAX_DIMENSIONS = 8
BLOCK = re.compile(r"^blk\.(\d+)\.")
PART = re.compile(r"-(\d{5})-of-(\d{5})\.gguf$")


@contextmanager
def new_gguf(output: Path) -> Iterator[Path]:
    """Yield the place to write a file that gets its name when it is whole, or leaves nothing."""
    with OutputLock(output), scratch_beside(output) as scratch:
        yield scratch / output.name
        sync_tree(scratch)
        check_new(output)
        rename_new(scratch / output.name, output)


@dataclass(frozen=True)
class Entry:
    """A value of the metadata. kind: its type, by the format's number; of: of an array, that of its elements.

    raw: the bytes that stand behind its name and type.
    """

    kind: int
    raw: bytes
    of: int | None = None

    @classmethod
    def number(cls, value: float, kind: int = UINT32) -> Entry:
        return cls(kind, struct.pack(f"<{NUMBERS[kind]}", value))

    @classmethod
    def text(cls, value: str) -> Entry:
        return cls(STRING, _text(value))

    @classmethod
    def array(cls, values: Sequence[Any], of: int) -> Entry:
        """Encode values of one kind: numbers, or texts."""
        texts = of == STRING
        items = b"".join(map(_text, values)) if texts else struct.pack(f"<{len(values)}{NUMBERS[of]}", *values)
        return cls(ARRAY, struct.pack("<IQ", of, len(values)) + items, of)

    @cached_property
    def value(self) -> Any:
        """The number or text; of an array a list of them."""
        cursor = _Cursor(self.raw)
        return cursor.array() if self.kind == ARRAY else cursor.value(self.kind)


@dataclass(frozen=True)
class GgufTensor:
    """A tensor where a file has it. shape: as the format has it, what varies fastest first; kind: its type's number.

    data: its bytes, those that fill it up to the next one's place included.
    """

    name: str
    shape: tuple[int, ...]
    kind: int
    data: Span

    @property
    def block(self) -> int | None:
        """The number of the layer that it is of; None of what is of none.

        >>> GgufTensor("blk.12.attn_q.weight", (8, 8), 0, Span(Path("a.gguf"), 0, 256)).block
        12
        """
        match = BLOCK.match(self.name)
        return int(match[1]) if match else None

    def renumbered(self, block: int) -> GgufTensor:
        """Return the tensor under the name that it has in another block."""
        return replace(self, name=BLOCK.sub(f"blk.{block}.", self.name))


@dataclass(frozen=True)
class GgufFile:
    """A model in GGUF: its metadata by name, in the file's order, and its tensors. parts: the files it lies in."""

    parts: tuple[Path, ...]
    version: int
    entries: Mapping[str, Entry]
    tensors: tuple[GgufTensor, ...]

    @property
    def architecture(self) -> str:
        """The architecture, which prefixes the names of its metadata: llama, qwen2."""
        entry = self.entries.get("general.architecture")
        if entry is None or entry.kind != STRING or not entry.value:
            raise broken(self.parts[0], "has no general.architecture")
        return str(entry.value)

    @property
    def alignment(self) -> int:
        return int(_alignment(self.entries))

    def sizes(self, layers: int) -> Sizes:
        """Count parameters and bytes of each layer, and of what is none; blocks past the last layer go with any cut."""
        return Sizes.summed(
            layers, ((tensor.block, math.prod(tensor.shape), len(tensor.data)) for tensor in self.tensors)
        )


def _alignment(entries: Mapping[str, Entry]) -> Any:
    """Read the alignment of a file with this metadata; a later part of a model does not have the first one's."""
    entry = entries.get("general.alignment")
    return entry.value if entry else ALIGNMENT


def read_gguf(path: Path) -> GgufFile:
    """Read a model's metadata and tensors; given a part of a split one, read the whole model."""
    parts = _parts_of(path)
    read = [_read_part(part) for part in parts]
    tensors = tuple(tensor for part in read for tensor in part.tensors)
    names = {tensor.name for tensor in tensors}
    if len(names) != len(tensors):
        raise broken(path, "has two tensors of one name")
    return GgufFile(parts, read[0].version, read[0].entries, tensors)


def _parts_of(path: Path) -> tuple[Path, ...]:
    named = PART.search(path.name)
    if not named:
        return (path,)
    count = int(named[2])
    parts = tuple(
        path.with_name(PART.sub(f"-{number:05d}-of-{count:05d}.gguf", path.name)) for number in range(1, count + 1)
    )
    missing = next((part for part in parts if not part.is_file()), None)
    elsewhere = [part for part in parts if part.resolve().parent != path.resolve().parent]
    if missing or not parts:
        raise broken(missing or path, f"is missing, one of {len(parts)} parts of the model")
    if elsewhere:
        raise broken(elsewhere[0], f"is a link to {elsewhere[0].resolve()}, in another folder")
    return parts


def _read_part(path: Path) -> GgufFile:
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            return _Part(path, mapped).read()
    except _Truncated:
        raise broken(path, f"is a GGUF file truncated after {path.stat().st_size:,} bytes") from None
    except KeyError as error:
        raise broken(path, f"has metadata of kind {error.args[0]}, which GGUF does not have") from error
    except (OSError, ValueError) as error:  # the latter of an empty file
        raise broken(path, f"is not a GGUF file ({error})") from error


class _Truncated(Exception):
    """The bytes end before what they declare does."""


class _Cursor:
    """Reads the format's values from bytes, one after the other."""

    def __init__(self, data: bytes | mmap.mmap) -> None:
        self.data, self.at = data, 0

    def take(self, count: int) -> bytes:
        if count > len(self.data) - self.at:
            raise _Truncated
        self.at += count
        return bytes(self.data[self.at - count : self.at])

    def number(self, kind: int) -> Any:
        form = struct.Struct(f"<{NUMBERS[kind]}")
        return form.unpack(self.take(form.size))[0]

    def text(self) -> str:
        return self.take(self.number(UINT64)).decode("utf-8", "surrogateescape")

    def value(self, kind: int) -> Any:
        return self.text() if kind == STRING else self.number(kind)

    def array(self) -> list[Any]:
        of, count = self.number(UINT32), self.number(UINT64)
        if of == STRING:
            return [self.text() for _ in range(count)]
        form = struct.Struct(f"<{NUMBERS[of]}")
        return [value for (value,) in form.iter_unpack(self.take(count * form.size))]

    def skip(self, kind: int) -> int | None:
        """Pass over a value; of an array the kind of its elements. KeyError: a kind that the format does not have."""
        if kind != ARRAY:
            self.take(self.number(UINT64) if kind == STRING else struct.calcsize(f"<{NUMBERS[kind]}"))
            return None
        of, count = self.number(UINT32), self.number(UINT64)
        if of == STRING:
            for _ in range(count):
                self.take(self.number(UINT64))
        else:
            self.take(count * struct.calcsize(f"<{NUMBERS[of]}"))
        return int(of)


class _Part:
    """One file, read from its beginning to its first tensor."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.cursor = path, data, _Cursor(data)

    def read(self) -> GgufFile:
        if self.cursor.take(4) != MAGIC:
            raise broken(self.path, f"is not a GGUF file: it starts with {bytes(self.data[:4])!r}")
        version = self.cursor.number(UINT32)
        if version not in VERSIONS:
            raise broken(
                self.path, f"is GGUF of version {version}, not {' or '.join(map(str, VERSIONS))} in little-endian"
            )
        tensors, entries = self.cursor.number(UINT64), self.cursor.number(UINT64)
        metadata = self._metadata(entries)
        declared = [self._declared() for _ in range(tensors)]
        alignment = _alignment(metadata)
        if type(alignment) is not int or alignment < 8 or alignment & (alignment - 1):
            raise broken(self.path, f"has general.alignment {alignment!r}, which is no power of two")
        return GgufFile((self.path,), version, metadata, self._placed(declared, alignment))

    def _metadata(self, count: int) -> dict[str, Entry]:
        entries = dict[str, Entry]()
        for _ in range(count):
            name, kind = self.cursor.text(), self.cursor.number(UINT32)
            if name in entries:
                raise broken(self.path, f"has metadata {name!r} twice")
            start = self.cursor.at
            of = self.cursor.skip(kind)
            entries[name] = Entry(kind, bytes(self.data[start : self.cursor.at]), of)
        return entries

    def _declared(self) -> tuple[str, tuple[int, ...], int, int]:
        name, dimensions = self.cursor.text(), self.cursor.number(UINT32)
        if dimensions > MAX_DIMENSIONS:
            raise broken(self.path, f"has {name!r} in {dimensions} dimensions, more than {MAX_DIMENSIONS}")
        shape = tuple(self.cursor.number(UINT64) for _ in range(dimensions))
        return name, shape, self.cursor.number(UINT32), self.cursor.number(UINT64)

    def _placed(
        self, declared: Sequence[tuple[str, tuple[int, ...], int, int]], alignment: int
    ) -> tuple[GgufTensor, ...]:
        """Place the tensors: each reaches to the start of the next, the last to the end of the file."""
        if not declared:  # the first part of a split model may have metadata alone
            return ()
        first, end = aligned(self.cursor.at, alignment), len(self.data)
        starts = sorted({start for *_, start in declared})
        following = dict(zip(starts, [*starts[1:], end - first], strict=True))
        if starts[-1] >= end - first:
            raise _Truncated
        if len(starts) != len(declared) or any(start % alignment for start in starts):
            raise broken(self.path, f"has tensors at shared places, or not aligned at {alignment} bytes")
        for name, shape, kind, start in declared:
            needed, there = stored_bytes(shape, kind), following[start] - start
            if needed is not None and there < needed:
                raise broken(self.path, f"has {there:,} of the {needed:,} bytes of {name!r}, and ends after {end:,}")
        return tuple(
            GgufTensor(name, shape, kind, Span(self.path, first + start, first + following[start]))
            for name, shape, kind, start in declared
        )


def stored_bytes(shape: Sequence[int], kind: int) -> int | None:
    """Count the bytes of a tensor of that shape and type; None for a type that gguf-py does not know.

    >>> stored_bytes((64, 2), 0), stored_bytes((64, 2), 2), stored_bytes((64, 2), 999)
    (512, 72, None)
    """
    from gguf.constants import GGML_QUANT_SIZES

    block, nbytes = GGML_QUANT_SIZES.get(kind, (0, 0))  # type: ignore[call-overload]  # its keys are numbers
    return math.prod(shape) // block * nbytes if block else None


def write_gguf(
    path: Path,
    entries: Mapping[str, Entry],
    tensors: Sequence[GgufTensor],
    *,
    like: GgufFile,
    on_bytes: Callable[[int], None] = lambda _count: None,
) -> WrittenFile:
    """Write one new file of this metadata and of these tensors' bytes, in their order; in the version of another one."""
    return write_pieces(path, _pieces(entries, tensors, like), on_bytes)


def _pieces(entries: Mapping[str, Entry], tensors: Sequence[GgufTensor], like: GgufFile) -> Iterator[Piece]:
    version, alignment = like.version, _alignment(entries)
    head = [MAGIC, struct.pack("<IQQ", version, len(tensors), len(entries))]
    head += [_text(name) + struct.pack("<I", entry.kind) + entry.raw for name, entry in entries.items()]
    start = 0
    for tensor in tensors:
        dimensions = struct.pack(f"<I{len(tensor.shape)}Q", len(tensor.shape), *tensor.shape)
        head.append(_text(tensor.name) + dimensions + struct.pack("<IQ", tensor.kind, start))
        start += aligned(len(tensor.data), alignment)
    whole = b"".join(head)
    yield whole + bytes(aligned(len(whole), alignment) - len(whole))
    for tensor in tensors:
        yield tensor.data
        if missing := -len(tensor.data) % alignment:  # the last of a file may not be filled up
            yield bytes(missing)


def aligned(size: int, alignment: int) -> int:
    """Round a size up to a multiple of the alignment.

    >>> aligned(33, 32), aligned(64, 32)
    (64, 64)
    """
    return -(-size // alignment) * alignment


def _text(value: str) -> bytes:
    stored = value.encode("utf-8", "surrogateescape")
    return struct.pack("<Q", len(stored)) + stored
