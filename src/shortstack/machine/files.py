"""Small files, written whole or not at all; JSON; checks of outputs and disks before anything is written."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import math
import os
import re
import shutil
import socket
import sys
import tempfile
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from shortstack.errors import DataError, DiskFullError, InputError, OutputError
from shortstack.machine.formats import size
from shortstack.machine.progress import check_stopped

DIGEST_BYTES = 32 << 20  # read at once
MARGIN_BYTES = 16 << 20  # of a disk that stay free
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # what a disk says that has no more room


def finite(value: Any) -> Any:
    """Replace infinities and NaN, which JSON does not have, with null.

    >>> finite({"loss": [1.5, float("inf")]})
    {'loss': [1.5, None]}
    """
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def to_jsonable(value: Any) -> Any:
    """Turn a value into JSON-able data: dataclasses by their fields, paths as text, tuples as lists.

    >>> to_jsonable({"output": Path("a/b"), "layers": (1, 2)})
    {'output': 'a/b', 'layers': [1, 2]}
    """
    if is_dataclass(value) and not isinstance(value, type):
        return {field.name: to_jsonable(getattr(value, field.name)) for field in fields(value)}
    if isinstance(value, Mapping):
        return {key: to_jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [to_jsonable(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def digest(data: Any) -> str:
    """Hash JSON-able data by SHA-256, the same for the same content whatever the order of its keys."""
    text = json.dumps(finite(data), sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_digest(path: Path) -> str:
    """Hash a file by sha256, in hexadecimal, in long blocks: between two a thread may wait for Python's lock."""
    sha, buffer = hashlib.sha256(), bytearray(min(DIGEST_BYTES, path.stat().st_size + 1))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            sha.update(memoryview(buffer)[:count])
    return sha.hexdigest()


def check_disk(place: Path, nbytes: int, *, what: str = "", fix: str = "free some space or write elsewhere") -> None:
    """Refuse what the disk of a place has no room for, before it is written; the place itself need not exist yet."""
    free, needed = shutil.disk_usage(existing_folder(place)).free, nbytes + MARGIN_BYTES
    if free < needed:
        expected = f"{size(needed)} of free disk{' for ' if what else ''}{what}"
        raise DiskFullError(size(free), expected=expected, fix=fix, where=place)


def disk_full(error: OSError) -> DiskFullError | None:
    """Convert the system's error of a full disk into a DiskFullError; None for any other error."""
    if error.errno not in FULL:
        return None
    reason, fix = error.strerror or "none", "free some space, or write elsewhere"
    return DiskFullError(reason, expected="room to write", fix=fix, where=error.filename or "the disk")


RUST_ERROR = re.compile(r"\(os error (\d+)\)")  # safetensors and tokenizers
TORCH_WRITER = re.compile(r"inline_container|iostream|PytorchStreamWriter")
WRITE_ERRORS = (*FULL, errno.EROFS, errno.EACCES)


@contextmanager
def disk_errors(place: Path) -> Iterator[None]:
    """Turn, while it lasts, what safetensors, tokenizers and torch raise of a disk into an OSError that names the place."""
    try:
        yield
    except OSError:
        raise
    except Exception as error:
        # No class says what it is: each library has its own, and that of tokenizers is Exception itself.
        number = _system_error(str(error), place)
        if number is None:
            raise
        raise OSError(number, os.strerror(number), str(place)) from error


def _system_error(said: str, place: Path) -> int | None:
    """Find the number of the system's error that a message is about; None if it is about something else.

    >>> _system_error("I/O error: No space left on device (os error 28)", Path("out"))
    28
    """
    if match := RUST_ERROR.search(said):
        return int(match[1])
    if not TORCH_WRITER.search(said):
        return None
    # torch says that writing failed and seldom why.
    unknown = errno.ENOSPC if shutil.disk_usage(existing_folder(place)).free < MARGIN_BYTES else errno.EIO
    return next((number for number in WRITE_ERRORS if os.strerror(number) in said), unknown)


def existing_folder(place: Path) -> Path:
    """Return a place if it exists, else the innermost folder above it that does."""
    absolute = place.absolute()
    return next(folder for folder in (absolute, *absolute.parents) if os.path.exists(folder))


def save_json(path: str | Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file, whole or not at all."""
    with atomic_write(Path(path)) as partial:
        partial.write_text(json.dumps(finite(data), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """Read the object in a JSON file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(
            (error.strerror if isinstance(error, OSError) else None) or str(error),
            expected="a JSON file",
            fix="check the path, or write it again",
            where=path,
        ) from error
    if not isinstance(data, dict):
        raise DataError(type(data).__name__, expected="a JSON object", fix="write it again", where=path)
    return data


def partial_of(path: Path) -> Path:
    """Make a temporary name for what is to be `path`, which says who writes it; remove what killed processes left.

    >>> partial_of(Path("out")).name  # doctest: +SKIP
    'out.partial-3fa1-4711-9c0b6e2d'
    """
    import psutil  # here, since --help needs the rest of this file

    ours = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:4]
    for other in path.parent.glob(f"{glob.escape(path.name)}.partial-*"):
        match = PARTIAL.search(other.name)
        if match and match["host"] == ours and not psutil.pid_exists(int(match["process"])):
            remove(other)
    return path.with_name(f"{path.name}.partial-{ours}-{os.getpid()}-{uuid.uuid4().hex[:8]}")


