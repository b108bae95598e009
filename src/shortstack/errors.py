"""Everything shortstack raises on purpose.

ShortstackError                 exit code 1: it failed
+-- VerificationError           a checkpoint is not what it claims to be
+-- TrainingError               healing diverged or cannot go on
+-- InputError                  exit code 2: what was asked for cannot be done
    +-- CheckpointError         a checkpoint is missing, truncated, hostile or in a form that is refused
    +-- ArchitectureError       an architecture, or a cut of it, that cannot be expressed exactly
    +-- PlanError               a plan that names layers the model does not have, all of them, or none
    +-- DataError               text or training data that cannot be used
    +-- OutputError             an output that exists, is nested in the input, or cannot be written
        +-- DiskFullError       the disk has no room for what is to be written

Every error says where, what was expected, what was found and what to do. It names parameters by `parameter`, and whoever
shows it spells them: Python as drop='25%', the command line as --drop 25%, a recipe as drop: 25%.

>>> error = PlanError(
...     parameter("drop"), expected="a count or a percentage", found="'lots'", fix=f"write {parameter('drop', '25%')}"
... )
>>> print(error)
drop: expected a count or a percentage, found 'lots'. To fix it: write drop='25%'.
>>> error.spelled(as_yaml).fix
'write drop: 25%'
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection
from typing import NamedTuple, Self

Spelling = Callable[[str, str], str]
_BEGIN, _VALUE, _END = "\ue000", "\ue001", "\ue002"  # private characters: no file, name or option contains them
_PARAMETER = re.compile(f"{_BEGIN}(.*?){_VALUE}(.*?){_END}", re.DOTALL)
_WAYS = re.compile(r",? or |, ")  # between the ways out that a fix names


def parameter(name: str, value: object = None) -> str:
    """A parameter in the words of an error, with a value where one is to be written."""
    return f"{_BEGIN}{name}{_VALUE}{'' if value is None else value}{_END}"


def one_line(error: BaseException) -> str:
    """The message of another library's error on one line, cut where it grows long."""
    return " ".join(str(error).split())[:200]


NO_MEMORY = (  # in the words of torch, oneDNN, the system's loader and the C library
    "can't allocate memory",
    "could not create a primitive",
    "failed to map segment",
    "out of memory",
    "Cannot allocate memory",
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that no memory was left, whichever library met it.

    >>> is_out_of_memory(RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"))
    True
    """
    return isinstance(error, MemoryError) or any(words in str(error) for words in NO_MEMORY)


def as_python(name: str, value: str) -> str:
    """As an argument of a call: lr=0.1, data='pydoc'.

    >>> as_python("lr", "0.1"), as_python("data", "pydoc"), as_python("search", "True"), as_python("drop", "")
    ('lr=0.1', "data='pydoc'", 'search=True', 'drop')
    """
    plain = re.fullmatch(r"-?[\d.]+(e-?\d+)?|True|False|None|[A-Z]+", value)
    return f"{name}={value if plain else repr(value)}" if value else name


def as_yaml(name: str, value: str) -> str:
    """As a key of a recipe or of a study's file.

    >>> as_yaml("lr", "0.1"), as_yaml("search", "True"), as_yaml("drop", "")
    ('lr: 0.1', 'search: true', 'drop')
    """
    return f"{name}: {value.lower() if value in ('True', 'False') else value}" if value else name


def as_option(name: str, value: str) -> str:
    """A parameter as an option of the command line.

    >>> as_option("held_out", "5"), as_option("search", "True"), as_option("cache", "False"), as_option("drop", "")
    ('--held-out 5', '--search', '--no-cache', '--drop')
    """
    option = name.replace("_", "-")
    if value in ("True", ""):
        return f"--{option}"
    return f"--no-{option}" if value == "False" else f"--{option} {value}"


class Words(NamedTuple):
    """What an error says, parameters spelled."""

    where: str
    expected: str
    found: str
    fix: str


class ShortstackError(Exception):
    """The root: `where` names the file, parameter or layer; the other three complete the sentence."""

    exit_code = 1

    def __init__(self, where: object, *, expected: str, found: str, fix: str) -> None:
        self._words = Words(str(where), expected, found, fix)
        said = self.spelled(as_python)
        end = "" if said.fix.endswith("?") else "."
        super().__init__(f"{said.where}: expected {said.expected}, found {said.found}. To fix it: {said.fix}{end}")

    def __reduce__(self) -> tuple[object, ...]:
        return _made_again, (type(self), *self._words)  # errors of a worker reach who started it

    def spelled(self, spelling: Spelling) -> Words:
        """The same words, parameters spelled by who shows them."""
        return Words(*(_PARAMETER.sub(lambda found: spelling(found[1], found[2]), words) for words in self._words))

    def about(self, where: object) -> Self:
        """The same error about another place, such as a line of a file."""
        return type(self)(where, expected=self._words.expected, found=self._words.found, fix=self._words.fix)

    def in_file(self, place: str) -> Self:
        """The same error, said of a key of a file at that place, such as "my.yaml, line 7"."""
        said = self.spelled(as_yaml)
        return type(self)(f"{place}: {said.where}", expected=said.expected, found=said.found, fix=said.fix)

    def of(self, name: str) -> Self:
        """The same error, said of what a parameter names: a text, or a line of it."""
        words = self._words
        where = f"{parameter(name)}: {words.where}"
        return type(self)(where, expected=words.expected, found=words.found, fix=words.fix)

    def fixed_by(self, fix: str) -> Self:
        """The same error with another way out."""
        return type(self)(self._words.where, expected=self._words.expected, found=self._words.found, fix=fix)

    @property
    def parameters(self) -> frozenset[str]:
        """Every parameter that its words name."""
        return frozenset(found[1] for words in self._words for found in _PARAMETER.finditer(words))

    def ways_out(self, without: Collection[str]) -> str:
        """What can be done, but for the ways that name these parameters; "" where all of them do."""
        ways = [
            way
            for way in _WAYS.split(self._words.fix)
            if not {found[1] for found in _PARAMETER.finditer(way)} & {*without}
        ]
        return ", or ".join(ways)

    def naming_none_of(self, names: Collection[str], fix: str) -> Self:
        """The same error for who does not have these parameters: as plain words, and with another way out."""

        def plain(found: re.Match[str]) -> str:
            name, value = found[1], found[2]
            return f"{name.replace('_', ' ')} {value}".strip() if name in names else found[0]

        where, expected, found, _ = (_PARAMETER.sub(plain, words) for words in self._words)
        return type(self)(where, expected=expected, found=found, fix=fix)

    @property
    def parameter(self) -> str | None:
        """The parameter that the error is about; None where it is about something else."""
        named = _PARAMETER.match(self._words.where)
        return named[1] if named else None

    @property
    def where(self) -> str:
        return self.spelled(as_python).where

    @property
    def expected(self) -> str:
        return self.spelled(as_python).expected

    @property
    def found(self) -> str:
        return self.spelled(as_python).found

    @property
    def fix(self) -> str:
        return self.spelled(as_python).fix


def _made_again(kind: type[ShortstackError], where: str, expected: str, found: str, fix: str) -> ShortstackError:
    return kind(where, expected=expected, found=found, fix=fix)


class VerificationError(ShortstackError):
    """A checkpoint is not what it claims to be."""


class TrainingError(ShortstackError):
    """Healing diverged or cannot go on."""


class InputError(ShortstackError):
    """What was asked for cannot be done; nothing was written."""

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
    """What was done in another way than was asked for; the command line says it in a line of its own."""
