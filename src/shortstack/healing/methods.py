"""The catalogue of healing methods, and the two that train whole weights; a new one is a class and an entry here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, make_dataclass
from typing import TYPE_CHECKING, Any, ClassVar, get_type_hints

from shortstack.errors import InputError
from shortstack.healing.head import TrainedHead
from shortstack.healing.layer_choice import TrainedLayers
from shortstack.healing.lora import DoRA, Lora, QLora, RsLora
from shortstack.healing.method import HealingMethod
from shortstack.machine.options import check_choice_of, option

if TYPE_CHECKING:
    from torch import nn

    from shortstack.checkpoint import Checkpoint
    from shortstack.decoder import Decoder


@dataclass(frozen=True)
class Partial(TrainedHead, TrainedLayers):
    """Layers (the last three by default, none with last=0), the final norm, and the head unless it is tied."""

    name: ClassVar[str] = "partial"
    trains: ClassVar[str] = "the last k layers, the final norm, and the head unless it is tied"
    paper: ClassVar[str] = "arXiv 2411.15558, section 4.2"
    default_last: ClassVar[int | None] = 3  # the paper's best
    default_head: ClassVar[bool] = True

    def prepare(self, checkpoint: Checkpoint, decoder: Decoder) -> Mapping[str, nn.Module]:
        self.untie(decoder)
        anatomy = decoder.anatomy
        names = [anatomy.layer(index) for index in self.trained_layers(checkpoint)]
        names += [anatomy.norm] if anatomy.norm else []
        names += [anatomy.head] if self.trains_head(checkpoint) else []
        return {name: decoder.model.get_submodule(name) for name in names}


@dataclass(frozen=True)
class Full(HealingMethod):
    """All that a text passes: embedding, layers, norm and head; a tied head trains as the embedding it is."""

    name: ClassVar[str] = "full"
    trains: ClassVar[str] = "every weight"

    def first(self, _checkpoint: Checkpoint) -> int:
        """Nothing is frozen."""
        return 0

    def prepare(self, _checkpoint: Checkpoint, decoder: Decoder) -> Mapping[str, nn.Module]:
        """The module that holds the layers, and the head where it lies outside."""
        stack = decoder.anatomy.layers_path.rpartition(".")[0]
        inside = decoder.anatomy.tied or decoder.anatomy.head.startswith(f"{stack}.")
        names = [stack, *([] if inside else [decoder.anatomy.head])]
        return {name: decoder.model.get_submodule(name) for name in names}


METHODS: Mapping[str, type[HealingMethod]] = {
    method.name: method for method in (Partial, Lora, RsLora, DoRA, QLora, Full)
}


def method_named(name: str) -> type[HealingMethod]:
    """The method of that name."""
    check_choice_of("method", name, METHODS, fix="`shortstack ls methods` explains each")
    return METHODS[name]


def _method_options() -> Any:
    """A dataclass of the name of a method and of every option that one of them has, for front ends."""
    explained = "; ".join(f"{each.name}: {each.trains}" for each in METHODS.values())
    known: dict[str, Any] = {"method": (str, option(Partial.name, help=explained))}
    for method in METHODS.values():
        hints = get_type_hints(method)
        for each in fields(method):
            known.setdefault(each.name, (hints[each.name], field(default=each.default, metadata=each.metadata)))
    listed = [(name, kind, made) for name, (kind, made) in known.items()]
    return make_dataclass("MethodOptions", listed, frozen=True, namespace={"__doc__": "Which part trains, and how."})


MethodOptions = _method_options()


def made_method(values: Mapping[str, Any]) -> HealingMethod:
    """The method that option values name, partial where they name none, with its options."""
    method = method_named(values.get("method", Partial.name))
    known = {each.name: each.default for each in fields(MethodOptions) if each.name != "method"}
    given = {name: values[name] for name in known if name in values}
    check_known(method, {name: value for name, value in given.items() if value != known[name]})
    own = {each.name for each in fields(method)}
    return method(**{name: value for name, value in given.items() if name in own})


def check_known(method: type[HealingMethod], given: Mapping[str, Any]) -> None:
    """Refuse options of other methods."""
    own = {each.name for each in fields(method)}
    for name, value in given.items():
        if name not in own:
            raise InputError(
                value,
                expected=f"an option that the method {method.name} knows",
                fix=f"leave it out, or name a method that knows it: {', '.join(_knowing(name))}",
                option=name,
            )


def _knowing(option: str) -> list[str]:
    """The methods that have an option."""
    return [name for name, method in METHODS.items() if option in {each.name for each in fields(method)}]
