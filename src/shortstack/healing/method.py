"""The base of every healing method: which part of a model trains, and which tensors are written.

Neither this file nor those of the methods import torch before a method runs, so that naming one costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, ClassVar

from shortstack.machine.options import check_installed, options

if TYPE_CHECKING:
    from torch import nn

    from shortstack.checkpoint import Checkpoint
    from shortstack.checkpoint.safetensors import StoredTensor
    from shortstack.decoder import Decoder
    from shortstack.healing.learner import Learner

EXTRAS = {"peft": ("lora", "for adapters"), "bitsandbytes": ("quant", "for 4-bit weights")}  # library: extra, purpose


@options
class HealingMethod:
    """Base of the methods: a subclass whose fields are its options, with an entry in METHODS.

    trains: what trains, in words. needs: optional libraries.
    """

    name: ClassVar[str]
    trains: ClassVar[str]
    paper: ClassVar[str] = "-"
    needs: ClassVar[tuple[str, ...]] = ()

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self)}

    def check(self) -> None:
        """Refuse a method whose libraries are not installed."""
        for library in self.needs:
            extra, why = EXTRAS[library]
            check_installed(library, extra, option="method", why=why)

    def first(self, checkpoint: Checkpoint) -> int:
        """Return the first layer that is not frozen; the number of layers if all are."""
        raise NotImplementedError

    def trained_layers(self, checkpoint: Checkpoint) -> tuple[int, ...]:
        """Return the layers that train, numbered as in this model."""
        return tuple(range(checkpoint.anatomy.layers))

    def check_fits(self, layers: int) -> None:
        """Refuse layers that a model of so many does not have."""

    def prepare(self, checkpoint: Checkpoint, decoder: Decoder) -> Mapping[str, nn.Module]:
        """Return the modules that train, by name, after changing the model as the method needs."""
        raise NotImplementedError

    def tensors(self, checkpoint: Checkpoint, learner: Learner) -> Iterator[StoredTensor]:
        """Yield the changed tensors as the checkpoint stores them, a few in memory at a time."""
        from shortstack.checkpoint.weights import stored_tensors

        for name, weight in learner.trained_tensors().items():
            yield from stored_tensors(checkpoint, {name: weight}).values()

    def learning_rate(self, _checkpoint: Checkpoint) -> float:
        """Return the default peak learning rate."""
        return 1e-4

    def added_bytes(self, _checkpoint: Checkpoint) -> int:
        """Return the bytes that the healed checkpoint is larger."""
        return 0

    def config(self, _checkpoint: Checkpoint) -> dict[str, Any]:
        """Return the config fields that change."""
        return {}
