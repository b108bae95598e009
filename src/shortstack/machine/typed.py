"""Arguments of the wrong type, refused in our words and not by whatever first trips over them."""

from __future__ import annotations

import functools
import inspect
import numbers
import os
import re
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from shortstack.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

PLAIN: dict[str, type] = {"int": numbers.Integral, "float": numbers.Real, "Path": os.PathLike, "None": type(None)}
WORDS = {"str": "text", "int": "a whole number", "float": "a number", "bool": "True or False", "Path": "a path"}
# What takes many forms says itself what is wrong with one.
OPEN = {"Model", "Rows", "Source", "Sizes", "Progress", "SkippedLayers", "Any"}
ALIASES = {"Cut": "Plan | Chosen | str | list | tuple | set | range"}


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """Refuse arguments that are of no type that the function's annotations name, before it begins.

    >>> @typed
    ... def cut(plan: Plan | Chosen, most: int | None = None): ...
    >>> cut("25%")
    Traceback (most recent call last):
    shortstack.errors.InputError: plan: expected Plan or Chosen, found a str, '25%'. To fix it: give one of these.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            check_type(name, value, str(signature.parameters[name].annotation))
        return function(*args, **kwargs)

    return checked


def check_type(name: str, value: Any, annotation: str) -> None:
    """Refuse a value that is of none of the types that an annotation names, where names of classes are all it has."""
    kinds = _kinds(annotation)
    if not kinds or any(_is(value, kind) for kind in kinds):
        return
    named = [kind for kind in kinds if not (kind == "int" and "float" in kinds)]  # a whole number is a number
    expected = " or ".join(WORDS.get(kind, kind) for kind in named)
    kind = type(value).__name__
    found = f"{'an' if kind[0] in 'aeiou' else 'a'} {kind}, {value!r:.60}"
    fix = "give one of these" if len(kinds) > 1 else "give one"
    raise InputError(found, expected=expected, fix=fix, option=name)


def _kinds(annotation: Any) -> list[str]:
    """Return the names that an annotation allows; none where it allows more than names say."""
    kinds = [each.strip() for each in ALIASES.get(str(annotation), str(annotation)).split("|")]
    simple = all(re.fullmatch(r"\w+", kind) for kind in kinds)
    return kinds if simple and not OPEN & {*kinds} else []


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, PLAIN.get(kind, ())) or any(base.__name__ == kind for base in type(value).__mro__)
