"""Where shortstack keeps what it can compute again: $SHORTSTACK_CACHE, else the user's cache directory."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path


def cache_directory(*parts: str) -> Path:
    """A folder of the cache, created; `parts` name it."""
    root = os.environ.get("SHORTSTACK_CACHE")
    base = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shortstack"
    directory = base.joinpath(*parts)
    directory.mkdir(parents=True, exist_ok=True)
    return directory


MARGIN_BYTES = 256 << 20


def content_key(**parts: object) -> str:
    """A short digest of everything the states depend on."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:32]
