"""The catalogue of healing methods: a new one is a file with a class, and an entry here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any

from pydantic import Field

from shortstack.errors import InputError
from shortstack.healing.config import HealingConfig
from shortstack.healing.layer_choice import Full, LayerOptions, Partial
from shortstack.healing.lora import DoRA, Lora, LoraOptions, QLora, RsLora
from shortstack.healing.method import HealingMethod
from shortstack.machine.options import OneOf, given, options

METHODS: Mapping[str, type[HealingMethod]] = {
    method.name: method for method in (Partial, Lora, RsLora, DoRA, QLora, Full)
}


@options
class HealOptions(LoraOptions, LayerOptions, HealingConfig):
    """Settings of healing as the command line and YAML files have them, a method's options beside the others."""

    method: Annotated[str, OneOf(METHODS)] = Field(  # type: ignore[assignment]
        Partial.name, description="; ".join(f"{method.name}: {method.trains}" for method in METHODS.values())
    )

    layers_per_round: int | None = Field(
        None, ge=1, description="Prune this many layers, heal, and repeat, starting from the base model."
    )

    def __post_init__(self) -> None:
        """Check nothing: a recipe may complete the options."""

    @property
    def config(self) -> HealingConfig:
        """The same settings with the method as an object; an error for options of another method."""
        method, values = METHODS[self.method], given(self)
        own = {declared.name for declared in fields(method)}
        common = {declared.name for declared in fields(HealingConfig)}
        others = {name for name, value in values.items() if value != self.__dataclass_fields__[name].default}
        for name in others - own - common - {"layers_per_round"}:
            users = ", ".join(kind.name for kind in METHODS.values() if name in kind.__dataclass_fields__)
            raise InputError(f"{method.name} has no such option; choose {users}, or leave it out", option=name)
        made = method(**{name: values[name] for name in values.keys() & own})
        return HealingConfig(**{name: values[name] for name in values.keys() & common - {"method"}}, method=made)


def config_of(values: Mapping[str, Any]) -> HealingConfig:
    """Return the settings of options by name."""
    return HealOptions(**values).config
