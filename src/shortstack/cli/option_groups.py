"""Groups of options: a dataclass whose fields are options stands as one parameter of a verb.

>>> @verb()  # doctest: +SKIP
... def score(model: str, text: CalibrationText, compute: Annotated[Compute, Only("seed", "device")]) -> None:
...     ...  # gains --text, --samples, --length, --seed, --device
"""

from __future__ import annotations

import functools
import inspect
import types
import typing
from collections.abc import Callable, Iterator
from copy import copy
from dataclasses import Field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

import typer

from shortstack.machine.options import Option


class Only(tuple[str, ...]):
    """Which fields of a group a verb has as options; the others stay at their defaults."""

    def __new__(cls, *names: str) -> Only:
        return super().__new__(cls, names)


class Group(NamedTuple):
    """A dataclass as a parameter of a verb, and those of its fields that are options there."""

    made: Any
    fields: list[Field[Any]]


def grouped(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with each parameter that is a group replaced by that group's options."""
    hints = get_type_hints(verb, include_extras=True)
    groups = {name: found for name, hint in hints.items() if (found := _group(hint))}
    parameters = []
    for parameter in inspect.signature(verb).parameters.values():
        group = groups.get(parameter.name)
        each = [*_options(group)] if group else [parameter.replace(annotation=hints[parameter.name])]
        parameters += [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in each]

    @functools.wraps(verb)
    def call(**options: Any) -> None:
        made = {
            name: group.made(**{field.name: _read(options.pop(field.name), field) for field in group.fields})
            for name, group in groups.items()
        }
        verb(**made, **options)

    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _group(hint: Any) -> Group | None:
    made, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    if not is_dataclass(made):
        return None
    only = next((note for note in notes if isinstance(note, Only)), None)
    return Group(
        made,
        [
            field
            for field in fields(made)
            if (field.name in only if only else "option" in field.metadata or "Annotated" in str(field.type))
        ],
    )


def _options(group: Group) -> Iterator[inspect.Parameter]:
    """A parameter for each field, under the first sentence of the group's docstring."""
    heading = inspect.cleandoc(group.made.__doc__).partition(".")[0]
    hints = get_type_hints(group.made, include_extras=True)
    for field in group.fields:
        hint = hints[field.name]
        kind, said = get_args(hint) if get_origin(hint) is Annotated else (_typed(hint), _said(field, hint))
        said = copy(said)  # groups share some
        said.rich_help_panel = heading
        yield inspect.Parameter(
            field.name, inspect.Parameter.KEYWORD_ONLY, default=field.default, annotation=Annotated[kind, said]
        )


def _said(field: Field[Any], hint: Any) -> Any:
    """What typer needs to know of a field: its help, its range, and its flags if it is one."""
    known: Option = field.metadata["option"]
    name = f"--{field.name.replace('_', '-')}"
    flags = [name] if bool not in _kinds(hint) or field.default is False else [f"{name}/--no-{name[2:]}"]
    metavar = f"<{'|'.join(known.choices)}>" if 0 < len(known.choices) < 5 else None
    whole = int in _kinds(hint) and str not in _kinds(hint)
    return typer.Option(
        *flags,
        help=known.help,
        min=known.minimum if whole or float in _kinds(hint) else None,
        max=known.maximum,
        metavar=metavar,
        show_default=field.default is not None,
    )


def _kinds(hint: Any) -> set[type]:
    """The types that a value may have, but None.

    >>> sorted(kind.__name__ for kind in _kinds(int | str | None))
    ['int', 'str']
    """
    if get_origin(hint) in (types.UnionType, typing.Union):
        return set().union(*(_kinds(each) for each in get_args(hint)))
    if get_origin(hint) is typing.Literal:
        return {type(each) for each in get_args(hint)}
    return {hint} - {type(None)}


def _typed(hint: Any) -> Any:
    """The one type that the command line reads: a path, a word or a number."""
    kinds = _kinds(hint)
    kind = next((each for each in (bool, Path, str, float, int) if each in kinds), str)
    return kind | None if type(None) in (get_args(hint) or ()) else kind


def _read(value: Any, field: Field[Any]) -> Any:
    """The value that was typed; digits are a number where the field may be one."""
    digits = isinstance(value, str) and value.isdecimal() and "option" in field.metadata
    return int(value) if digits and "int" in str(field.type).replace("|", " ").split() else value
