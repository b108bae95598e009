"""What a step takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cost:
    """What a step takes; None: nobody knows.

    In bytes, disk: of the weights it writes, cache: of what it keeps there, read: of weights, in all passes over them.
    """

    seconds: float | None = None
    disk: int | None = 0
    memory: int | None = None
    cache: int | None = 0
    read: int = 0


def added(values: Iterable[Any]) -> Any:
    """The sum, or None where a part is unknown."""
    listed = list(values)
    return None if None in listed else sum(listed)
