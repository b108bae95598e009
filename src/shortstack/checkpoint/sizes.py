"""The size of each layer of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shortstack.errors import DataError


@dataclass(frozen=True)
class Sizes:
    """The parameters and stored bytes of each layer of a checkpoint, and of everything that is not a layer.

    extra: of the multi-token prediction heads, which go with any cut.
    """

    layer_parameters: tuple[int, ...]
    layer_bytes: tuple[int, ...]
    other_parameters: int
    other_bytes: int
    extra_parameters: int = 0
    extra_bytes: int = 0

    @classmethod
    def summed(cls, layers: int, tensors: Iterable[tuple[int | None, int, int]]) -> Sizes:
        """Sum up tensors, each by its layer, parameters and bytes; those of layers past the last are extra heads."""
        parameters, sizes = [0] * (layers + 2), [0] * (layers + 2)
        for layer, count, nbytes in tensors:
            slot = layers if layer is None else layers + 1 if layer >= layers else layer
            parameters[slot] += count
            sizes[slot] += nbytes
        (*by_layer, other, extra), (*bytes_by_layer, other_bytes, extra_bytes) = parameters, sizes
        return cls(tuple(by_layer), tuple(bytes_by_layer), other, other_bytes, extra, extra_bytes)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any], *, where: object) -> Sizes:
        """Read the sizes that a scores.json keeps of its model."""
        try:
            parameters, sizes = tuple(data["layer_parameters"]), tuple(data["layer_bytes"])
            others = data["other_parameters"], data["other_bytes"]
            extra = data.get("extra_parameters", 0), data.get("extra_bytes", 0)
        except (KeyError, TypeError) as error:
            raise not_written_by("score", where, repr(error)) from error
        whole = all(type(number) is int and number >= 0 for number in (*parameters, *sizes, *others, *extra))
        if len(parameters) != len(sizes) or not whole or 0 in (*parameters, *sizes, *others):
            raise not_written_by("score", where, "layer sizes that are not whole numbers, or not as many as layers")
        return cls(parameters, sizes, *others, *extra)

    def of(self, kept: Sequence[int]) -> tuple[int, int]:
        """Return (parameters, bytes) of the model with only these layers."""
        parameters = self.other_parameters + sum(self.layer_parameters[layer] for layer in kept)
        nbytes = self.other_bytes + sum(self.layer_bytes[layer] for layer in kept)
        if len(kept) < len(self.layer_bytes):
            return parameters, nbytes
        return parameters + self.extra_parameters, nbytes + self.extra_bytes


def not_written_by(verb: str, where: object, found: str) -> DataError:
    """Make the error for JSON that is not what one of shortstack's verbs writes."""
    return DataError(f"{where} is not written by `shortstack {verb} -o` ({found}); {verb} the model again")
