"""Groups of options: a dataclass whose fields are options stands as one parameter of a verb.

>>> @verb()  # doctest: +SKIP
... def score(model: str, calibration: Calibration) -> None:  # gains --text, --samples, --length, ...
...     ...
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from copy import copy
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, get_args, get_type_hints


def grouped(verb: Callable[..., None]) -> Callable[..., None]:
    """The verb with each parameter that is a group replaced by that group's options."""
    hints = get_type_hints(verb, include_extras=True)
    groups: dict[str, Any] = {name: hint for name, hint in hints.items() if is_dataclass(hint)}
    parameters = []
    for parameter in inspect.signature(verb).parameters.values():
        group = groups.get(parameter.name)
        found = _options(group) if group else [parameter.replace(annotation=hints[parameter.name])]
        parameters += [each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in found]

    @functools.wraps(verb)
    def call(**options: Any) -> None:
        made = {
            name: group(**{field.name: options.pop(field.name) for field in fields(group)})
            for name, group in groups.items()
        }
        verb(**made, **options)

    call.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    call.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return call


def _options(group: Any) -> list[inspect.Parameter]:
    """A parameter for each field, under the first sentence of the group's docstring."""
    heading = inspect.cleandoc(group.__doc__).partition(".")[0]
    hints = get_type_hints(group, include_extras=True)
    return [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=_under(heading, hints[field.name]),
        )
        for field in fields(group)
    ]


def _under(heading: str, hint: Any) -> Any:
    """The same option in that section of --help; a copy, since groups share some."""
    kind, option = get_args(hint)
    option = copy(option)
    option.rich_help_panel = heading
    return Annotated[kind, option]
