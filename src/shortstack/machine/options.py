"""Options, stated once: the fields of a class, with their ranges and help.

The command line, recipes, study files and the tables of the documentation are made from these fields.

>>> @options
... class Schedule:
...     learning_rate: float = Field(1e-4, gt=0, description="Peak learning rate.")
>>> Schedule(learning_rate=-1)
Traceback (most recent call last):
    ...
shortstack.errors.InputError: learning_rate: -1 is too small; give more than 0.0
"""

from __future__ import annotations

import difflib
import functools
import math
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import MISSING, dataclass, field, fields
from importlib.util import find_spec
from types import MappingProxyType
from typing import Annotated, Any, TypeVar, dataclass_transform

import pydantic
from pydantic import BeforeValidator, ConfigDict, Field, ValidationError, WithJsonSchema, model_validator
from pydantic.fields import FieldInfo
from pydantic_core import ArgsKwargs, PydanticCustomError, PydanticUndefined, core_schema

from shortstack.errors import InputError
from shortstack.machine.formats import amount_of
from shortstack.machine.numbers import is_number, is_share
from shortstack.machine.typed import check_type

Class = TypeVar("Class")


@dataclass_transform(frozen_default=True)  # to a type checker Field(...) is a default
def options(cls: type[Class]) -> type[Class]:
    """Make a frozen pydantic dataclass whose fields are options: name: type = Field(default, ge=..., description=...).

    Its errors are InputError. The command line reads defaults and help from the fields of the dataclass, YAML files and
    JSON schemas from those of pydantic.
    """
    noting: Any = classmethod(_note_given)
    cls._note_given = model_validator(mode="wrap")(noting)  # type: ignore[attr-defined]
    made: Any = pydantic.dataclasses.dataclass(frozen=True, config=ConfigDict(extra="forbid"))(cls)
    construct = made.__init__

    @functools.wraps(construct)
    def checked(self: Any, *args: Any, **values: Any) -> None:
        try:
            construct(self, *args, **values)
        except ValidationError as error:
            raise input_error(error) from None

    made.__init__ = checked
    for declared in fields(made):
        info = made.__pydantic_fields__[declared.name]
        if isinstance(declared.default, FieldInfo):  # what pydantic keeps to itself, for other readers of dataclasses
            declared.type = Annotated[declared.type, Field(description=info.description), *info.metadata]
            declared.default = MISSING if info.default is PydanticUndefined else info.default
            declared.metadata = MappingProxyType({"help": info.description or ""})
    return made  # type: ignore[no-any-return]


def _note_given(cls: Any, value: Any, handler: Callable[[Any], Any]) -> Any:
    made = handler(value)
    if isinstance(value, ArgsKwargs):
        value = dict(zip(cls.__dataclass_fields__, value.args, strict=False)) | (value.kwargs or {})
    if isinstance(value, dict):
        object.__setattr__(made, "_given", tuple(value))
    return made


def given(options: Any) -> dict[str, Any]:
    """Return the options that were given, without defaults, as pydantic's model_fields_set.

    >>> @options
    ... class Schedule:
    ...     steps: int = Field(10)
    ...     seed: int = Field(0)
    >>> given(Schedule(seed=0))
    {'seed': 0}
    """
    return {name: getattr(options, name) for name in getattr(options, "_given", ())}


def input_error(error: ValidationError) -> InputError:
    """Return the first error that pydantic found as one sentence about an option."""
    first = error.errors(include_url=False)[0]
    return InputError(message_of(first), option=".".join(map(str, first["loc"][:1])))


def message_of(detail: Any) -> str:
    """Return what pydantic found wrong with a value, and which values are allowed."""
    value, limit = detail.get("input"), next(iter(detail.get("ctx", {}).values()), "")
    match detail["type"]:
        case "greater_than_equal":
            return f"{value} is too small; give at least {limit}"
        case "greater_than":
            return f"{value} is too small; give more than {limit}"
        case "less_than_equal":
            return f"{value} is too large; give at most {limit}"
        case "less_than":
            return f"{value} is too large; give less than {limit}"
        case "int_parsing" | "int_from_float":
            return f"{value!r} is not a whole number"
        case "float_parsing":
            return f"{value!r} is not a number"
        case "missing":
            return "missing; give a value"
        case "unexpected_keyword_argument":
            return "no such option"
    return f"{value!r}: {detail['msg'][0].lower()}{detail['msg'][1:]}"


@dataclass(frozen=True, eq=False)  # hashed by identity: a mapping of choices cannot be
class OneOf:
    """Mark a text as one of some choices: Annotated[str, OneOf(METRICS)]."""

    choices: Collection[str]

    def __get_pydantic_core_schema__(self, source: Any, handler: Any) -> Any:
        return core_schema.no_info_after_validator_function(self._check, handler(source))

    def __get_pydantic_json_schema__(self, _schema: Any, _handler: Any) -> dict[str, Any]:
        return {"type": "string", "enum": [*self.choices]}

    def _check(self, value: str) -> str:
        if value not in self.choices:
            raise PydanticCustomError("choice", "{reason}", {"reason": no_choice(value, self.choices)})
        return value


def no_choice(value: object, choices: Collection[str]) -> str:
    """Say that a value is none of the choices, and which is nearest."""
    begun = [choice for choice in choices if str(value) and str(choice).startswith(str(value))]
    near = begun or difflib.get_close_matches(str(value), [*choices], 1)
    return f"did you mean {near[0]}?" if near else f"give one of {', '.join(choices)}"


