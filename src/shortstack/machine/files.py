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
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from shortstack.errors import DataError, DiskFullError, InputError, OutputError, one_line
from shortstack.machine.formats import size

DIGEST_BYTES = 32 << 20  # read at once
MARGIN_BYTES = 16 << 20  # of a disk that stay free
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk without room
TAKEN = (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR, errno.EISDIR)  # a rename onto something of that name


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
    """Hash a file by SHA-256, in hexadecimal, in long blocks: between two a thread may wait for Python's lock."""
    sha, buffer = hashlib.sha256(), bytearray(min(DIGEST_BYTES, path.stat().st_size + 1))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(buffer):
            sha.update(memoryview(buffer)[:count])
    return sha.hexdigest()


def check_disk(place: Path, nbytes: int, *, what: str = "", fix: str = "free some space or write elsewhere") -> None:
    """Refuse to write more than the disk of a place has room for; the place itself need not exist yet."""
    free, needed = shutil.disk_usage(existing_folder(place)).free, nbytes + MARGIN_BYTES
    if free < needed:
        wanted = f"{size(needed)} of free disk{' for ' if what else ''}{what}"
        raise DiskFullError(f"{place}: {size(free)} free, and {wanted} needed; {fix}")


def disk_full(error: OSError) -> DiskFullError | None:
    """Convert the system's error of a full disk into a DiskFullError; None for any other error."""
    if error.errno not in FULL:
        return None
    place, reason = error.filename or "the disk", error.strerror or "no room"
    return DiskFullError(f"{place}: {reason}; free some space, or write elsewhere")


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
        reason = (error.strerror if isinstance(error, OSError) else None) or one_line(error)
        raise DataError(f"{path} is not a JSON file that can be read: {reason}") from error
    if not isinstance(data, dict):
        raise DataError(f"{path} holds a JSON {type(data).__name__} instead of an object")
    return data


PARTIAL = re.compile(r"\.partial-(?P<host>[0-9a-f]{4})-(?P<process>\d+)-[0-9a-f]{8}$")


def partial_of(path: Path) -> Path:
    """Make a temporary name for what is to be `path`, with host and process in it; remove what killed processes left.

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


def remove(path: Path) -> None:
    """Remove a file or a folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def discard(path: Path) -> None:
    """Remove a file or a folder, its name first: no half is ever taken for a whole."""
    aside = partial_of(path)
    os.rename(path, aside)
    remove(aside)


@contextmanager
def scratch_beside(path: Path) -> Iterator[Path]:
    """Make a folder beside an output for temporary files; remove it at the end."""
    folder = partial_of(path)
    try:
        folder.mkdir(parents=True)
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary name to write a file under; it gets its own at the end, and is removed where writing fails."""
    partial = partial_of(path)
    try:
        yield partial
        sync(partial)
        os.replace(partial, path)
    except OSError as error:
        if error.errno is not None and error.filename is None:
            error.filename = str(path)  # a full disk does not say which file it has no room for
        raise
    finally:
        partial.unlink(missing_ok=True)


def rename_new(made: Path, output: Path) -> None:
    """Give a finished file or folder its name; nothing of that name is replaced."""
    try:
        os.rename(made, output)
    except OSError as error:
        if error.errno not in TAKEN:
            raise
        raise OutputError(f"{output} appeared meanwhile; name another output") from error
    sync(output.absolute().parent)


def sync(path: Path) -> None:
    """Have the system write a file, or the names in a folder, to the disk."""
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
    """Refuse an output that exists or cannot be written: nothing is ever overwritten."""
    folder = output.absolute().parent
    nearest = existing_folder(folder)
    if os.path.lexists(output) or output.resolve().exists():
        raise OutputError(f"{output} exists; name another output, or move it away")
    if not make_folders and not folder.is_dir():
        raise OutputError(f"{output}: there is no folder {folder}; make it first")
    if not _writable(nearest):
        raise OutputError(f"{output}: {nearest} cannot be written; name another output")


def check_picture(path: Path) -> None:
    """Refuse a picture that cannot be written."""
    if path.suffix.lower() != ".svg":
        raise InputError(f"{path} does not end in .svg; only SVG is drawn, which rsvg-convert or a browser converts")
    check_new(path)


def _writable(folder: Path) -> bool:
    """Return whether files can be made in a folder, by making one: permissions do not hold for /proc, nor on all disks."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            return True
    except OSError as error:
        return disk_full(error) is not None  # another fault, with its own message
