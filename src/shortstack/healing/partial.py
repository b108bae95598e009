"""Partial-layer healing: train some layers, the final norm and the head (Lu et al., 4.2); the rest is frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from shortstack.healing.head import TrainedHead
from shortstack.healing.layer_choice import TrainedLayers

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
