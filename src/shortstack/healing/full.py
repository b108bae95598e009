"""Full fine-tuning: every weight of the language model trains, the embedding among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from shortstack.healing.method import HealingMethod

if TYPE_CHECKING:
    from torch import nn

    from shortstack.checkpoint import Checkpoint
    from shortstack.decoder import Decoder


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
