"""Partial-layer healing: train some layers, the final norm and the head (Lu et al., 4.2); the rest is frozen."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

from torch import nn

from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.safetensors import StoredTensor
from shortstack.checkpoint.weights import stored_tensors
from shortstack.decoder import Decoder
from shortstack.healing.head import Head
from shortstack.healing.layer_choice import Places
from shortstack.healing.learner import Learner
from shortstack.healing.methods import LAST


@dataclass(frozen=True)
class Partial:
    """Which part trains: layers (the last three by default, none with last=0), the final norm, and the head unless tied.

    last, layers, near_cut: as Places; head, untie_head: as Head.
    """

    last: int | None = None
    layers: str | None = None
    near_cut: int | None = None
    head: bool | None = None
    untie_head: bool = False
    name: ClassVar[str] = "partial"

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self)}

    @property
    def _head(self) -> Head:
        return Head(self.head, self.untie_head)

    def trained_layers(self, checkpoint: Checkpoint) -> tuple[int, ...]:
        """The layers that train, in order, as the pruned model numbers them."""
        return Places(self.last, self.layers, self.near_cut).found(checkpoint, LAST)

    def first(self, checkpoint: Checkpoint) -> int:
        """The first layer that is not frozen; the number of layers where all are.

        Raises:
            InputError: layers or a head that cannot train.
        """
        self._head.trains(checkpoint, default=True)
        return min(self.trained_layers(checkpoint), default=checkpoint.anatomy.layers)

    def prepare(self, checkpoint: Checkpoint, decoder: Decoder) -> Mapping[str, nn.Module]:
        """What trains, by its name in the model."""
        self._head.prepare(decoder)
        anatomy = decoder.anatomy
        names = [anatomy.layer(index) for index in self.trained_layers(checkpoint)]
        names += [anatomy.norm] if anatomy.norm else []
        names += [anatomy.head] if self._head.trains(checkpoint, default=True) else []
        return {name: decoder.model.get_submodule(name) for name in names}

    def tensors(self, checkpoint: Checkpoint, learner: Learner) -> dict[str, StoredTensor]:
        """What changed, as the checkpoint stores it."""
        return stored_tensors(checkpoint, learner.trained_tensors())

    def added_bytes(self, checkpoint: Checkpoint) -> int:
        return self._head.added_bytes(checkpoint)

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """The config fields that change."""
        return self._head.config(checkpoint)
