"""The cache of what can be computed again: $SHORTSTACK_CACHE, else the user's cache directory.

Each entry is a file or folder in the folder of its kind, named by content_key(). Any may be removed at any time; before
much is written, the least recently used ones are, down to $SHORTSTACK_CACHE_LIMIT.
"""

from __future__ import annotations

import functools
import os
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from platformdirs import user_cache_path

from shortstack.errors import InputError, OutputError
from shortstack.machine.files import digest, discard, partial_of, remove, rename_new, sync_tree, to_jsonable
from shortstack.machine.formats import BYTES, count_in

# The libraries that results depend on; those that are not installed take no part.
LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate", "peft", "lm_eval", "bitsandbytes", "torchao")
KINDS = ("activations", "data", "gguf", "models", "own-texts")
ENTRY = re.compile(r"[0-9a-f]{64}\b")  # how a name begins that content_key() gave
OURS: set[Path] = set()  # entries that this process has used, and may use again
MARGIN_BYTES = 256 << 20  # of the cache's disk that stay free
LIMIT = "50GB"  # unless $SHORTSTACK_CACHE_LIMIT says otherwise
IN_USE_SECONDS = 24 * 3600  # what was used since then may be in use, and stays


def cache_directory(*parts: str) -> Path:
    """Make a folder of the cache, which `parts` name, where it is not there yet; return it."""
    directory = _root().joinpath(*parts)
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _root() -> Path:
    root = os.environ.get("SHORTSTACK_CACHE")
    return Path(root) if root else user_cache_path("shortstack", appauthor=False)


def content_key(kind: str, **parts: object) -> str:
    """Name what is kept: by the digest of all that it depends on, in 64 hexadecimal digits.

    Every cache and every step of a study is named by this function. kind: what is kept. parts: models, by
    `Checkpoint.identity`, data by its content, and options. The versions of libraries are always a part, and so is
    shortstack's own, unless `code` stands for it.
    """
    known = {"kind": kind, "libraries": library_versions(), "code": version("shortstack")}
    return digest({**known, **{name: to_jsonable(part) for name, part in parts.items()}})


@functools.cache
def library_versions() -> Mapping[str, str]:
    """Look up the versions of LIBRARIES, of those that are installed."""
    versions = {}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


@dataclass(frozen=True)
class _Entry:
    """used: when it was last used, in seconds since 1970."""

    path: Path
    bytes: int
    used: float


def _entries() -> Iterator[_Entry]:
    """Iterate over the cached entries; nothing of another name is touched."""
    for folder in filter(Path.is_dir, (_root() / kind for kind in KINDS)):
        for path in filter(lambda path: ENTRY.match(path.name), sorted(folder.iterdir())):
            with suppress(FileNotFoundError):  # another process has just removed it
                files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
                yield _Entry(path, sum(file.stat().st_size for file in files), path.stat().st_mtime)


def mark_used(path: Path) -> None:
    """Make an entry the most recently used one, and keep it while this process runs."""
    OURS.add(path)
    with suppress(OSError):
        os.utime(path)


@contextmanager
def kept_folder(place: Path) -> Iterator[Path]:
    """Yield a folder to fill, which gets its name once it is whole on disk; another process may make the same meanwhile."""
    partial = partial_of(place)
    try:
        yield partial
        sync_tree(partial)
        rename_new(partial, place)
        mark_used(place)
    except OutputError:
        if not place.is_dir():
            raise
    finally:
        remove(partial)


def make_room(nbytes: int) -> None:
    """Remove the least recently used entries until so many bytes more fit the limit.

    What was used within a day stays, since a process may be using it; half-written entries that are older go in any case.
    """
    entries = sorted(_entries(), key=lambda entry: entry.used)
    over = sum(entry.bytes for entry in entries) + nbytes - cache_limit()
    unused = time.time() - IN_USE_SECONDS
    for entry in (candidate for candidate in entries if candidate.used < unused and candidate.path not in OURS):
        if over > 0 or ".partial-" in entry.path.name:
            with suppress(OSError):
                discard(entry.path)
            over -= entry.bytes


def cache_limit() -> int:
    """Return the bytes that the cache may grow to."""
    text = os.environ.get("SHORTSTACK_CACHE_LIMIT") or LIMIT
    nbytes = count_in(BYTES, text)
    if nbytes is None:
        raise InputError(f"$SHORTSTACK_CACHE_LIMIT is {text!r}; give a size like 50GB")
    return nbytes