PARTIAL = re.compile(r"\.partial-(?P<host>[0-9a-f]{4})-(?P<process>\d+)-[0-9a-f]{8}$")


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def clear(folder: Path, *, last: tuple[str, ...]) -> None:
    """Remove a folder; last, in this order, what begins so: by it the next run knows what is left."""

    def turn(path: Path) -> int:
        return next((place for place, name in enumerate(last, 1) if path.name.startswith(name)), 0)

    for path in sorted(folder.iterdir(), key=turn):
        remove(path)
        if path.exists():
            return
    folder.rmdir()


def missing_parents(path: Path) -> list[Path]:
    """List the folders above a path that would have to be made for it, the lowest first."""
    return [parent for parent in path.absolute().parents if not os.path.exists(parent)]


def remove_empty(folders: Sequence[Path]) -> None:
    """Remove folders, the lowest first, up to one that holds something, such as an output."""
    with suppress(OSError):
        for folder in folders:
            folder.rmdir()


@contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """Make a folder beside an output for what waits to be written there; remove it at the end, with parents made for it."""
    folder = partial_of(path)
    made = missing_parents(path)
    try:
        make_folder(folder)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        remove_empty(made)


@contextmanager
def atomic_write(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Yield a temporary name to write a file under; it gets its own at the end, and is removed where writing fails.

    durable: whether the file is there after a power cut, too, once this has ended.
    """
    partial = partial_of(path)
    try:
        yield partial
        if durable:
            sync(partial)
        os.replace(partial, path)
        if durable:
            sync(path.parent)
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)  # a full disk does not say which file it has no room for
        raise
    finally:
        partial.unlink(missing_ok=True)


TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR)  # of a rename: there is something of that name


def rename_new(made: Path, output: Path) -> None:
    """Give what is on the disk its name, which it has after a power cut, too, once this has ended."""
    check_stopped()
    try:
        os.rename(made, output)
    except OSError as error:
        if error.errno not in TAKEN:
            raise
        reason, expected = error.strerror or str(error), "an output that does not exist yet"
        raise OutputError(reason, expected=expected, fix="name another", where=output) from error
    sync(output.absolute().parent)  # first, so that it never has neither name
    if made.absolute().parent != output.absolute().parent:
        sync(made.absolute().parent)


def make_folder(folder: Path) -> None:
    """Make a folder, and those above it that are missing, whose names last."""
    if not folder.is_dir():
        make_folder(folder.absolute().parent)
        folder.mkdir(exist_ok=True)
        sync(folder.absolute().parent)


def sync(path: Path) -> None:
    """Have the system write a file, or what a folder lists, to the disk."""
    if sys.platform == "win32" and path.is_dir():  # Windows cannot open a folder
        return
    descriptor = os.open(path, os.O_RDWR if sys.platform == "win32" else os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Have the system write a folder, and all that is in it, to the disk."""
    for path in (*folder.rglob("*"), folder):
        sync(path)


def check_new(output: Path, *, make_folders: bool = False) -> None:
    """Refuse an output that exists or cannot be written, before minutes of work for it: nothing is ever overwritten."""
    folder = output.absolute().parent
    nearest = existing_folder(folder)
    if os.path.lexists(output) or output.resolve().exists():
        expected, actual, fix = "an output that does not exist yet", "it exists", "name another, or move it away"
    elif not make_folders and not folder.is_dir():
        expected, actual, fix = "a directory to write in", f"none at {folder}", "make it"
    elif not _writable(nearest):
        expected, actual, fix = "a directory that can be written", f"{nearest}, which cannot", "name another"
    else:
        return
    raise OutputError(actual, expected=expected, fix=fix, where=output)


def check_picture(path: Path) -> None:
    """Refuse a picture that cannot be written, before minutes of work for it."""
    if path.suffix.lower() != ".svg":
        fix = "end it in .svg; rsvg-convert or a browser makes others of it"
        raise InputError(repr(path.name), expected="a name ending in .svg", fix=fix, where=path)
    check_new(path)


def _writable(folder: Path) -> bool:
    """Say whether files can be made in a folder, by making one: permissions do not hold for /proc, nor on all disks."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError as error:
        return disk_full(error) is not None  # that is another fault, which is said as such
