"""Where the MLP of a layer is, found by trying: the matrices whose rows are its neurons, and the one they leave by."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shortstack.decoder.decoder import Decoder
from shortstack.decoder.layer_io import State, linear_layers, recorded_inputs

TOKENS = 4  # that a layer is tried on


@dataclass(frozen=True)
class Mlp:
    """An MLP inside a layer, by the names of its matrices there. entering: those whose rows are neurons (gate, up)."""

    entering: tuple[str, ...]
    leaving: str
    neurons: int

    @property
    def module(self) -> str:
        """The module that holds the matrices; "" where that is the layer itself."""
        return self.leaving.rpartition(".")[0]


@torch.no_grad()
def mlps_of(decoder: Decoder, number: int) -> list[Mlp]:
    """Find the MLPs of a layer whose weights are in memory.

    A matrix leaves one if beside it are others with as many outputs as it has inputs, and if without some of their rows
    the same of its inputs change, and no others: so it is with gate and up, and not with queries, keys and values.
    """
    return [mlp for mlp in _candidates(decoder.layers[number]) if _is_mlp(decoder, number, mlp)]


def _candidates(layer: nn.Module) -> Iterator[Mlp]:
    matrices = linear_layers(layer)
    for name, matrix in matrices.items():
        parent = name.rpartition(".")[0]
        beside = [
            other
            for other, module in matrices.items()
            if other != name and other.rpartition(".")[0] == parent and module.out_features == matrix.in_features
        ]
        if beside:
            yield Mlp(tuple(beside), name, matrix.in_features)


def _is_mlp(decoder: Decoder, number: int, mlp: Mlp) -> bool:
    """Say whether rows of the entering matrices are the leaving one's inputs, one by one, on a few random states."""
    layer = decoder.layers[number]
    ids = torch.arange(TOKENS, device=decoder.device)[None]
    entering = decoder.embed(ids)
    random = torch.randn(entering.shape, generator=torch.Generator().manual_seed(0)).to(entering)

    def inputs_of_leaving() -> Tensor | None:
        with recorded_inputs(layer, [mlp.leaving]) as inputs:
            decoder.step(ids, number, [State(random, {})])
        return inputs[mlp.leaving][0].flatten(0, -2) if mlp.leaving in inputs else None

    before, gone = inputs_of_leaving(), slice(0, None, 2)
    if before is None:  # another layer's, which shares the module (zamba2)
        return False
    kept = {name: layer.get_submodule(name).get_parameter("weight") for name in mlp.entering}
    whole = {name: weight.data for name, weight in kept.items()}
    for weight in kept.values():
        weight.data = weight.data.clone()
        weight.data[gone] = 0
    after = inputs_of_leaving()
    for name, weight in kept.items():
        weight.data = whole[name]
    assert after is not None  # noqa: S101  it ran before
    return torch.equal(before[:, 1::2], after[:, 1::2]) and not torch.equal(before[:, gone], after[:, gone])
