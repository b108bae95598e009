"""Which layers train and whether the head does, as options; and the methods that train whole weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from shortstack.architecture.anatomy import text_attribute
from shortstack.errors import InputError
from shortstack.healing.method import HealingMethod
from shortstack.machine.options import option
from shortstack.planning.layer_sets import parse_layers

if TYPE_CHECKING:
    from torch import nn

    from shortstack.checkpoint import Checkpoint
    from shortstack.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class ChosenParts(HealingMethod):
    """Layers by number, or the last ones, and the head.

    Layers have the numbers that the pruned model gives them. Where nothing is said, default_last of them train, of which
    None is all, and default_head says whether a head of its own does.
    """

    default_last: ClassVar[int | None] = None
    default_head: ClassVar[bool] = False

    last: int | None = option(None, help="Train the last k layers. Default: 3, or all with adapters.", minimum=0)
    layers: str | None = option(
        None, help="Train exactly these layers instead: 10-13,21 (numbered as in the pruned model)."
    )
    head: bool | None = option(None, help="Train lm_head, or freeze it. Default: partial trains it, unless it is tied.")
    untie_head: bool = option(
        False, help="Untie lm_head from the embedding and train it; the model grows by that matrix."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.layers is not None:
            if self.last is not None:
                raise InputError(
                    "last as well", expected="layers or last, not both", fix="leave one out", option="layers"
                )
            parse_layers(self.layers)
        if self.untie_head and self.head is False:
            raise InputError(
                "head turned off",
                expected="a head that trains, since it gets a matrix of its own",
                fix="leave out one of them",
                option="untie_head",
            )

    def trained_layers(self, checkpoint: Checkpoint) -> tuple[int, ...]:
        count = checkpoint.anatomy.layers
        self.check_fits(count)
        if self.layers is not None:
            return tuple(sorted(set(parse_layers(self.layers))))
        last = self.default_last if self.last is None else self.last
        return tuple(range(0 if last is None else max(0, count - last), count))

    def check_fits(self, layers: int) -> None:
        if self.last is not None and self.last > layers:
            expected = f"at most the model's {layers} layers"
            raise InputError(self.last, expected=expected, fix="train fewer layers", option="last")
        named = parse_layers(self.layers) if self.layers is not None else ()
        if named and max(named) >= layers:
            raise InputError(
                max(named),
                expected=f"layers 0 to {layers - 1} of the pruned model",
                fix="name layers as the pruned model numbers them",
                option="layers",
            )

    def first(self, checkpoint: Checkpoint) -> int:
        self.trains_head(checkpoint)
        return min(self.trained_layers(checkpoint), default=checkpoint.anatomy.layers)

    def trains_head(self, checkpoint: Checkpoint) -> bool:
        """Say whether the head is among what trains; a tied one never is, unless it is untied."""
        tied = checkpoint.anatomy.tied
        if self.untie_head and not tied:
            raise InputError(
                "a head of its own",
                expected="a head tied to the embedding",
                fix="leave the option out",
                option="untie_head",
            )
        if self.head and tied and not self.untie_head:
            raise InputError(
                "one tied to the embedding",
                expected="a head of its own to train",
                fix="add untie_head, or leave the head frozen",
                option="head",
            )
        if self.head is not None:
            return self.head
        return self.untie_head or (self.default_head and not tied)

    def untie(self, decoder: Decoder) -> None:
        """Give the head a matrix of its own, if it is to have one."""
        from torch import nn

        head = decoder.model.get_submodule(decoder.anatomy.head)
        if self.untie_head:
            head.weight = nn.Parameter(head.weight.detach().clone())

    def added_bytes(self, checkpoint: Checkpoint) -> int:
        """Count the bytes of an untied head, which is a second embedding."""
        if not self.untie_head:
            return 0
        return round(checkpoint.vocabulary * checkpoint.width * checkpoint.weight_bytes / checkpoint.parameters)

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Untie the embeddings, in a multimodal config at both levels.

        Where that stores the text's fields beside its own they are nested: some types read this one at no other place.
        """
        if not self.untie_head:
            return {}
        untied, model = {"tie_word_embeddings": False}, checkpoint.blueprint.config
        key = checkpoint.anatomy.text_key
        text = checkpoint.config.get(key) or {} if key else model.get_text_config(decoder=True).to_dict()
        key = key or text_attribute(model)
        return {**untied, key: {**text, **untied}} if key else untied


@dataclass(frozen=True)
class Partial(ChosenParts):
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
