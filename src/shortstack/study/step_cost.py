"""What a step takes."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from shortstack.planning import Choice


@dataclass(frozen=True)
class Cost:
    """What a step takes; None: nobody knows.

    In bytes, disk: of the weights it writes, cache: of what it keeps there, read: of weights, in all passes over them.
    """

    seconds: float | None = None
    disk: int | None = 0
    memory: int | None = None
    cache: int | None = 0
    read: int | None = 0


class Costed(Protocol):
    """Who wants a step, as far as its cost depends on that: a trial, or a verb that is called alone."""

    @property
    def model(self) -> str: ...

    @property
    def choice(self) -> Choice: ...

    @property
    def calibration(self) -> object:
        """False, or None, where layers are chosen without text."""

    @property
    def step(self) -> int | None: ...

    def amount(self, layers: int) -> int:
        """How many of so many layers go."""


def added(values: Iterable[Any]) -> Any:
    """The sum, or None where a part is unknown."""
    listed = list(values)
    return None if None in listed else sum(listed)
