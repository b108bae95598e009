"""The Python files behind a task: what its config names by !function, and what these use, as far as it is the user's own."""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

# Where installed libraries lie, whose versions are noted otherwise.
INSTALLED = tuple(Path(sysconfig.get_path(name)).resolve() for name in ("stdlib", "platstdlib", "purelib", "platlib"))


def files_of(task: Any) -> set[Path]:
    """The files of the task's class and functions, those beside them, and those of modules that they import."""
    files: set[Path] = set()
    for each in (type(task), *_functions(task.config)):
        _add(_home(each), files)
    return files | {beside for path in files for beside in path.parent.glob("*.py")}


def _functions(value: Any) -> Iterator[Any]:
    """The functions and classes inside a config."""
    if isinstance(value, partial):
        yield value.func
    elif callable(value):
        yield value
    elif is_dataclass(value):
        yield from (inside for field in fields(value) for inside in _functions(getattr(value, field.name, None)))
    elif isinstance(value, Mapping):
        yield from (inside for item in value.values() for inside in _functions(item))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        yield from (inside for item in value for inside in _functions(item))


def _add(module: ModuleType | None, files: set[Path]) -> None:
    """Add a module's file, and those of the modules that it took something from, unless they are installed."""
    place = getattr(module, "__file__", None)
    if not module or not place:
        return
    path = Path(place).resolve()
    if path in files or path.suffix != ".py" or any(path.is_relative_to(folder) for folder in INSTALLED):
        return
    files.add(path)
    for value in [*vars(module).values()]:
        _add(value if isinstance(value, ModuleType) else _home(value), files)


def _home(value: Any) -> ModuleType | None:
    """The module that a function or class is from."""
    name = getattr(value, "__module__", None)
    return sys.modules.get(name) if isinstance(name, str) else None
