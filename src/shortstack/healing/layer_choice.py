"""Which layers of a pruned model train, as options; and the methods that train whole weights, of some layers or of all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from shortstack.errors import InputError
from shortstack.healing.head import TrainedHead
from shortstack.healing.method import HealingMethod
from shortstack.machine.options import option
from shortstack.planning.layer_sets import parse_layers

if TYPE_CHECKING:
    from torch import nn

    from shortstack.checkpoint import Checkpoint
    from shortstack.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class TrainedLayers(HealingMethod):
    """Layers by number, near cuts, or the last ones; none of them: the last `default_last`, of which None is all.

    Layers have the numbers that the pruned model gives them.
    """

    default_last: ClassVar[int | None] = None

    last: int | None = option(None, help="Train the last k layers. Default: 3; with adapters all.", minimum=0)
    layers: str | None = option(
        None, help="Train exactly these layers instead: 10-13,21 (numbered as in the pruned model)."
    )
    near_cut: int | None = option(None, help="Train this many layers on both sides of each cut instead.", minimum=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        given = [name for name in ("layers", "near_cut", "last") if getattr(self, name) is not None]
        if len(given) > 1:
            raise InputError(
                f"{given[1]} beside it", expected=f"{given[0]} alone", fix="give one of them", option=given[0]
            )
        if self.layers is not None:
            parse_layers(self.layers)

    def trained_layers(self, checkpoint: Checkpoint) -> tuple[int, ...]:
        from shortstack.checkpoint.record import near_cuts

        count = checkpoint.anatomy.layers
        self.check_fits(count)
        if self.layers is not None:
            return tuple(sorted(set(parse_layers(self.layers))))
        if self.near_cut is not None:
            return near_cuts(checkpoint, self.near_cut)
        last = self.default_last if self.last is None else self.last
        return tuple(range(0 if last is None else max(0, count - last), count))

    def check_fits(self, layers: int) -> None:
        for name in ("last", "near_cut"):
            value = getattr(self, name)
            if value is not None and value > layers:
                expected = f"at most the model's {layers} layers"
                raise InputError(value, expected=expected, fix="train fewer layers", option=name)
        named = parse_layers(self.layers) if self.layers is not None else ()
        if named and max(named) >= layers:
            raise InputError(
                max(named),
                expected=f"layers 0 to {layers - 1} of the pruned model",
                fix="name layers as the pruned model numbers them",
                option="layers",
            )

    def first(self, checkpoint: Checkpoint) -> int:
        return min(self.trained_layers(checkpoint), default=checkpoint.anatomy.layers)


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
        return 0

    def prepare(self, _checkpoint: Checkpoint, decoder: Decoder) -> Mapping[str, nn.Module]:
        """Return the module that holds the layers, and the head where it lies outside."""
        stack = decoder.anatomy.layers_path.rpartition(".")[0]
        inside = decoder.anatomy.tied or decoder.anatomy.head.startswith(f"{stack}.")
        names = [stack, *([] if inside else [decoder.anatomy.head])]
        return {name: decoder.model.get_submodule(name) for name in names}
