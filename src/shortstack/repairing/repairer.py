"""Closed-form repair of a cut: matrices of kept layers refitted so that the hidden states follow those of the whole model.

The whole model and the shortened one go through the same walk. Where they part, the last matrix before the cut is refitted
by ridge regression to give what leaves the removed layers (after ReplaceMe, arXiv 2505.02819), with the strongest neurons
of removed MLPs among those it multiplies (merging.py). Behind the cut every fold
point is refitted to give what the whole model has at the same place. No parameter is added, and nothing is trained.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.safetensors import StoredTensor, spill
from shortstack.checkpoint.weights import Edit, check_unquantised, edited_tensors
from shortstack.data import Rows, Text, Tokens
from shortstack.data.tokens import JUDGING, check_enough, split
from shortstack.decoder import Decoder, read_tokens
from shortstack.decoder.batching import Batches
from shortstack.decoder.decoder import SkippedLayers
from shortstack.decoder.layer_io import recorded_inputs
from shortstack.decoder.memory import estimate_memory
from shortstack.machine.device import AUTO, Compute
from shortstack.machine.files import to_jsonable
from shortstack.machine.formats import shown
from shortstack.machine.memory import Memory
from shortstack.machine.numbers import perplexity
from shortstack.machine.progress import Progress, paced, silent
from shortstack.machine.tables import Column, Table, Tabled
from shortstack.repairing.fit import (
    Correction,
    at_output,
    fit_bytes,
    fit_corrections,
    mean_divergences,
    mean_loss,
    stepped,
    token_weights,
)
from shortstack.repairing.fold_points import OUTPUT, FoldPoint, check_refittable, find_fold_points
from shortstack.repairing.merging import MergedMlp, mergeable_mlp

STREAMS = 6  # of all tokens: the whole model's before and after a layer, the shortened one's, what is recorded inside


@dataclass(frozen=True)
class Fit:
    """One weight refitted: a matrix, a norm's weight (diagonal), or the matrices of all experts, by one factor (scalar).

    layer: in the unpruned model. error: held-out squared error after over before, both weighted. neurons: how many
    neurons of the layer's MLP were replaced by those of removed layers.
    """

    layer: int
    weight: str
    kind: str
    ridge: float
    error: float
    neurons: int = 0


@dataclass(frozen=True, repr=False)
class Repair(Tabled):
    """The effect of refitting on the loss, nats per token.

    removed: the layers of the cut that it is for. The losses are of samples that nothing was fitted or chosen on. kept:
    whether the repair lowered the loss of the samples that also chose the ridges; if not, the fits are what was tried.
    """

    removed: tuple[int, ...]
    fits: tuple[Fit, ...]
    loss_unpruned: float
    loss_before: float
    loss_after: float
    kept: bool
    tokens: Mapping[str, Any]
    seconds: float

    def table(self) -> Table:
        """Show loss and perplexity before and after on windows that chose nothing, and what was refitted."""
        losses = {"unpruned": self.loss_unpruned, "cut": self.loss_before, "cut and repaired": self.loss_after}
        rows = [(name, loss, perplexity(loss)) for name, loss in losses.items()]
        columns = ("on held-out windows", Column("loss", "loss"), Column("perplexity", "perplexity"))
        change = shown((perplexity(self.loss_before), perplexity(self.loss_after)), "perplexity")
        return Table.of(f"repair: perplexity {change}", columns, rows, notes=[*self._notes()])

    def _notes(self) -> Iterator[str]:
        on = f"{self.tokens['samples']} x {self.tokens['length']} tokens of {self.tokens['source']}"
        if not self.kept:
            yield f"No repair on {on} lowered the held-out loss, so the cut stays as it is."
            return
        largest = sorted(self.fits, key=lambda fit: fit.error)[:3]
        regained = ", ".join(f"layer {fit.layer} {fit.weight} {1 - fit.error:.0%}" for fit in largest)
        yield f"{len(self.fits)} weights refitted on {on}; evaluated on a held-out eighth."
        yield f"Largest recovery of what the cut changed: {regained}."
        merged = ", ".join(f"{fit.neurons} in layer {fit.layer}" for fit in self.fits if fit.neurons)
        if merged:
            yield f"Neurons of removed layers replaced weaker ones: {merged}."

    def to_dict(self) -> dict[str, Any]:
        data: dict[str, Any] = to_jsonable(self)
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Repair:
        """Read the repair in the record of a pruned model."""
        return cls(**{**data, "removed": tuple(data["removed"]), "fits": tuple(Fit(**fit) for fit in data["fits"])})


@torch.no_grad()
def refit(
    checkpoint: Checkpoint,
    removed: Sequence[int],
    text: Tokens | Text | Rows,
    *,
    compute: Compute = AUTO,
    scratch: Path | None = None,
    progress: Progress = silent,
) -> tuple[Repair, dict[str, StoredTensor]]:
    """Refit kept layers for a cut of the layers `removed`; return the result and the changed tensors by their names.

    One sample in eight judges. Of the others one in four is held out: it chooses each ridge, and says whether the loss fell.
    If it did not, no tensor is changed. scratch: an empty folder for the changed tensors; None: they stay in memory, which
    takes as much as the layers behind the cut.

    Raises:
        CheckpointError: the weights are quantised.
        ArchitectureError: layers hand on more than hidden states, or have no matrix that a correction folds into.
        DataError: fewer than eight samples of a text; fewer than it was to give are taken.
    """
    check_unquantised(checkpoint, "to refit", "repair")
    tokens = read_tokens(checkpoint, text, at_least=JUDGING, compute=compute, progress=progress)
    check_enough(tokens, "ask for more repair_samples, such as 256", at_least=JUDGING)
    started, decoder = time.perf_counter(), Decoder.open(checkpoint, compute)
    check_refittable(decoder)
    seen, judging = split(tokens, JUDGING)
    changed = ChangedTensors(checkpoint, scratch)
    walk = RepairWalk(decoder, frozenset(removed), seen, progress, judging, changed=changed).walk()
    unpruned, before, after = walk.losses()
    kept = walk.helps()
    seconds = round(time.perf_counter() - started, 3)
    fits, loss_after = tuple(walk.fits), after if kept else before
    result = Repair(tuple(removed), fits, unpruned, before, loss_after, kept, tokens.record(), seconds)
    return result, changed.tensors if kept else {}


def repair_memory(checkpoint: Checkpoint, tokens: int, compute: Compute) -> Memory:
    """Estimate what refit() takes on so many tokens, its tensors in a folder."""
    fits = fit_bytes(checkpoint, tokens, compute)
    return estimate_memory(checkpoint, compute, tokens=tokens, streams=STREAMS, fits=fits)


class ChangedTensors:
    """The stored tensors that a repair changed, in their own dtype; as files of a folder where there is one."""

    def __init__(self, checkpoint: Checkpoint, folder: Path | None) -> None:
        self.checkpoint, self.folder = checkpoint, folder
        self.tensors: dict[str, StoredTensor] = {}
        self.numbers = itertools.count()

    def edit(self, weight: str, edit: Edit) -> None:
        for name, tensor in edited_tensors(self.checkpoint, {weight: edit}).items():
            self.tensors[name] = spill(tensor, self.folder / str(next(self.numbers))) if self.folder else tensor


@dataclass
class _BeforeCut:
    """The last fold point before a cut with its inputs, and the MLP that removed layers offer their neurons to."""

    layer: int
    point: FoldPoint
    inputs: list[Tensor]
    merged: MergedMlp | None


class RepairWalk:
    """The whole model's streams, and the shortened one's, which is refitted to follow.

    The first batches are fitted on, the next choose the ridges, and the last judge, if there are any.
    """

    def __init__(
        self,
        decoder: Decoder,
        removed: SkippedLayers,
        tokens: Tokens,
        progress: Progress,
        judging: Tokens | None = None,
        *,
        changed: ChangedTensors | None = None,
    ) -> None:
        self.decoder, self.removed = decoder, removed
        self.layers = len(decoder.layers)
        fitting, self.choosing = (Batches.of(part, decoder.device) for part in split(tokens))
        self.judging = Batches.of(judging, decoder.device) if judging else None
        self.batches = [*fitting.ids, *self.choosing.ids, *(self.judging.ids if self.judging else ())]
        self.progress = paced(progress, sum(some.numel() for some in self.batches))
        self.fitting, self.seen = len(fitting), len(fitting) + len(self.choosing)
        self.whole = [decoder.embed(some) for some in self.batches]
        self.short, self.plain = list(self.whole), self.whole[self.fitting :]
        self.parted = False
        self.waiting: _BeforeCut | None = None
        self.changed = changed  # None where only losses are wanted
        self.fits: list[Fit] = []

    def walk(self) -> RepairWalk:
        for layer in range(self.layers):
            with self.decoder.resident(layer):
                self._pass(layer)
            if self.waiting and layer + 1 not in self.removed:
                self._close(self.waiting)
                self.waiting = None
            self.progress("repairing", layer + 1, self.layers)
        return self

    def losses(self) -> tuple[float, float, float]:
        """Compute the loss of the whole model, of the shortened one, and of that repaired, on what judges."""
        assert self.judging  # noqa: S101  the caller gave it
        streams = (self.whole[self.seen :], self.plain[len(self.choosing) :], self.short[self.seen :])
        whole, plain, short = (mean_loss(self.decoder, self.judging, some) for some in streams)
        return whole, plain, short

    def divergence(self) -> float:
        """Compute the repaired model's KL divergence from the whole one, nats per token, on what chose the ridges."""
        held_out = slice(self.fitting, self.seen)
        short = {"of the repaired model": self.short[held_out]}
        return next(iter(mean_divergences(self.decoder, self.choosing, self.whole[held_out], short).values()))

    def helps(self) -> bool:
        """Say whether the repair lowers the loss on what chose the ridges."""
        plain, short = self.plain[: len(self.choosing)], self.short[self.fitting : self.seen]
        return mean_loss(self.decoder, self.choosing, short) < mean_loss(self.decoder, self.choosing, plain)

    def _pass(self, layer: int) -> None:
        cut_follows = layer + 1 in self.removed
        if layer in self.removed:
            self.parted = True
            self.whole = self._step(layer, self.whole, self.batches)
            if self.waiting and self.waiting.merged:
                counted = [token_weights([hidden.float()]) for hidden in self.whole]
                self.waiting.merged.offer(self.decoder.layers[layer], layer, counted)
        elif not self.parted and not cut_follows:
            self.whole = self._step(layer, self.whole, self.batches)
            self.short, self.plain = list(self.whole), self.whole[self.fitting :]
        else:
            self._refit(layer, cut_follows)

    def _refit(self, layer: int, cut_follows: bool) -> None:
        """Refit a kept layer's fold points, one after the other; the one that gives its output waits where a cut follows."""
        module, points = self.decoder.layers[layer], find_fold_points(self.decoder, layer)
        last = at_output(self.decoder, layer, points) if cut_follows else None
        places = [point.place for point in points if point.place != OUTPUT]
        wanted = self._wanted(layer, places)
        short: list[Tensor] | None = None  # what leaves the layer, where the last fit has told it already
        with ExitStack() as changed:
            for point in points if self.parted else ():
                if point is last:
                    continue
                with recorded_inputs(module, places) as entered, point.recorded(module) as inputs:
                    entered[OUTPUT] = self._step(layer, self.short, self.batches)
                fitted = self._correction(layer, point, inputs, entered[point.place], wanted[point.place])
                self._keep(layer, fitted)
                if fitted.change is not None:
                    changed.enter_context(point.changed(module, fitted.change))
                short = fitted.applied(entered[OUTPUT], inputs) if point.place == OUTPUT else None
            if last:
                self.waiting, short = self._before_cut(layer, last)
            self.short = self._step(layer, self.short, self.batches) if short is None else short

    def _wanted(self, layer: int, places: Sequence[str]) -> dict[str, list[Tensor]]:
        """Step the whole model's streams and the unrepaired ones; return what the whole model has at each place."""
        with recorded_inputs(self.decoder.layers[layer], places) as wanted:
            self.whole = self._step(layer, self.whole, self.batches)
        if self.parted:
            self.plain = self._step(layer, self.plain, self.batches[self.fitting :])
        else:
            self.plain = self.whole[self.fitting :]
        return {**wanted, OUTPUT: self.whole}

    def _before_cut(self, layer: int, point: FoldPoint) -> tuple[_BeforeCut, list[Tensor]]:
        """Step through the layer before a cut, and keep what its last fold point and the MLP that this ends are given."""
        module, mergeable = self.decoder.layers[layer], mergeable_mlp(self.decoder, layer, point)
        entrances = [mergeable.mlp.entering[0]] if mergeable else []
        with recorded_inputs(module, entrances) as entered, point.recorded(module) as inputs:
            short = self._step(layer, self.short, self.batches)
        merged = MergedMlp(module, mergeable, entered[entrances[0]], inputs, self.fitting) if mergeable else None
        return _BeforeCut(layer, point, inputs, merged), short

    def _close(self, waiting: _BeforeCut) -> None:
        """Refit, behind a cut, the last fold point before it to give what the removed layers gave, merged or as it was."""
        own = self._correction(waiting.layer, waiting.point, waiting.inputs, self.short, self.whole)
        merged = waiting.merged
        if merged and len(merged.taken):
            streams = merged.applied(self.short)
            fitted = self._correction(waiting.layer, waiting.point, merged.inputs, streams, self.whole)
            if fitted.left < own.left:
                changed = self.changed
                edits = merged.edits(changed.checkpoint, waiting.layer, fitted.change) if changed else ()
                fitted = replace(fitted, error=fitted.left / own.missing)
                self._keep(waiting.layer, fitted, edits, len(merged.taken))
                self.short = fitted.applied(streams, merged.inputs)
                return
        self._keep(waiting.layer, own)
        self.short = own.applied(self.short, waiting.inputs)

    def _correction(
        self, layer: int, point: FoldPoint, inputs: Sequence[Tensor], here: Sequence[Tensor], there: Sequence[Tensor]
    ) -> Correction:
        where = f"{self.decoder.anatomy.layer(layer)}.{point.name}"
        inputs, here, there = (batches[: self.seen] for batches in (inputs, here, there))
        return fit_corrections(point, inputs, here=here, theres={where: there}, fitting=self.fitting)[where]

    def _keep(
        self, layer: int, fitted: Correction, edits: Iterable[tuple[str, Edit]] | None = None, neurons: int = 0
    ) -> None:
        """Keep what a correction does to the weights of a layer. edits: by their names in it; None: the correction's own."""
        point, prefix = fitted.point, self.decoder.anatomy.layer(layer)
        if edits is None:
            if fitted.change is None:
                return
            edits = point.edits(fitted.change.cpu()).items()
        if self.changed:
            for name, edit in edits:
                self.changed.edit(f"{prefix}.{name}", edit)
        self.fits.append(Fit(layer, point.name, point.kind, fitted.ridge, fitted.error, neurons))

    def _step(self, layer: int, streams: Sequence[Tensor], batches: Sequence[Tensor]) -> list[Tensor]:
        return stepped(self.decoder, layer, streams, batches)
