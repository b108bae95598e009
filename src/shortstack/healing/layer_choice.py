"""Which layers train and whether the head does; the methods that train whole weights."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from pydantic import Field

from shortstack.architecture.anatomy import text_attribute
from shortstack.errors import InputError
from shortstack.healing.method import HealingMethod
from shortstack.machine.options import options
from shortstack.planning.layer_sets import parse_layers

if TYPE_CHECKING:
    from torch import nn

    from shortstack.checkpoint import Checkpoint
    from shortstack.decoder import Decoder


@options
class LayerOptions:
    """Which layers train, numbered as in the pruned model, and whether the head does."""

    train_last: int | None = Field(
        None, ge=0, description="Train the last k layers. Default: 3, or all layers with adapters."
    )
    train_layers: str | None = Field(
        None, description="Train exactly these layers: 10-13,21 (numbered as in the pruned model)."
    )
    train_head: bool | None = Field(
        None, description="Train lm_head, or freeze it. Default: partial trains it unless it is tied."
    )
    untie_embeddings: bool = Field(
        False, description="Give lm_head a matrix of its own and train it; the model grows by that matrix."
    )

    def __post_init__(self) -> None:
        if self.train_layers is not None:
            if self.train_last is not None:
                raise InputError("give train_layers or train_last, not both", option="train_layers")
            self.named_layers()
        if self.untie_embeddings and self.train_head is False:
            raise InputError("an untied head trains; leave out train_head", option="untie_embeddings")

    def named_layers(self) -> tuple[int, ...]:
        """Return the layers of train_layers in order."""
        try:
            return tuple(sorted({*parse_layers(self.train_layers)})) if self.train_layers is not None else ()
        except InputError as error:
            raise error.about("train_layers") from None


@options
class ChosenParts(HealingMethod, LayerOptions):
    """Base of methods that train some layers and perhaps the head.

    default_last: layers that train by default; None is all. default_head: whether an untied head trains by default.
    """

    default_last: ClassVar[int | None] = None
    default_head: ClassVar[bool] = False

    def trained_layers(self, checkpoint: Checkpoint) -> tuple[int, ...]:
        count = checkpoint.anatomy.layers
        self.check_fits(count)
        if self.train_layers is not None:
            return self.named_layers()
        last = self.default_last if self.train_last is None else self.train_last
        return tuple(range(0 if last is None else max(0, count - last), count))

    def check_fits(self, layers: int) -> None:
        if self.train_last is not None and self.train_last > layers:
            raise InputError(
                f"{self.train_last} of the model's {layers} layers cannot be trained; give fewer", option="train_last"
            )
        named = self.named_layers()
        if named and max(named) >= layers:
            message = f"{max(named)} is not a layer of the pruned model; give some of 0 to {layers - 1}"
            raise InputError(message, option="train_layers")

    def first(self, checkpoint: Checkpoint) -> int:
        self.trains_head(checkpoint)
        return min(self.trained_layers(checkpoint), default=checkpoint.anatomy.layers)

    def trains_head(self, checkpoint: Checkpoint) -> bool:
        """Return True if the head trains; a tied one never does."""
        tied = checkpoint.anatomy.tied
        if self.untie_embeddings and not tied:
            raise InputError("the model's head is not tied; leave the option out", option="untie_embeddings")
        if self.train_head and tied and not self.untie_embeddings:
            raise InputError("the head is tied to the embedding; add untie_embeddings", option="train_head")
        if self.train_head is not None:
            return self.train_head
        return self.untie_embeddings or (self.default_head and not tied)

    def untie(self, decoder: Decoder) -> None:
        """Give the head a matrix of its own if the options say so."""
        from torch import nn

        head = decoder.model.get_submodule(decoder.anatomy.head)
        if self.untie_embeddings:
            head.weight = nn.Parameter(head.weight.detach().clone())

    def added_bytes(self, checkpoint: Checkpoint) -> int:
        """Count the bytes of an untied head, which is a second embedding."""
        if not self.untie_embeddings:
            return 0
        return round(checkpoint.vocabulary * checkpoint.width * checkpoint.weight_bytes / checkpoint.parameters)

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """Untie the embeddings, in a multimodal config at both levels.

        Where that stores the text's fields beside its own they are nested: some types read this one at no other place.
        """
        if not self.untie_embeddings:
            return {}
        untied, model = {"tie_word_embeddings": False}, checkpoint.blueprint.config
        key = checkpoint.anatomy.text_key
        text = checkpoint.config.get(key) or {} if key else model.get_text_config(decoder=True).to_dict()
        key = key or text_attribute(model)
        return {**untied, key: {**text, **untied}} if key else untied


@options
class Partial(ChosenParts):
    """Layers (the last three by default, none with train_last=0), the final norm, and the head unless it is tied."""

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


@options
class Full(HealingMethod):
    """Embedding, layers, norm and head; a tied head trains as part of the embedding."""

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
