"""The base of every healing method: which part of a model trains, and which tensors are written.

Neither this file nor those of the methods import torch before a method runs, so that naming one costs nothing.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from shortstack.machine.options import check_installed, check_options

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

    def learning_rate(self, _checkpoint: Checkpoint) -> float:
        """Return the peak learning rate where none is given."""
        return 1e-4

    def added_bytes(self, _checkpoint: Checkpoint) -> int:
        """Count the bytes that the healed checkpoint has more than the one that heals."""
        return 0

    def config(self, _checkpoint: Checkpoint) -> dict[str, Any]:
        """Return the config fields that change."""
        return {}
