"""The fit of one place: the change of a kept weight that brings the hidden states there closest to those wanted.

Ridge regression of what is missing on what the weight multiplies (after ReplaceMe, arXiv 2505.02819); held-out samples
choose the ridge.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from shortstack.checkpoint import Checkpoint
from shortstack.data.tokens import HELD_OUT
from shortstack.decoder import Decoder
from shortstack.decoder.batching import Batches
from shortstack.decoder.layer_io import State, linear_layers
from shortstack.decoder.losses import divergences, next_token_losses
from shortstack.decoder.wrapping import arithmetic
from shortstack.errors import ArchitectureError
from shortstack.machine.device import Compute, pick_device
from shortstack.machine.numbers import checked, in_float64
from shortstack.repairing.fold_points import INSTEAD, OUTPUT, FoldPoint

Name = TypeVar("Name", bound=Hashable)
RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the mean square of the inputs
SOLVING = 3  # matrices as large as the sums: the penalty, the sums with it, and their factor
CHANGES = (
    4.5  # as large as all changes: they, fitted ones, two products, and in float32; measured: 218 MB of 221 foretold
)


def fit_bytes(checkpoint: Checkpoint, tokens: int, compute: Compute, *, residuals: int = 1) -> int:
    """Estimate the bytes of fitting the widest matrix: its inputs, and in float64 the sums, or the tokens where fewer."""
    width, layers = checkpoint.hidden_width, checkpoint.blueprint.get_submodule(checkpoint.anatomy.layers_path)
    inputs = max((matrix.in_features for matrix in linear_layers(layers[-1]).values()), default=width)
    held_out = tokens // HELD_OUT
    fitting, outputs = tokens - held_out, residuals * width

    def sums(count: int) -> int:
        if count >= inputs:
            return inputs * (inputs + outputs)
        return count * (inputs + outputs) * 3 // 2 + count * count  # in float32 as well

    few = min(inputs, fitting)
    dtype = arithmetic(compute.dtype, checkpoint, pick_device(compute.device))
    in_float64 = sums(fitting) + sums(held_out) + SOLVING * few * few + CHANGES * outputs * inputs
    return tokens * inputs * dtype.itemsize + int(8 * in_float64)


def stepped(decoder: Decoder, layer: int, streams: Sequence[Tensor], batches: Sequence[Tensor]) -> list[Tensor]:
    """Step the streams through a layer whose weights are in memory."""
    return [
        decoder.step(ids, layer, [State(hidden, {})])[0].hidden for ids, hidden in zip(batches, streams, strict=True)
    ]


def mean_loss(decoder: Decoder, batches: Batches, streams: Sequence[Tensor]) -> float:
    """Compute the loss in nats per predicted token of hidden states [batch, length, width] that leave the last layer.

    Of several kinds of text it is the mean by their weights.
    """
    losses: list[list[Tensor]] = [[] for _ in batches.kinds]
    for ids, counted, kind, hidden in zip(batches.ids, batches.counted, batches.kind_of, streams, strict=True):
        losses[kind].append(next_token_losses(decoder, ids, hidden, counted))
    means = [float(in_float64(torch.cat(kind_losses)).mean()) for kind_losses in losses]
    return checked(batches.mean(means), "held-out loss")


def mean_divergences(
    decoder: Decoder, batches: Batches, whole: Sequence[Tensor], others: Mapping[Name, Sequence[Tensor]]
) -> dict[Name, float]:
    """Compute, by name, the KL divergence from the whole model of other streams, in nats per predicted token.

    whole, others: of each batch hidden states [batch, length, width] that leave the last layer. Of several kinds of text
    it is the mean by weights.
    """
    kls: list[list[Tensor]] = [[] for _ in batches.kinds]  # [others, tokens] each
    streams = zip(*others.values(), strict=True)
    for ids, counted, kind, one, some in zip(
        batches.ids, batches.counted, batches.kind_of, whole, streams, strict=True
    ):
        kls[kind] += [kl for _, kl in divergences(decoder, ids, one, some, counted)]
    of_kinds = torch.stack([in_float64(torch.cat(kind_kls, dim=1)).mean(1) for kind_kls in kls]).T.tolist()
    return {
        name: checked(batches.mean(values), f"KL divergence {name}")
        for name, values in zip(others, of_kinds, strict=True)
    }


@dataclass(frozen=True)
class Correction:
    """A change of a fold point, None where none helps; error: the held-out one after it over that before.

    missing: the held-out squared error without it, weighted.
    """

    point: FoldPoint
    ridge: float
    error: float
    change: Tensor | None
    missing: float

    @property
    def left(self) -> float:
        """The held-out squared error that is left, weighted."""
        return min(self.error, 1.0) * self.missing

    def applied(self, streams: Sequence[Tensor], inputs: Sequence[Tensor]) -> list[Tensor]:
        """Add the change to hidden states at the point's place, given what it is multiplied with."""
        change = self.change
        if change is None:
            return list(streams)
        return [
            (hidden.float() + self.point.product(batch, change).view(hidden.shape)).to(hidden.dtype)
            for hidden, batch in zip(streams, inputs, strict=True)
        ]


def fit_corrections(
    point: FoldPoint,
    inputs: Sequence[Tensor],
    *,
    here: Sequence[Tensor],
    theres: Mapping[str, Sequence[Tensor]],
    fitting: int,
) -> dict[str, Correction]:
    """Fit the changes that bring the streams `here` closest to several others, by what an error names.

    Batches from number `fitting` on are held out. A token counts by 1 / |there| of the stream where it is largest: a few
    with massive activations would own the fit otherwise.
    """
    fitted, judged = point.regression(), point.regression()
    for number, (batch, hidden) in enumerate(zip(inputs, here, strict=True)):
        wanted = [there[number].float() for there in theres.values()]
        missing = [one - hidden.float() for one in wanted]
        (fitted if number < fitting else judged).add(batch, missing, token_weights(wanted))
    corrections = {}
    for where, fit, missing in zip(theres, fitted.fitted(judged, RIDGES), judged.residuals.tolist(), strict=True):
        change = fit.change.float().to(here[0].device) if checked(fit.error, where) < 1 else None
        corrections[where] = Correction(point, fit.ridge, fit.error, change, missing)
    return corrections


def token_weights(wanted: Sequence[Tensor]) -> Tensor:
    """Return 1 / the norm of each token's hidden state, [tokens], in the stream [..., width] where it is largest."""
    norms = torch.stack([hidden.flatten(0, -2).norm(dim=-1) for hidden in wanted]).amax(0)
    return 1 / norms.clamp_min(torch.finfo(torch.float32).tiny)


def at_output(decoder: Decoder, layer: int, points: Sequence[FoldPoint]) -> FoldPoint:
    """Find the fold point that adds to the layer's output."""
    for point in points:
        if point.place == OUTPUT:
            return point
    where = f"layer {layer} of {decoder.anatomy.architecture}"
    raise ArchitectureError(f"no weight of {where} adds unchanged to its output, so nothing can be refitted; {INSTEAD}")
