"""Where shortstack keeps what it can compute again: $SHORTSTACK_CACHE, else the user's cache directory."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from platformdirs import user_cache_path

from shortstack.machine.files import digest, plain

# The libraries that results depend on; those that are not installed take no part.
LIBRARIES = ("torch", "transformers", "tokenizers", "accelerate", "peft", "lm_eval", "bitsandbytes", "torchao")


def cache_directory(*parts: str) -> Path:
    """A folder of the cache, created; `parts` name it."""
    directory = _root().joinpath(*parts)
    directory.mkdir(parents=True, exist_ok=True)
    return directory


def _root() -> Path:
    """What the environment names; a cache of an earlier release, which kept to ~/.cache on all systems; else a new one."""
    if root := os.environ.get("SHORTSTACK_CACHE"):
        return Path(root)
    earlier = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shortstack"
    return earlier if earlier.is_dir() else user_cache_path("shortstack", appauthor=False)


MARGIN_BYTES = 256 << 20  # of the cache's disk that stay free


def content_key(kind: str, **parts: object) -> str:
    """The name of what is kept: the digest of all that it depends on, in 64 hexadecimal digits.

    Every cache and every step of a study is named by this function. kind: what is kept. parts: models, by
    `Checkpoint.identity`, data by its content, and options. The versions of libraries are always a part.
    """
    return digest(
        {"kind": kind, "libraries": library_versions(), **{name: plain(each) for name, each in parts.items()}}
    )


@functools.cache
def library_versions() -> Mapping[str, str]:
    """The versions of LIBRARIES, of those that are installed."""
    found = {}
    for name in LIBRARIES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
