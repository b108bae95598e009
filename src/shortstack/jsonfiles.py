"""JSON as it is written to files and to stdout: infinities as null, whole or not at all."""

from __future__ import annotations

import json
import math
import os
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def finite(value: Any) -> Any:
    """The same data with null where JSON has no word: for infinities and what is no number.

    >>> finite({"loss": [1.5, float("inf")]})
    {'loss': [1.5, None]}
    """
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Mapping):
        return {key: finite(item) for key, item in value.items()}
    return [finite(item) for item in value] if isinstance(value, list | tuple) else value


def save_json(path: str | Path, data: Mapping[str, Any]) -> None:
    """Write a JSON file: under another name first, so that it is there whole or not at all."""
    path = Path(path)
    partial = path.with_name(f"{path.name}.partial-{uuid.uuid4().hex[:8]}")
    try:
        partial.write_text(json.dumps(finite(data), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
