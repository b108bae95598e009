"""The catalogue of healing methods: a new one is a file with a class, and an entry here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field, fields, make_dataclass
from typing import Any, get_type_hints

from shortstack.errors import InputError
from shortstack.healing.layer_choice import Full, Partial
from shortstack.healing.lora import DoRA, Lora, QLora, RsLora
from shortstack.healing.method import HealingMethod
from shortstack.machine.options import check_choice_of, defaults_of, made_of, option

METHODS: Mapping[str, type[HealingMethod]] = {
    method.name: method for method in (Partial, Lora, RsLora, DoRA, QLora, Full)
}


def _method_options() -> Any:
    """Make a dataclass of the method's name and of every option that a method has, for front ends."""
    explained = "; ".join(f"{method.name}: {method.trains}" for method in METHODS.values())
    known: dict[str, Any] = {"method": (str, option(Partial.name, help=explained))}
    for method in METHODS.values():
        hints = get_type_hints(method)
        for own_field in fields(method):
            known.setdefault(
                own_field.name, (hints[own_field.name], field(default=own_field.default, metadata=own_field.metadata))
            )
    listed = [(name, kind, made) for name, (kind, made) in known.items()]
    return make_dataclass("MethodOptions", listed, frozen=True, namespace={"__doc__": "Which part trains, and how."})


MethodOptions = _method_options()


def made_method(values: Mapping[str, Any]) -> HealingMethod:
    """Make the method that option values name, partial where they name none, with its options."""
    name = values.get("method", Partial.name)
    check_choice_of("method", name, METHODS, fix="`shortstack list methods` explains each")
    method = METHODS[name]
    defaults = defaults_of(MethodOptions)
    given = {name: values[name] for name in defaults if name in values and name != "method"}
    check_known(method, {name: value for name, value in given.items() if value != defaults[name]})
    return made_of(method, given)  # type: ignore[no-any-return]


def check_known(method: type[HealingMethod], given: Mapping[str, Any]) -> None:
    """Refuse options of other methods."""
    own = {own_field.name for own_field in fields(method)}
    for name, value in given.items():
        if name not in own:
            knowing = [method_name for method_name, known in METHODS.items() if hasattr(known, name)]
            raise InputError(
                value,
                expected=f"an option of the method {method.name}",
                fix=f"leave it out, or name a method that has it: {', '.join(knowing)}",
                option=name,
            )
