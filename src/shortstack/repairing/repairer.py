"""Closed-form repair of a cut: matrices of kept layers refitted so that the hidden states follow those of the whole model.

The whole model and the shortened one go through the same walk. Where they part, the last matrix before the cut is refitted
by ridge regression to give what leaves the removed layers (after ReplaceMe, arXiv 2505.02819). Behind the cut every fold
point is refitted to give what the whole model has at the same place. No parameter is added, and nothing is trained.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.safetensors import StoredTensor
from shortstack.checkpoint.weights import Edit, edited_tensors
from shortstack.data import Tokens
from shortstack.data.splits import check_enough, split
from shortstack.decoder import Decoder
from shortstack.decoder.batching import batched
from shortstack.decoder.decoder import SkippedLayers
from shortstack.decoder.hooks import listening
from shortstack.decoder.losses import next_token_losses
from shortstack.errors import parameter
from shortstack.machine.device import AUTO, Compute
from shortstack.machine.numbers import checked, in_float64
from shortstack.machine.progress import Progress, silent
from shortstack.repairing.fit import at_output, best, corrected, stepped
from shortstack.repairing.fold_points import OUTPUT, FoldPoint, find_fold_points


@dataclass(frozen=True)
class Fit:
    """One weight refitted: a matrix, a norm's weight (diagonal), or the matrices of all experts, by one factor (scalar).

    layer: in the unpruned model. error: held-out squared error after over before, both weighted.
    """

    layer: int
    weight: str
    kind: str
    ridge: float
    error: float


@dataclass(frozen=True)
class Repair:
    """What refitting did to the held-out loss, nats per token; tensors: the changed ones, by the source's names.

    kept: whether the repair lowered the loss; if not, there are no tensors, and the fits are what was tried.
    """

    fits: tuple[Fit, ...]
    loss_unpruned: float
    loss_before: float
    loss_after: float
    kept: bool
    tensors: Mapping[str, StoredTensor]
    tokens: Mapping[str, Any]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        found = asdict(replace(self, tensors={}))
        found.pop("tensors")
        return found


@torch.no_grad()
def repair(
    checkpoint: Checkpoint,
    removed: SkippedLayers,
    tokens: Tokens,
    *,
    compute: Compute = AUTO,
    progress: Progress = silent,
) -> Repair:
    """Refit kept layers of the checkpoint for a cut of the layers `removed`; writes nothing.

    One sample in four is held out: it chooses each ridge, and says whether the loss fell. If it did not, nothing is kept.

    Raises:
        ArchitectureError: layers hand on more than hidden states, or have no matrix that a correction folds into.
        DataError: fewer than four samples.
    """
    started = time.perf_counter()
    check_enough(tokens, f"add {parameter('repair_samples', 256)}")
    decoder = Decoder.open(checkpoint, compute)
    decoder.check_bare(f"leave {parameter('repair')} out")
    follower = _Follower(decoder, removed, tokens.ids, progress).walk()
    unpruned, before, after = follower.losses()
    kept = after < before
    edits = follower.edits if kept else {}
    return Repair(
        tuple(follower.fits),
        unpruned,
        before,
        after if kept else before,
        kept,
        edited_tensors(checkpoint, edits),
        tokens.record(),
        round(time.perf_counter() - started, 3),
    )


class _Follower:
    """The whole model's streams, and the shortened one's, which is refitted to follow; the last batches are held out."""

    def __init__(self, decoder: Decoder, removed: SkippedLayers, ids: Tensor, progress: Progress) -> None:
        """ids: [samples, length]."""
        self.decoder, self.removed, self.progress = decoder, removed, progress
        self.layers = len(decoder.layers)
        fitting, self.judging = (batched(part, decoder.device) for part in split(ids))
        self.batches, self.fitting = [*fitting, *self.judging], len(fitting)
        self.whole = [decoder.embed(some) for some in self.batches]
        self.short, self.plain = list(self.whole), self.whole[self.fitting :]
        self.parted = False
        self.open: tuple[int, FoldPoint, list[Tensor]] | None = (
            None  # the last fold point before a cut, and what it heard
        )
        self.edits: dict[str, Edit] = {}  # by the weights' names in the whole model
        self.fits: list[Fit] = []

    def walk(self) -> _Follower:
        for layer in range(self.layers):
            with self.decoder.resident(layer):
                self._pass(layer)
            if self.open and layer + 1 not in self.removed:
                self._close()
            self.progress("repairing", layer + 1, self.layers)
        return self

    def losses(self) -> tuple[float, float, float]:
        """Held-out loss of the whole model, of the shortened one, and of that repaired."""
        streams = self.whole[self.fitting :], self.plain, self.short[self.fitting :]
        whole, plain, short = (
            torch.cat(
                [next_token_losses(self.decoder, *each).flatten() for each in zip(self.judging, some, strict=True)]
            )
            for some in streams
        )
        found = [checked(float(in_float64(each).mean()), "held-out loss") for each in (whole, plain, short)]
        return found[0], found[1], found[2]

    def _pass(self, layer: int) -> None:
        cut_follows = layer + 1 in self.removed
        if layer in self.removed:
            self.parted = True
            self.whole = self._step(layer, self.whole, self.batches)
        elif not self.parted and not cut_follows:
            self.whole = self._step(layer, self.whole, self.batches)
            self.short, self.plain = list(self.whole), self.whole[self.fitting :]
        else:
            self._refit(layer, cut_follows)

    def _refit(self, layer: int, cut_follows: bool) -> None:
        """A kept layer's fold points, one after the other; the one that gives its output waits where a cut follows."""
        module = self.decoder.layers[layer]
        points = find_fold_points(self.decoder, layer)
        if cut_follows:
            at_output(self.decoder, layer, points, f"leave {parameter('repair')} out")
        places = [point.place for point in points if point.place != OUTPUT]
        with listening(module, places) as targets:
            after = self._step(layer, self.whole, self.batches)
        targets[OUTPUT] = after
        self.plain = self._step(layer, self.plain, self.judging) if self.parted else after[self.fitting :]
        with ExitStack() as changed:
            for point in points if self.parted else [point for point in points if point.place == OUTPUT]:
                with listening(module, places) as entered, point.listening(module) as heard:
                    entered[OUTPUT] = self._step(layer, self.short, self.batches)
                if point.place == OUTPUT and cut_follows:
                    self.open = (layer, point, heard)
                    continue
                change = self._fitted(layer, point, heard, entered[point.place], targets[point.place])
                if change is not None:
                    changed.enter_context(point.changed(module, change))
            self.short = self._step(layer, self.short, self.batches)
        self.whole = after

    def _close(self) -> None:
        """Behind a cut: refit the last fold point before it to give what the removed layers gave."""
        assert self.open  # noqa: S101  the caller has looked
        layer, point, heard = self.open
        self.open = None
        change = self._fitted(layer, point, heard, self.short, self.whole)
        pairs = zip(self.short, heard, strict=True)
        self.short = [corrected(point, change, hidden=hidden, heard=inputs) for hidden, inputs in pairs]

    def _fitted(
        self, layer: int, point: FoldPoint, heard: Sequence[Tensor], here: Sequence[Tensor], there: Sequence[Tensor]
    ) -> Tensor | None:
        """The change that best() finds; what it does to weights is kept under their names."""
        prefix = self.decoder.anatomy.layer(layer)
        where = f"{prefix}.{point.name}"
        ridge, error, change = best(point, heard, here=here, there=there, fitting=self.fitting, where=where)
        if change is None:
            return None
        self.edits |= {f"{prefix}.{name}": edit for name, edit in point.edits(change.cpu()).items()}
        self.fits.append(Fit(layer, point.name, point.kind, ridge, error))
        return change

    def _step(self, layer: int, streams: Sequence[Tensor], batches: Sequence[Tensor]) -> list[Tensor]:
        return stepped(self.decoder, layer, streams, batches)
