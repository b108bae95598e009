"""The base of every healing method; which layers train, and whether the head; and the methods that train whole weights.

Neither this file nor those of other methods import torch before a method runs, so that naming one costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from shortstack.architecture.anatomy import text_attribute
from shortstack.errors import InputError
from shortstack.machine.options import check_installed, check_options, option
from shortstack.planning.layer_sets import parse_layers

if TYPE_CHECKING:
    from torch import nn

    from shortstack.checkpoint import Checkpoint
    from shortstack.checkpoint.safetensors import StoredTensor
    from shortstack.decoder import Decoder
    from shortstack.healing.learner import Learner

EXTRAS = {"peft": ("lora", "for adapters"), "bitsandbytes": ("quant", "for 4-bit weights")}  # what brings it, and why


@dataclass(frozen=True)
class HealingMethod:
    """Which part of a model trains. A method is a subclass whose fields are its options, and an entry in METHODS.

    trains: in words. needs: libraries that are not everywhere.
    """

    name: ClassVar[str]
    trains: ClassVar[str]
    paper: ClassVar[str] = "-"
    needs: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_options(self)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self)}

    def check(self) -> None:
        """Refuse a method whose libraries are not installed, before minutes of other work."""
        for library in self.needs:
            extra, why = EXTRAS[library]
            check_installed(library, extra, option="method", why=why)

    def first(self, checkpoint: Checkpoint) -> int:
        """Return the first layer that is not frozen; the number of layers where all are."""
        raise NotImplementedError

    def trained_layers(self, checkpoint: Checkpoint) -> tuple[int, ...]:
        """Return the layers that train, in order, by the numbers that they have in this model."""
        return tuple(range(checkpoint.anatomy.layers))

    def check_fits(self, layers: int) -> None:
        """Refuse to train more layers than so many, as far as no checkpoint is needed to see it."""

    def prepare(self, checkpoint: Checkpoint, decoder: Decoder) -> Mapping[str, nn.Module]:
        """Return the modules that train, by their names in the model, which is changed where the method needs that."""
        raise NotImplementedError

    def tensors(self, checkpoint: Checkpoint, learner: Learner) -> Iterator[StoredTensor]:
        """Yield the tensors that changed, as the checkpoint stores them; a few are in memory at a time."""
        from shortstack.checkpoint.weights import stored_tensors

        for name, weight in learner.trained_tensors().items():
            yield from stored_tensors(checkpoint, {name: weight}).values()

    def added_bytes(self, _checkpoint: Checkpoint) -> int:
        """Count the bytes that the healed checkpoint has more than the one that heals."""
        return 0

    def config(self, _checkpoint: Checkpoint) -> dict[str, Any]:
        """Return the config fields that change."""
        return {}


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
