"""Many cuts of one kind, each repaired before it is measured: every tail, or every window of some sizes.

What stands before a cut is the whole model's, whatever is cut; so one weight of each is refitted, and all share their walks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor

from shortstack.checkpoint import Checkpoint
from shortstack.data import Tokens
from shortstack.data.tokens import HELD_OUT, split
from shortstack.decoder import Decoder
from shortstack.decoder.batching import Batches
from shortstack.decoder.layer_io import State
from shortstack.decoder.memory import estimate_memory
from shortstack.machine.device import Compute
from shortstack.machine.memory import Memory
from shortstack.machine.progress import Progress, paced, silent
from shortstack.repairing.fit import at_output, fit_bytes, fit_corrections, mean_divergences, stepped
from shortstack.repairing.fold_points import check_refittable, find_fold_points

Window = tuple[int, int]  # its first layer, and how many layers it has


@torch.no_grad()
def repaired_windows(
    decoder: Decoder, tokens: Tokens, sizes: Iterable[int], *, progress: Progress = silent
) -> dict[Window, float]:
    """Compute the KL divergence from the whole model without each window of so many layers, by (first layer, size).

    In nats per token. For each the fold point before the window is refitted to give what leaves it, on three of four
    samples; the divergence is that on the fourth. Windows of several sizes share one walk, and those that begin at one layer
    share what its fits need. Nothing stands before layer 0: that window is not repaired.
    """
    check_refittable(decoder)
    cuts = _Windows(decoder, tokens, sorted(sizes))
    starts = range(len(decoder.layers) - cuts.sizes[0] + 1)
    held_out = sum(some.numel() for some in cuts.judging.ids)
    turns = decoder.memory_batches(starts, tokens=held_out, streams=len(cuts.sizes))
    done, total = itertools.count(1), len(turns) * len(decoder.layers)
    progress = paced(progress, tokens.ids.numel())
    divergences: dict[Window, float] = {}
    for some in turns:
        divergences |= cuts.measured(some, lambda: progress("repairing", next(done), total))
    return divergences


def windows_memory(checkpoint: Checkpoint, tokens: int, sizes: Collection[int], compute: Compute) -> Memory:
    """Estimate what repaired_windows() takes: streams around the largest window, those of all windows, and the fits."""
    windows = checkpoint.anatomy.layers * len(sizes)
    behind = estimate_memory(checkpoint, compute, tokens=tokens // HELD_OUT, streams=windows, in_turns=True)
    streams = behind.nbytes - estimate_memory(checkpoint, compute).nbytes
    fits = fit_bytes(checkpoint, tokens, compute, residuals=len(sizes))
    return estimate_memory(checkpoint, compute, tokens=tokens, streams=max(sizes) + 2, fits=streams + fits)


class _Windows:
    """The whole model's hidden states around windows that move up, and behind them those of the models without a window.

    Held at once: two streams of all samples more than the largest window has layers, and one of the held-out samples for
    each window that is measured.
    """

    def __init__(self, decoder: Decoder, tokens: Tokens, sizes: Sequence[int]) -> None:
        self.decoder, self.sizes, self.layers = decoder, sizes, len(decoder.layers)
        fitting, self.judging = (Batches.of(part, decoder.device) for part in split(tokens))
        self.batches, self.fitting = [*fitting.ids, *self.judging.ids], len(fitting)

    def measured(self, starts: Sequence[int], tick: Callable[[], None]) -> dict[Window, float]:
        """Measure held-out divergence without each window that starts at one of these layers; tick once for each layer."""
        entering = {0: [self.decoder.embed(some) for some in self.batches]}
        end = max(map(self._end, starts))  # not always the last one's: larger windows than its own may not fit there
        shorter: dict[Window, Sequence[Tensor]] = {}  # [held-out batch]
        for layer in range(self.layers):
            with self.decoder.resident(layer):
                # Of the whole model's streams those of held-out samples alone go to the end.
                behind = 0 if layer < end else self.fitting
                streams, batches = entering[layer][-len(self.batches) + behind :], self.batches[behind:]
                entering[layer + 1] = stepped(self.decoder, layer, streams, batches)
                shorter = self._advanced(layer, shorter)
            for start in starts:
                if self._end(start) == layer + 1:
                    shorter |= self._repaired(start, entering)
            entering.pop(layer - self.sizes[-1], None)
            tick()
        whole = entering[self.layers][-len(self.judging) :]
        return mean_divergences(self.decoder, self.judging, whole, shorter)

    def _end(self, start: int) -> int:
        """Return the layer behind the largest window that starts here."""
        return start + max(size for size in self.sizes if start + size <= self.layers)

    def _advanced(self, layer: int, shorter: Mapping[Window, Sequence[Tensor]]) -> dict[Window, Sequence[Tensor]]:
        """Step the shorter models' streams through a layer, all of a batch together."""
        after = [
            self.decoder.step(ids, layer, [State(streams[number], {}) for streams in shorter.values()])
            for number, ids in enumerate(self.judging.ids)
        ]
        return {window: [states[place].hidden for states in after] for place, window in enumerate(shorter)}

    def _repaired(self, start: int, entering: Mapping[int, Sequence[Tensor]]) -> dict[Window, Sequence[Tensor]]:
        """Compute held-out streams without each window that starts here, repaired, as they enter the layer behind all."""
        end, behind = self._end(start), dict[Window, Sequence[Tensor]]()
        windows = [(start, size) for size in self.sizes if start + size <= end]
        applied = self._fitted(start, windows, entering)
        for layer in range(start + windows[0][1], end + 1):
            behind |= {window: applied[window] for window in windows if sum(window) == layer}
            if layer < end:
                with self.decoder.resident(layer):
                    behind = self._advanced(layer, behind)
        return behind

    def _fitted(
        self, start: int, windows: Sequence[Window], entering: Mapping[int, Sequence[Tensor]]
    ) -> dict[Window, Sequence[Tensor]]:
        """Return the input of the layer behind each window on held-out samples, after refitting the fold point before it."""
        here, before = entering[start], start - 1
        if not start:
            return dict.fromkeys(windows, here[self.fitting :])
        with self.decoder.resident(before):
            points = find_fold_points(self.decoder, before)
            point = at_output(self.decoder, before, points)
            with point.recorded(self.decoder.layers[before]) as inputs:
                stepped(self.decoder, before, entering[before], self.batches)
        theres = {_named(window): entering[sum(window)] for window in windows}
        corrections = fit_corrections(point, inputs, here=here, theres=theres, fitting=self.fitting)
        held_out = slice(self.fitting, None)
        return {window: corrections[_named(window)].applied(here[held_out], inputs[held_out]) for window in windows}


def _named(window: Window) -> str:
    start, size = window
    return f"without layers {start} to {start + size - 1}, repaired"
