"""Arguments of the wrong type, refused in our words and not by whatever first trips over them.

pydantic's validate_call would import what annotations name, torch and transformers among it, before anything is checked,
and cannot where a name is imported for type checkers alone.
"""

from __future__ import annotations

import functools
import inspect
import numbers
import os
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from shortstack.errors import InputError

P = ParamSpec("P")
R = TypeVar("R")

PLAIN: dict[str, type] = {"int": numbers.Integral, "float": numbers.Real, "Path": os.PathLike, "None": type(None)}
# What takes many forms says itself what is wrong with one.
OPEN = {"Model", "Rows", "Source", "Sources", "Sizes", "Progress", "SkippedLayers", "Any"}
ALIASES = {"Cut": "Plan | Chosen | str | list | tuple | set | frozenset | range"}


def typed(function: Callable[P, R]) -> Callable[P, R]:
    """Refuse arguments that are of no type that the function's annotations name, before it begins."""
    signature = inspect.signature(function)

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            check_type(name, value, str(signature.parameters[name].annotation))
        return function(*args, **kwargs)

    return checked


def check_type(name: str, value: Any, annotation: str) -> None:
    """Refuse a value that is of none of the types that an annotation names, where names of classes are all it has."""
    kinds = ALIASES.get(annotation, annotation).split(" | ")
    checkable = all(kind.isidentifier() for kind in kinds) and not OPEN & {*kinds}
    if checkable and not any(_is(value, kind) for kind in kinds):
        actual = f"{value!r:.60} ({type(value).__name__})"
        raise InputError(actual, expected=" or ".join(kinds), fix="give one", option=name)


def _is(value: Any, kind: str) -> bool:
    return isinstance(value, PLAIN.get(kind, ())) or any(base.__name__ == kind for base in type(value).__mro__)
