"""Everything shortstack raises on purpose.

ShortstackError                 exit code 1: it failed
+-- TrainingError               healing diverged or cannot go on
|   +-- TimeUpError             the time was up before the first step
+-- InputError                  exit code 2: what was asked for cannot be done
    +-- CheckpointError         a checkpoint is missing, truncated, hostile or in a form that is refused
    +-- ArchitectureError       an architecture, or a cut of it, that cannot be expressed exactly
    +-- PlanError               a plan that names layers the model does not have, all of them, or none
    +-- DataError               text or training data that cannot be used
    +-- OutputError             an output that exists, is nested in the input, or cannot be written
        +-- DiskFullError       the disk has no room for what is to be written

Every error is one or two plain sentences: what is wrong, with the value in it, and what to do. `option` names the
parameter that it is about; the command line shows it as `--option`, a YAML file by its line.

>>> print(PlanError("40 of the model's 30 layers cannot be removed; give 1 to 29, or a share such as 25%", option="drop"))
drop: 40 of the model's 30 layers cannot be removed; give 1 to 29, or a share such as 25%
"""

from __future__ import annotations

from functools import partial
from typing import Any, Self

NO_MEMORY = (  # in the words of torch, oneDNN, the system's loader and the C library
    "can't allocate memory",
    "could not create a primitive",
    "failed to map segment",
    "out of memory",
    "Cannot allocate memory",
)


def one_line(error: BaseException) -> str:
    """Put the message of another library's error on one line, cut where it grows long."""
    return " ".join(str(error).split())[:200]


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error means out of memory, whichever library raised it.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"))
    True
    """
    return isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY)


class ShortstackError(Exception):
    """The root of all errors. message: one or two sentences. option: the parameter that it is about, as Python spells it."""

    exit_code = 1

    def __init__(self, message: object, *, option: str = "") -> None:
        self.message, self.option = str(message), option
        super().__init__(f"{option}: {self.message}" if option else self.message)

    def about(self, option: str) -> Self:
        """Return the same error about another option, or with "" about none."""
        return type(self)(self.message, option=option)

    def at(self, place: str) -> Self:
        """Return the same error with a place before it, such as "my.yaml, line 7"."""
        return type(self)(f"{place}: {self}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle an error, since those of a worker reach who started it."""
        return partial(type(self), self.message, option=self.option), ()


class TrainingError(ShortstackError):
    """Healing diverged or cannot go on."""


class TimeUpError(TrainingError):
    """The time was up before the first training step."""


class InputError(ShortstackError):
    """The request cannot be carried out; nothing was written."""

    exit_code = 2


class CheckpointError(InputError):
    """A checkpoint is missing, truncated, hostile, or in a form that is refused."""


class ArchitectureError(InputError):
    """An architecture, or a cut of it, that cannot be expressed exactly."""


class PlanError(InputError):
    """A plan that names layers the model does not have, all of them, or none."""


class DataError(InputError):
    """Text or training data that cannot be used."""


class OutputError(InputError):
    """An output that exists, is nested in the input, or cannot be written."""


class DiskFullError(OutputError):
    """The disk has no room for what is to be written: what else is begun would fail, too."""


class ShortstackWarning(UserWarning):
    """Warning that something was done in another way than asked; the command line prints it on a line of its own."""
