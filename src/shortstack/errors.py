"""Everything shortstack raises on purpose.

ShortstackError                 exit code 1: it failed
+-- VerificationError           a checkpoint is not what it claims to be
+-- TrainingError               healing diverged or cannot go on
+-- InputError                  exit code 2: what was asked for cannot be done
    +-- CheckpointError         a checkpoint is missing, truncated, hostile or in a form that is refused
    +-- ArchitectureError       an architecture, or a cut of it, that cannot be expressed exactly
    +-- PlanError               a plan that names layers the model does not have, all of them, or none
    +-- DataError               text or training data that cannot be used
    +-- OutputError             an output that exists, is nested in the input, or does not fit the disk

Every error says where, what was expected, what was found and what to do:

>>> print(PlanError("--drop", expected="a count or a percentage", found="'lots'", fix="write --drop 8 or --drop 25%"))
--drop: expected a count or a percentage, found 'lots'. To fix it: write --drop 8 or --drop 25%.
"""

from __future__ import annotations


class ShortstackError(Exception):
    """The root: `where` names the file, option or layer; the other three complete the sentence."""

    exit_code = 1

    def __init__(self, where: object, *, expected: str, found: str, fix: str) -> None:
        self.where, self.expected, self.found, self.fix = str(where), expected, found, fix
        super().__init__(f"{where}: expected {expected}, found {found}. To fix it: {fix}.")


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
    """An output that exists, is nested in the input, or does not fit the disk."""
