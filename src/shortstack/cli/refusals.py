"""Errors of cyclopts, worded as the package's own."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import Any, get_args

from cyclopts import (
    CoercionError,
    CycloptsError,
    MissingArgumentError,
    UnknownOptionError,
    UnusedCliTokensError,
)

from shortstack.errors import InputError
from shortstack.machine.options import check_choice_of

KINDS = {int: "a whole number", float: "a number", bool: "true or false"}


def refused(error: CycloptsError) -> InputError:
    """Return the error to show for one of cyclopts."""
    verb = " ".join(["shortstack", *(error.command_chain or ())])
    explained = f"`{verb} --help` explains its options"
    match error:
        case UnknownOptionError():
            name = str(error.token.keyword or error.token.value)
            near = nearest(name, (option for argument in error.argument_collection for option in argument.names))
            fix = f"did you mean {near}?" if near else explained
            return InputError("none of that name", expected=f"an option of {verb}", fix=fix, where=name)
        case UnusedCliTokensError():
            unused = " ".join(error.unused_tokens or ())
            return InputError(unused, expected="no more arguments", fix=explained, where=verb)
        case MissingArgumentError():
            name = error.keyword or _name(error)
            return InputError("none", expected="a value", fix=f"give one; {explained}", where=name)
        case CoercionError():
            return _unread(error)
    return InputError(error, expected="valid options and arguments", fix=explained, where=verb)


def _unread(error: CoercionError) -> InputError:
    name, value = _name(error), error.token.value if error.token else ""
    choices = [choice for choice in get_args(error.target_type) if isinstance(choice, str)]
    if choices:
        try:
            check_choice_of(name.removeprefix("--").replace("-", "_"), value, choices)
        except InputError as refusal:
            return refusal
    kinds: Iterable[Any] = get_args(error.target_type) or (error.target_type,)
    words = " or ".join(KINDS[kind] for kind in kinds if kind in KINDS) or "a value that it takes"
    return InputError(repr(value), expected=str(error.msg or words), fix="write one", where=name)


def _name(error: CycloptsError) -> str:
    return str(error.argument.name) if error.argument else "shortstack"


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the option that is meant by a name that is none: one with the same initials, with all its words, or alike.

    >>> nearest("--lr", ["--lora-r", "--learning-rate"]), nearest("--epochs", ["--eval-steps", "--num-train-epochs"])
    ('--learning-rate', '--num-train-epochs')
    """
    words = name.removeprefix("--").replace("_", "-").split("-")
    options = {option: option[2:].split("-") for option in known if option.startswith("--")}
    initials = [option for option, parts in options.items() if "".join(part[0] for part in parts) == "".join(words)]
    whole = [option for option, parts in options.items() if {*words} <= {*parts}]
    near = [*sorted(initials, key=len, reverse=True), *whole, *difflib.get_close_matches(name, options, 1, 0.7)]
    return near[0] if near else None