def _amount(value: Any) -> Any:
    number = amount_of(value) if isinstance(value, str) else value
    if value is not None and not (is_number(number) and 0 < number <= (1 if is_share(number) else math.inf)):
        raise PydanticCustomError("amount", "a count, or a share such as 10%")
    return number


Amount = Annotated[  # a count, or a share of what there is, typed as 10% or 0.1
    int | float,
    BeforeValidator(_amount),
    WithJsonSchema({"anyOf": [{"type": "number", "exclusiveMinimum": 0}, {"type": "string"}]}),
]


@dataclass(frozen=True)
class Option:
    """The metadata of an option beside its field's type and default. above, below: bounds that the value does not reach.

    shares: a float is a share of what there is, typed as 10% or 0.1.
    """

    help: str
    minimum: float | None = None
    maximum: float | None = None
    above: float | None = None
    below: float | None = None
    choices: tuple[str, ...] = ()
    shares: bool = False

    @property
    def range(self) -> str:
        """The range in words.

        >>> Option("", minimum=0, below=1).range, Option("", above=0).range, Option("", minimum=1).range
        ('0 up to, but not, 1', 'a number above 0', 'at least 1')
        """
        if self.shares:
            return f"at least {self.minimum:g}, or a share such as 10%"
        if self.minimum is not None:
            if self.below is not None:
                return f"{self.minimum:g} up to, but not, {self.below:g}"
            return f"at least {self.minimum:g}" + (
                f" and at most {self.maximum:.0f}" if self.maximum is not None else ""
            )
        bounds = [
            f"{word} {bound:g}" for word, bound in (("above", self.above), ("below", self.below)) if bound is not None
        ]
        return " ".join(["a number", " and ".join(bounds)]).strip()

    @property
    def schema(self) -> dict[str, Any]:
        """The range and the choices, as JSON schema has them.

        >>> Option("", minimum=0, below=1).schema
        {'minimum': 0, 'exclusiveMaximum': 1}
        """
        if self.shares:
            return {}
        bounds = {
            "minimum": self.minimum,
            "maximum": self.maximum,
            "exclusiveMinimum": self.above,
            "exclusiveMaximum": self.below,
            "enum": [*self.choices, None] if self.choices else None,
        }
        return {name: bound for name, bound in bounds.items() if bound is not None}

    def holds(self, value: float) -> bool:
        """Say whether a number is finite and within the range; a share is above 0 and at most 1."""
        if self.shares and is_share(value):
            return 0 < value <= 1
        return (
            math.isfinite(value)
            and (self.minimum is None or value >= self.minimum)
            and (self.maximum is None or value <= self.maximum)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )


def option(default: Any, help: str, **known: Any) -> Any:  # noqa: A002  what every command line calls it
    """Make a field that is an option; known: the other fields of Option."""
    return field(default=default, metadata={"option": Option(help, **known), "help": help})


def option_of(component: Any, name: str) -> Any:
    """Take over an option of another dataclass, with its default, range and help."""
    known = component.__dataclass_fields__[name]
    return field(default=known.default, metadata=known.metadata)


def options_of(component: Any) -> Iterator[tuple[str, Any, Option]]:
    """Yield name, default and what else is known of every option of a dataclass or of an instance of one."""
    for declared in fields(component):
        if "help" in declared.metadata:
            yield declared.name, declared.default, declared.metadata.get("option") or Option(declared.metadata["help"])


def defaults_of(*components: Any) -> dict[str, Any]:
    """Return the options of dataclasses with their defaults."""
    return {name: default for component in components for name, default, _ in options_of(component)}


def made_of(component: Any, values: Mapping[str, Any]) -> Any:
    """Return a dataclass of those of the values that are its options."""
    return component(**{name: values[name] for name, _, _ in options_of(component) if name in values})


def check_options(component: Any) -> None:
    """Refuse a value of another type than its field's, out of its range, or none of its choices."""
    types = {declared.name: str(declared.type) for declared in fields(component)}
    for name, default, known in options_of(component):
        value = getattr(component, name)
        if not known.choices:
            check_type(name, value, types[name])
        if value is None:
            continue
        if known.choices:
            check_choice_of(name, value, known.choices)
        elif is_number(value) and not known.holds(value):
            fix = (
                "give such a number, or leave it out" if default in (None, MISSING) else f"take the default, {default}"
            )
            raise InputError(value, expected=known.range, fix=fix, option=name)


def check_choice_of(name: str, value: str, choices: Any, *, fix: str = "name one of these") -> None:
    """Refuse a name that is none of the choices, naming the nearest."""
    if value in choices:
        return
    begun = [choice for choice in choices if str(value) and str(choice).startswith(str(value))]
    near = begun or difflib.get_close_matches(str(value), list(choices), 1)
    if near:
        fix = f"did you mean {near[0]}?"
    raise InputError(repr(value), expected=f"one of {', '.join(choices)}", fix=fix, option=name)


def changed_options(component: Any) -> Mapping[str, Any]:
    """Return the fields of an instance that are not at their default."""
    values = ((declared.name, getattr(component, declared.name), declared.default) for declared in fields(component))
    return {name: value for name, value, default in values if value != default}


def check_installed(library: str, extra: str, *, why: str, option: str) -> None:
    """Refuse an option that needs a library that is not installed."""
    if find_spec(library) is None:
        raise InputError(f"{library} is not installed, {why}; {install(extra)}", option=option)


def install(extra: str) -> str:
    """Return how an extra is installed, outside of a checkout and in one."""
    return f"install the extra {extra}: pip install 'shortstack[{extra}]', or in a checkout pip install '.[{extra}]'"
