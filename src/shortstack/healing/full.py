"""Full fine-tuning: every weight of the language model trains, the embedding among them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.safetensors import StoredTensor
from shortstack.checkpoint.weights import stored_tensors
from shortstack.decoder import Decoder
from shortstack.healing.learner import Learner


@dataclass(frozen=True)
class Full:
    """All that a text passes: embedding, layers, norm and head; a tied head trains as the embedding it is."""

    name: ClassVar[str] = "full"

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name}

    def first(self, _checkpoint: Checkpoint) -> int:
        """Nothing is frozen."""
        return 0

    def prepare(self, _checkpoint: Checkpoint, decoder: Decoder) -> Mapping[str, nn.Module]:
        """What holds the layers, and the head where it lies outside."""
        stack = decoder.anatomy.layers_path.rpartition(".")[0]
        inside = decoder.anatomy.tied or decoder.anatomy.head.startswith(f"{stack}.")
        names = [stack, *([] if inside else [decoder.anatomy.head])]
        return {name: decoder.model.get_submodule(name) for name in names}

    def tensors(self, checkpoint: Checkpoint, learner: Learner) -> dict[str, StoredTensor]:
        """What changed, as the checkpoint stores it."""
        return stored_tensors(checkpoint, learner.trained_tensors())

    def added_bytes(self, _checkpoint: Checkpoint) -> int:
        return 0

    def config(self, _checkpoint: Checkpoint) -> dict[str, Any]:
        return {}
