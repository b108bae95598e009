"""Errors of cyclopts, worded as the package's own."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import get_args

from cyclopts import CoercionError, CycloptsError, MissingArgumentError, UnknownOptionError

from shortstack.errors import InputError
from shortstack.machine.options import check_choice_of

KINDS = {int: "a whole number", float: "a number", bool: "true or false"}


def refused(error: CycloptsError) -> InputError:
    verb = " ".join(["shortstack", *(error.command_chain or ())])
    explained = f"`{verb} --help` explains its options"
    named = str(error.argument.name) if error.argument else verb
    match error:
        case UnknownOptionError():
            name = str(error.token.keyword or error.token.value)
            near = nearest(name, (each for argument in error.argument_collection for each in argument.names))
            fix = f"did you mean {near}?" if near else explained
            return InputError("none of that name", expected=f"an option of {verb}", fix=fix, where=name)
        case MissingArgumentError():
            return InputError("none", expected="a value", fix=f"give one; {explained}", where=error.keyword or named)
        case CoercionError():
            return _unread(error, named)
    return InputError(str(error).rstrip("."), expected="words that it knows", fix=explained, where=verb)


def _unread(error: CoercionError, name: str) -> InputError:
    found, kinds = error.token.value if error.token else "", get_args(error.target_type) or (error.target_type,)
    choices = [each for each in kinds if isinstance(each, str)]
    if choices:
        try:
            check_choice_of("", found, choices)
        except InputError as refusal:
            return refusal.but(where=name)
    words = " or ".join(KINDS[kind] for kind in kinds if kind in KINDS) or "a value that it takes"
    return InputError(repr(found), expected=str(error.msg or words), fix="write one", where=name)


def nearest(name: str, known: Iterable[str]) -> str | None:
    """Return the option that is meant by a name that is none: one with the same initials, with all its words, or alike.

    >>> nearest("--lr", ["--lora-r", "--learning-rate"]), nearest("--epochs", ["--eval-steps", "--num-train-epochs"])
    ('--learning-rate', '--num-train-epochs')
    """
    words = name.removeprefix("--").replace("_", "-").split("-")
    options = {each: each[2:].split("-") for each in known if each.startswith("--")}
    initials = [each for each, parts in options.items() if "".join(part[0] for part in parts) == "".join(words)]
    whole = [each for each, parts in options.items() if {*words} <= {*parts}]
    near = [*sorted(initials, key=len, reverse=True), *whole, *difflib.get_close_matches(name, options, 1, 0.7)]
    return near[0] if near else None
