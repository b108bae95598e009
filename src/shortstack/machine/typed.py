"""Arguments of the wrong type, refused in our words and not by whatever first trips over them."""

from __future__ import annotations

import functools
import inspect
import numbers
import os
import re
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

from shortstack.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

PLAIN: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "int": numbers.Integral,
    "float": numbers.Real,
    "bool": bool,
    "Path": os.PathLike,
    "None": type(None),
}
# What takes many forms says itself what is wrong with one.
OPEN = {"Model", "Rows", "Source", "Sizes", "Progress", "SkippedLayers", "Any"}

ALIASES = {"Cut": "Plan | Chosen | str | list | tuple | set | range"}


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """Refuse arguments that are not of a type that the function's annotations name, before it begins.

    Only names are looked at: classes by name, str, int, float, bool, Path and None; whatever else may be given
    (sequences, callables, models, rows) is left to the function.

    >>> @typed
    ... def cut(plan: Plan | Chosen, most: int | None = None): ...
    >>> cut("25%")
    Traceback (most recent call last):
    shortstack.errors.InputError: plan: expected Plan or Chosen, found a str, '25%'. To fix it: give one of these.
    """
    signature = inspect.signature(function)
    wanted = {name: kinds for name, each in signature.parameters.items() if (kinds := _kinds(each.annotation))}

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            given = signature.bind(*args, **kwargs).arguments
        except TypeError as error:  # which does not say whose arguments they are
            raise TypeError(f"{function.__name__}() {error}") from None
        for name, value in given.items():
            if name in wanted and not any(_is(value, kind) for kind in wanted[name]):
                raise _wrong(name, value, wanted[name])
        return function(*args, **kwargs)

    return checked


def check_type(name: str, value: Any, annotation: str) -> None:
    """Refuse a value that is of none of the types that an annotation names, where names are all it has."""
    kinds = _kinds(annotation)
    if kinds and not any(_is(value, kind) for kind in kinds):
        raise _wrong(name, value, kinds)


def _kinds(annotation: Any) -> list[str]:
    """The names that an annotation allows; none where it allows more than names say."""
    kinds = [each.strip() for each in ALIASES.get(str(annotation), str(annotation)).split("|")]
    simple = all(re.fullmatch(r"\w+", kind) for kind in kinds)
    return kinds if simple and not OPEN & {*kinds} and annotation is not inspect.Parameter.empty else []


def _is(value: Any, kind: str) -> bool:
    if kind == "bool" and type(value).__module__ == "numpy":
        return type(value).__name__.startswith("bool")
    if kind in PLAIN:
        return isinstance(value, PLAIN[kind])
    return any(base.__name__ == kind for base in type(value).__mro__)


def _wrong(name: str, value: Any, kinds: list[str]) -> InputError:
    expected = " or ".join(_words(kinds))
    name_of = type(value).__name__
    found = f"{'an' if name_of[0] in 'aeiou' else 'a'} {name_of}, {value!r:.60}"
    fix = "give one of these" if len(kinds) > 1 else "give one"
    return InputError(found, expected=expected, fix=fix, option=name)


def _words(kinds: list[str]) -> Iterator[str]:
    words = {"str": "text", "int": "a whole number", "float": "a number", "bool": "True or False", "Path": "a path"}
    for kind in kinds:
        if not (kind == "int" and "float" in kinds):  # a whole number is a number
            yield words.get(kind, kind)
