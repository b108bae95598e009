"""Where shortstack keeps what it can compute again: $SHORTSTACK_CACHE, else the user's cache directory."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

from platformdirs import user_cache_path


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


def content_key(**parts: object) -> str:
    """The name of what is kept: a short digest of everything it depends on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]
