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
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import copy
from dataclasses import MISSING, Field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, NamedTuple, get_args, get_origin, get_type_hints

import typer

from shortstack.errors import InputError
from shortstack.machine.formats import amount_of, count_of
from shortstack.machine.options import Option, within


class Only(tuple[str, ...]):
    """Which fields of a group a verb has as options; the others stay at their defaults."""

    def __new__(cls, *names: str) -> Only:
        return super().__new__(cls, names)


class Without(tuple[str, ...]):
    """Which fields of a group, or of the groups in it, a verb does not have as options."""

    def __new__(cls, *names: str) -> Without:
        return super().__new__(cls, names)


class Values(tuple[Any, ...]):
    """Dataclasses of whose fields a verb gets the values by name, in one dictionary: they are made later.

    given: a further one; None stands where nothing of it was typed, whatever the field's default.
    """

    given: Any

    def __new__(cls, *components: Any, given: Any = None) -> Values:
        made = super().__new__(cls, components)
        made.given = given
        return made


class OptionSection(NamedTuple):
    """A dataclass, and those of its fields that are options, each with its default."""

    component: Any
    options: list[tuple[Field[Any], Any]]


class Group(NamedTuple):
    """A parameter of a verb that stands for the options of its sections; made: what it is made by from their values."""

    made: Any
    sections: list[OptionSection]

    @property
    def fields(self) -> list[Field[Any]]:
        return [field for section in self.sections for field, _ in section.options]


def grouped(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with each parameter that is a group replaced by that group's options."""
    hints = get_type_hints(verb, include_extras=True)
    groups = {name: found for name, hint in hints.items() if (found := _group(hint))}
    parameters = []
    for given in inspect.signature(verb).parameters.values():
        group = groups.get(given.name)
        each = [*_options(group)] if group else [given.replace(annotation=hints[given.name])]
        parameters += [one.replace(kind=inspect.Parameter.KEYWORD_ONLY) for one in each]

    @functools.wraps(verb)
    def call(**options: Any) -> None:
        made = {
            name: group.made(**{field.name: _read(options.pop(field.name), field) for field in group.fields})
            for name, group in groups.items()
        }
        verb(**made, **options)

    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {each.name: each.annotation for each in parameters}
    return call


def _group(hint: Any) -> Group | None:
    made, *notes = get_args(hint) if get_origin(hint) is Annotated else (hint,)
    values = next((note for note in notes if isinstance(note, Values)), None)
    if values is not None:
        typed = [_section(values.given, given=True)] if values.given else []
        return Group(dict, [*map(_section, values), *typed])
    if not is_dataclass(made):
        return None
    only = next((note for note in notes if isinstance(note, Only)), None)
    without = next((note for note in notes if isinstance(note, Without)), ())
    parts = {name: hint for name, hint in get_type_hints(made).items() if is_dataclass(hint)}
    if not parts:
        return Group(made, [_section(made, only, without)])
    return Group(functools.partial(_nested, made, parts), [_section(part, only, without) for part in parts.values()])


def _nested(made: Any, parts: Mapping[str, Any], **values: Any) -> Any:
    """A group of groups, from the values of all their options."""
    own = {name: {field.name for field in fields(part)} & values.keys() for name, part in parts.items()}
    return made(**{name: part(**{each: values[each] for each in own[name]}) for name, part in parts.items()})


def _section(
    component: Any, only: Only | None = None, without: Sequence[str] = (), *, given: bool = False
) -> OptionSection:
    options = [
        field
        for field in fields(component)
        if (field.name in only if only else "option" in field.metadata or "Annotated" in str(field.type))
        and field.name not in without
    ]
    return OptionSection(component, [(field, None if given else _default(field)) for field in options])


def _default(field: Field[Any]) -> Any:
    """The field's default; of one that must be given, what a parameter without a default has."""
    return inspect.Parameter.empty if field.default is MISSING else field.default


def _options(group: Group) -> Iterator[inspect.Parameter]:
    """A parameter for each field, under the first sentence of its dataclass's docstring."""
    for section in group.sections:
        heading = inspect.cleandoc(section.component.__doc__).partition(".")[0]
        hints = get_type_hints(section.component, include_extras=True)
        for field, default in section.options:
            hint = hints[field.name]
            kind, said = get_args(hint) if get_origin(hint) is Annotated else (_typed(hint, field), _said(field, hint))
            said = copy(said)  # groups share some
            said.rich_help_panel = heading
            if default is not _default(field):
                kind, said.show_default = kind | None, False
            yield inspect.Parameter(
                field.name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=Annotated[kind, said]
            )


def _said(field: Field[Any], hint: Any) -> Any:
    """What typer needs to know of a field: its help, its range, and its flags if it is one."""
    known: Option = field.metadata["option"]
    name = f"--{field.name.replace('_', '-')}"
    flags = [name] if bool not in _kinds(hint) or field.default is False else [f"{name}/--no-{name[2:]}"]
    flags += [known.short] if known.short else []
    metavar = f"<{'|'.join(known.choices)}>" if 0 < len(known.choices) < 5 else _counts(known)
    whole = int in _kinds(hint) and str not in _kinds(hint) and not known.counted
    return typer.Option(
        *flags,
        help=known.help,
        min=known.minimum if whole or float in _kinds(hint) else None,
        max=known.maximum,
        metavar=metavar,
        show_default=field.default is not None,
    )


def _counts(known: Option) -> str | None:
    """What stands for the value of an option that counts."""
    return ("<count|share>" if known.shares else "<count>") if known.counted else None


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


def _typed(hint: Any, field: Field[Any]) -> Any:
    """The one type that the command line reads: a path, a word or a number; a count is read as a word."""
    kinds = {str} if field.metadata["option"].counted else _kinds(hint)
    kind = next((each for each in (bool, Path, str, float, int) if each in kinds), str)
    return kind | None if type(None) in (get_args(hint) or ()) else kind


def _read(value: Any, field: Field[Any]) -> Any:
    """The value that was typed; digits are a number where the field may be one, and so is 1k where it counts."""
    kinds = str(field.type).replace("|", " ").split()
    if not isinstance(value, str) or "option" not in field.metadata or "int" not in kinds:
        return value
    if not field.metadata["option"].counted:
        return int(value) if value.isdecimal() else value
    known: Option = field.metadata["option"]
    found = amount_of(value) if known.shares else count_of(value)
    if found is None and "str" not in kinds:
        share = ", or a share above 0% and up to 100%" if known.shares else ""
        raise InputError(
            repr(value), expected=f"a number, such as 64 or 1k{share}", fix="write a number", option=field.name
        )
    if found is None:
        return value
    return within(field.name, found, known, field.default)
