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
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, fields
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
