"""The walk back: the loss's gradient in every weight of a layer, layer after layer, and never of two layers at once.

What entered each layer was kept by the walk forward. A layer is computed again from that, and its gradients are taken.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from shortstack.decoder import Decoder
from shortstack.decoder.layer_io import State
from shortstack.decoder.losses import CrossEntropy, chunked_loss, predicting


@dataclass(frozen=True)
class WeightGradient:
    """A weight of a layer and the loss's gradient in it, fp32, of the same shape."""

    name: str
    weight: Tensor
    gradient: Tensor


def loss_gradient(decoder: Decoder, ids: Tensor, hidden: Tensor, *, of: float, counted: Tensor | None = None) -> Tensor:
    """Compute the gradient, in what leaves the last layer, of this batch's part of the mean loss over `of` predicted tokens.

    ids: [batch, length]; hidden: [batch, length, width] -> [batch, length, width]. counted: as in predicting().
    """
    with torch.enable_grad():
        hidden = hidden.detach().requires_grad_(True)
        states, targets = predicting(ids, hidden, counted)
        loss = chunked_loss(decoder, states, CrossEntropy(targets)) / of
    return torch.autograd.grad(loss, hidden)[0]


def check_differentiable(decoder: Decoder) -> None:
    """Refuse a model for which walk_back() would miss a part of a gradient."""
    decoder.check_in_one_place("for their gradients")
    decoder.check_bare("choose a metric without gradients, such as ppl or bi")


def walk_back(
    decoder: Decoder,
    batches: Sequence[Tensor],
    entering: Sequence[Sequence[Tensor]],
    leaving: list[Tensor],
    *,
    layers: Sequence[int],
    on_step: Callable[[], None],
) -> Iterator[tuple[int, list[WeightGradient]]]:
    """Yield, from the last of `layers` to the first, the layer and its weights' gradients, summed over all batches.

    batches: token ids, [batch, length] each. entering[layer][batch]: what entered the layer, [batch, length, width].
    leaving[batch]: the loss's gradient in what leaves the last of the layers; becomes that of what enters the first.
    The decoder is one that check_differentiable() lets pass.
    """
    for layer in reversed(layers):
        with decoder.resident(layer):
            yield layer, _summed(decoder, layer, batches, entering[layer], leaving, on_step)


def _summed(
    decoder: Decoder,
    layer: int,
    batches: Sequence[Tensor],
    entering: Sequence[Tensor],
    leaving: list[Tensor],
    on_step: Callable[[], None],
) -> list[WeightGradient]:
    """Sum the layer's gradients over all batches; in a function of its own, so that nothing of one layer outlives it."""
    weights = dict(decoder.layers[layer].named_parameters())
    sums = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
    for number, ids in enumerate(batches):
        gradients, leaving[number] = _gradients(
            decoder, layer, ids, entering[number], leaving[number], list(weights.values())
        )
        for total, gradient in zip(sums.values(), gradients, strict=True):
            if gradient is not None:  # an expert that no token was sent to
                total += gradient
        on_step()
    return [WeightGradient(name, weight.detach(), sums[name]) for name, weight in weights.items()]


def _gradients(
    decoder: Decoder, layer: int, ids: Tensor, entering: Tensor, leaving: Tensor, weights: Sequence[Tensor]
) -> tuple[Sequence[Tensor | None], Tensor]:
    """Apply the chain rule through one layer: return the gradients in its weights, and in what enters it."""
    hidden = entering.detach().requires_grad_(True)
    before = [weight.requires_grad for weight in weights]
    for weight in weights:
        weight.requires_grad_(True)
    try:
        with torch.enable_grad():
            after = decoder.step(ids, layer, [State(hidden, {})])[0].hidden
        in_hidden, *in_weights = torch.autograd.grad(after, (hidden, *weights), leaving, allow_unused=True)
    finally:
        for weight, required in zip(weights, before, strict=True):
            weight.requires_grad_(required)
    return in_weights, in_hidden
