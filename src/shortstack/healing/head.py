"""Whether the head trains; where it is the embedding matrix, only as a matrix of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from shortstack.architecture.anatomy import text_attribute
from shortstack.errors import InputError
from shortstack.healing.method import HealingMethod
from shortstack.machine.options import option

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint
    from shortstack.decoder import Decoder


@dataclass(frozen=True, kw_only=True)
class TrainedHead(HealingMethod):
    """Whether the head trains. default_head: what the method does with a head of its own where nothing is said."""

    default_head: ClassVar[bool] = False

    head: bool | None = option(None, help="Train lm_head, or freeze it. Default: partial trains it, unless it is tied.")
    untie_head: bool = option(
        False, help="Untie lm_head from the embedding and train it; the model grows by that matrix."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.untie_head and self.head is False:
            raise InputError(
                "head turned off",
                expected="a head that trains, since it gets a matrix of its own",
                fix="leave out one of them",
                option="untie_head",
            )

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

    def first(self, checkpoint: Checkpoint) -> int:
        self.trains_head(checkpoint)
        return super().first(checkpoint)

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
