"""Everything shortstack raises on purpose.

ShortstackError                 exit code 1: it failed
+-- TrainingError               healing diverged or cannot go on
+-- InputError                  exit code 2: what was asked for cannot be done
    +-- CheckpointError         a checkpoint is missing, truncated, hostile or in a form that is refused
    +-- ArchitectureError       an architecture, or a cut of it, that cannot be expressed exactly
    +-- PlanError               a plan that names layers the model does not have, all of them, or none
    +-- DataError               text or training data that cannot be used
    +-- OutputError             an output that exists, is nested in the input, or cannot be written
        +-- DiskFullError       the disk has no room for what is to be written

Every error says what it is about, what was expected, what was found and what to do, in plain words.

>>> print(PlanError("40 layers", expected="1 to 29 of the model's 30", fix="name a smaller count, or 25%", option="drop"))
drop: expected 1 to 29 of the model's 30, found 40 layers. To fix it: name a smaller count, or 25%.
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


PARTS = "found", "expected", "fix", "option", "where"


def one_line(error: BaseException) -> str:
    """Put the message of another library's error on one line, cut where it grows long."""
    return " ".join(str(error).split())[:200]


def is_out_of_memory(error: BaseException) -> bool:
    """Say whether an error tells that no memory was left, whichever library met it.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"))
    True
    """
    return isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY)


class ShortstackError(Exception):
    """The root: what was found, what was expected, and what to do.

    option: the parameter that it is about, by its name in Python. where: the file, layer or other place that it is about.
    """

    exit_code = 1

    def __init__(self, found: object, *, expected: str, fix: str, option: str = "", where: object = "") -> None:
        self.found, self.expected, self.fix, self.option, self.where = str(found), expected, fix, option, str(where)
        end = "" if fix.endswith("?") else "."
        super().__init__(f"{self.place(option)}: expected {expected}, found {found}. To fix it: {fix}{end}")

    def place(self, option: str) -> str:
        """Return the subject of the error; option: its option, in the spelling of who shows the error."""
        return ": ".join(filter(None, (option, self.where)))

    def but(self, **parts: Any) -> Self:
        """Return the same error with other parts."""
        return type(self)(**{name: getattr(self, name) for name in PARTS} | parts)

    def in_file(self, place: str) -> Self:
        """Return the same error, said of a key of a file at that place, such as "my.yaml, line 7"."""
        return self.but(option="", where=f"{place}: {self.place(self.option)}")

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle an error, since those of a worker reach who started it."""
        return partial(type(self), **{name: getattr(self, name) for name in PARTS}), ()


class TrainingError(ShortstackError):
    """Healing diverged or cannot go on."""


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
