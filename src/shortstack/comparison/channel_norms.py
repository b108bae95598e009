"""How strongly each input channel of each linear layer is used: the norms that Wanda and neuron pruning weigh by."""

from __future__ import annotations

import torch
from torch import Tensor

from shortstack.data import Tokens
from shortstack.decoder import Decoder
from shortstack.decoder.batching import Batches
from shortstack.decoder.hooks import linear_layers, recorded_inputs
from shortstack.machine.numbers import in_float64
from shortstack.machine.progress import Progress, silent


@torch.no_grad()
def input_norms(decoder: Decoder, ids: Tensor, *, progress: Progress = silent) -> dict[str, Tensor]:
    """|X_j|_2 over all tokens of `ids` [samples, length], of each input channel j of each linear layer inside the layers.

    By the names of modules in the whole model, [inputs] in float64; from one walk of the unchanged model.
    """
    walks = [decoder.enter(batch) for batch in Batches.of(Tokens.given(ids), decoder.device).ids]
    walk = decoder.through(walks, range(len(decoder.layers)))
    norms: dict[str, Tensor] = {}
    for number, layer in enumerate(decoder.layers):
        with recorded_inputs(layer, list(linear_layers(layer))) as inputs:
            next(walk)
        for name, batches in inputs.items():
            squares = sum(in_float64(each.flatten(0, -2)).square().sum(0) for each in batches)
            norms[f"{decoder.anatomy.layer(number)}.{name}"] = torch.as_tensor(squares).sqrt()
        progress("measuring inputs", number + 1, len(decoder.layers))
    return norms
