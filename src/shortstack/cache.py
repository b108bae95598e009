"""Where shortstack keeps what it can compute again: $SHORTSTACK_CACHE, else the user's cache directory."""

import os
from pathlib import Path


def cache_directory(*parts: str) -> Path:
    """A folder of the cache, created; `parts` name it."""
    root = os.environ.get("SHORTSTACK_CACHE")
    base = Path(root) if root else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "shortstack"
    directory = base.joinpath(*parts)
    directory.mkdir(parents=True, exist_ok=True)
    return directory
