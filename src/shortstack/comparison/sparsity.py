"""2:4 sparsity: of every four weights side by side in a row, the two that matter least are zero.

Hardware that has it halves these matrices and multiplies them faster; a mask alone saves nothing. Here it is quality only.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from shortstack.data import Tokens
from shortstack.decoder import Decoder
from shortstack.decoder.batching import Batches
from shortstack.decoder.layer_io import linear_layers, recorded_inputs
from shortstack.machine.numbers import in_float64
from shortstack.machine.progress import Progress, silent


@torch.no_grad()
def input_norms(decoder: Decoder, ids: Tensor, *, progress: Progress = silent) -> dict[str, Tensor]:
    """Compute |X_j|_2 over all tokens of `ids` [samples, length], for each input channel j of each linear layer.

    By the names of modules in the whole model, [inputs] in float64; from one walk of the unchanged model.
    """
    walks = [decoder.enter(batch) for batch in Batches.of(Tokens.given(ids), decoder.device).ids]
    walk = decoder.through(walks, range(len(decoder.layers)))
    norms: dict[str, Tensor] = {}
    for number, layer in enumerate(decoder.layers):
        with recorded_inputs(layer, list(linear_layers(layer))) as inputs:
            next(walk)
        for name, batches in inputs.items():
            squares = sum(in_float64(batch.flatten(0, -2)).square().sum(0) for batch in batches)
            norms[f"{decoder.anatomy.layer(number)}.{name}"] = torch.as_tensor(squares).sqrt()
        progress("measuring inputs", number + 1, len(decoder.layers))
    return norms


GROUP, ZEROS = 4, 2


def unmaskable(decoder: Decoder) -> str | None:
    """Return why mask() cannot take a decoder; None where it can."""
    for number, layer in enumerate(decoder.layers):
        for name, module in linear_layers(layer).items():
            if module.in_features % GROUP:
                return f"layer {number} {name} has {module.in_features} inputs, which do not divide by {GROUP}"
    return None


@torch.no_grad()
def mask(decoder: Decoder, norms: Mapping[str, Tensor]) -> None:
    """Zero two of every four inputs of each row of each linear layer inside the layers, in place.

    Those with the smallest |W_ij| |X_j|_2 (Wanda, Sun et al., arXiv 2306.11695, equation 1) go, the input_norms() being
    those of the unmasked model; Wanda's code takes each layer's behind the layers masked already.
    """
    for number, layer in enumerate(decoder.layers):
        for name, module in linear_layers(layer).items():
            weight = module.weight
            score = weight.abs().float() * norms[f"{decoder.anatomy.layer(number)}.{name}"].to(weight.device)
            least = score.view(len(weight), -1, GROUP).topk(ZEROS, largest=False).indices
            weight.data.view(len(weight), -1, GROUP).scatter_(-1, least, 0)
