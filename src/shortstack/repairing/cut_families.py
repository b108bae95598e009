"""Many cuts of one kind, each repaired before it is measured: every tail, or every window of one size.

What stands before a cut is the whole model's, whatever is cut; so one weight of each is refitted, and all share their walks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from shortstack.data import Tokens
from shortstack.data.splits import split
from shortstack.decoder import Decoder
from shortstack.decoder.batching import Batches
from shortstack.decoder.layer_io import State
from shortstack.decoder.losses import divergences
from shortstack.errors import parameter
from shortstack.machine.numbers import checked, in_float64
from shortstack.machine.progress import Progress, silent
from shortstack.repairing.fit import at_output, fit_correction, mean_loss, stepped
from shortstack.repairing.fold_points import find_fold_points


@torch.no_grad()
def repaired_tails(
    decoder: Decoder, tokens: Tokens, judging: Tokens, *, progress: Progress = silent
) -> list[tuple[float, float]]:
    """Loss on `judging` of the first 1, 2, ... layers, and KL from the whole model, in nats per token.

    For each tail the last kept layer's fold point is refitted on three of four samples of `tokens`, and the fourth chooses
    the ridge; all from two walks.

    Raises:
        ArchitectureError: as repair().
    """
    decoder.check_bare(f"leave {parameter('repair')} out")
    parts = [Batches.of(part, decoder.device) for part in (*split(tokens), judging)]
    batches, layers = [batch for part in parts for batch in part.ids], len(decoder.layers)
    known, judged = slice(len(parts[0]) + len(parts[1])), slice(len(parts[0]) + len(parts[1]), None)
    streams = [decoder.embed(some) for some in batches]
    whole, losses = list(streams), []
    for layer in range(layers):
        with decoder.resident(layer):
            whole = stepped(decoder, layer, whole, batches)
        progress("repairing", layer + 1, 2 * layers)
    for layer in range(layers):
        with decoder.resident(layer):
            point = at_output(decoder, layer, find_fold_points(decoder, layer), f"leave {parameter('repair')} out")
            with point.recorded(decoder.layers[layer]) as inputs:
                streams = stepped(decoder, layer, streams, batches)
        where, fitting = f"{layer + 1} layers, repaired", len(parts[0])
        fitted = fit_correction(
            point, inputs[known], here=streams[known], there=whole[known], fitting=fitting, where=where
        )
        short = fitted.applied(streams[judged], inputs[judged])
        losses.append(_judged(decoder, parts[-1], whole[judged], short, where))
        progress("repairing", layers + layer + 1, 2 * layers)
    return losses


def _judged(
    decoder: Decoder, batches: Batches, whole: Sequence[Tensor], short: Sequence[Tensor], where: str
) -> tuple[float, float]:
    """Mean loss of the shorter model, and its KL divergence from the whole one; of several kinds the mean by weight."""
    sums: list[list[tuple[Tensor, Tensor]]] = [[] for _ in batches.kinds]
    for ids, counted, kind, there, hidden in zip(
        batches.ids, batches.counted, batches.kind_of, whole, short, strict=True
    ):
        sums[kind] += divergences(decoder, ids, there, [hidden], counted)
    loss, kl = (
        batches.mean([float(in_float64(torch.cat([pair[each] for pair in kind], dim=1)).mean()) for kind in sums])
        for each in (0, 1)
    )
    return checked(loss, where), kl


@torch.no_grad()
def repaired_windows(decoder: Decoder, tokens: Tokens, size: int, *, progress: Progress = silent) -> list[float]:
    """Loss of the model without each window of `size` layers, in nats per token, from the window that starts at layer 0 on.

    For each the fold point before the window is refitted to give what leaves it, on three of four samples; the loss is that
    on the fourth. Nothing stands before layer 0: that window is not repaired.

    Raises:
        ArchitectureError: as repair().
    """
    decoder.check_bare("choose another metric")
    cuts = _Windows(decoder, tokens, size)
    starts = range(len(decoder.layers) - size + 1)
    turns = decoder.turns(starts, tokens=sum(some.numel() for some in cuts.judging.ids), streams=1)
    done, total = itertools.count(1), len(turns) * len(decoder.layers)
    return [loss for some in turns for loss in cuts.measured(some, lambda: progress("repairing", next(done), total))]


class _Windows:
    """The whole model's hidden states around a window that moves up, and behind it those of the models without a window.

    Held at once: size + 2 streams of all samples, and one of the held-out samples for each window that is measured.
    """

    def __init__(self, decoder: Decoder, tokens: Tokens, size: int) -> None:
        self.decoder, self.size = decoder, size
        fitting, self.judging = (Batches.of(part, decoder.device) for part in split(tokens))
        self.batches, self.fitting = [*fitting.ids, *self.judging.ids], len(fitting)

    def measured(self, starts: Sequence[int], tick: Callable[[], None]) -> list[float]:
        """Held-out loss without each window that starts at one of these layers; ticks once for each layer."""
        entering = {0: [self.decoder.embed(some) for some in self.batches]}
        shorter: dict[int, list[Tensor]] = {}  # by the window's start, [held-out batch]
        for layer in range(len(self.decoder.layers)):
            with self.decoder.resident(layer):
                if layer < starts[-1] + self.size:
                    entering[layer + 1] = stepped(self.decoder, layer, entering[layer], self.batches)
                shorter = self._advanced(layer, shorter)
            start = layer + 1 - self.size
            if start in starts:
                shorter[start] = self._repaired(start, entering)
            entering.pop(start - 1, None)
            tick()
        return [mean_loss(self.decoder, self.judging, shorter[start], self._named(start)) for start in starts]

    def _advanced(self, layer: int, shorter: Mapping[int, Sequence[Tensor]]) -> dict[int, list[Tensor]]:
        """The shorter models' streams as they leave a layer, all of a batch together."""
        after = [
            self.decoder.step(ids, layer, [State(streams[number], {}) for streams in shorter.values()])
            for number, ids in enumerate(self.judging.ids)
        ]
        return {start: [states[place].hidden for states in after] for place, start in enumerate(shorter)}

    def _repaired(self, start: int, entering: Mapping[int, Sequence[Tensor]]) -> list[Tensor]:
        """What enters the layer behind a window, on held-out samples, once the fold point before the window is refitted."""
        here, there, before = entering[start], entering[start + self.size], start - 1
        if not start:
            return list(here[self.fitting :])
        with self.decoder.resident(before):
            point = at_output(self.decoder, before, find_fold_points(self.decoder, before), "choose another metric")
            with point.recorded(self.decoder.layers[before]) as inputs:
                stepped(self.decoder, before, entering[before], self.batches)
        fitted = fit_correction(point, inputs, here=here, there=there, fitting=self.fitting, where=self._named(start))
        return fitted.applied(here[self.fitting :], inputs[self.fitting :])

    def _named(self, start: int) -> str:
        return f"without layers {start} to {start + self.size - 1}, repaired"
