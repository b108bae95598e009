"""One walk over all layers, and one back where a metric wants gradients; accumulators add up what metrics are fed with."""

from __future__ import annotations

import functools
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from shortstack.checkpoint import Checkpoint
from shortstack.decoder import Decoder
from shortstack.decoder.batching import batched
from shortstack.decoder.decoder import UNPRUNED, Group, SkippedLayers, WalkState, layer_forwards
from shortstack.decoder.layer_io import State
from shortstack.machine.progress import Progress, silent
from shortstack.scoring.accumulators import GradientSums, HiddenMeans, Means, OutputMeans, Values
from shortstack.scoring.gradients import loss_gradient, walk_back
from shortstack.scoring.metrics import Metric
from shortstack.scoring.resumption import Keeper

BACKWARD = 3  # layer-forwards that a layer's part of the walk back takes: it once more, and twice as much for gradients


@dataclass(frozen=True)
class Wanted:
    """What a run measures: metrics of each layer, of each block of `window` layers, and the loss and KL of whole sets.

    without: layers that the model is taken to lack already. singles: whether each remaining layer is scored.
    """

    metrics: Sequence[Metric]
    window: int | None = None
    without: SkippedLayers = UNPRUNED
    singles: bool = True
    sets: Sequence[SkippedLayers] = ()


@dataclass
class Position:
    """Where a run is, beside what it has added up: all that it needs to go on.

    turn: how many turns are finished. done: layer-forwards. walks: the batches of the turn that is not finished.
    entering[layer][batch]: what entered each layer, [batch, length, width], as far as it is still needed.
    leaving[batch]: the loss's gradient in what leaves the last layer not yet walked back. going_back: those layers.
    """

    entering: list[list[Tensor]]
    going_back: list[int]
    leaving: list[Tensor] = field(default_factory=list)
    walks: list[WalkState] = field(default_factory=list)
    turn: int = 0
    done: int = 0

    def save(self) -> dict[str, Any]:
        walks = [
            [walk.layer, walk.ids, [([sorted(each) for each in sets], state.hidden) for sets, state in walk.groups]]
            for walk in self.walks
        ]
        return {**vars(self), "walks": walks}

    @classmethod
    def load(cls, saved: dict[str, Any]) -> Position:
        walks = [
            WalkState(ids, [(tuple(map(frozenset, sets)), State(hidden, {})) for sets, hidden in groups], layer)
            for layer, ids, groups in saved["walks"]
        ]
        return cls(**{**saved, "walks": walks})


class Run:
    """A walk that measures. go() walks; the results are read after it."""

    def __init__(
        self, decoder: Decoder, ids: Tensor, wanted: Wanted, *, progress: Progress = silent, stage: str = "scoring"
    ) -> None:
        """ids: token ids [samples, length]."""
        self.decoder, self.ids, self.wanted, self.progress, self.stage = decoder, ids, wanted, progress, stage
        self.batches = batched(ids, decoder.device)
        self.layers, window = len(decoder.layers), wanted.window or 0
        self.staying = [layer for layer in range(self.layers) if layer not in wanted.without]
        starts = range(self.layers - window + 1 if window else 0)
        feeds = {metric.feed for metric in wanted.metrics}
        measures_loss = bool(feeds & {"loss", "kl"})
        self.singles = [wanted.without | {layer} for layer in self.staying if measures_loss and wanted.singles]
        self.blocks = [frozenset(range(start, start + window)) for start in starts if measures_loss]
        reference = [UNPRUNED] if "kl" in feeds else []
        self.sets: list[SkippedLayers] = list(
            dict.fromkeys([wanted.without, *reference, *self.singles, *self.blocks, *wanted.sets])
        )
        self.hidden = HiddenMeans(wanted.metrics, self.layers, len(starts))
        self.outputs = OutputMeans(wanted.metrics, self.sets)
        self.gradients = GradientSums(wanted.metrics, self.layers)
        self.accumulators: Sequence[Means | GradientSums] = (self.hidden, self.outputs, self.gradients)
        self.position = Position([[] for _ in range(self.layers)], list(self.staying))
        self.trail: list[list[list[Group]]] | None = None  # [layer][batch]: the groups that enter each layer
        self.keeper: Keeper | None = None
        self.started, self.seconds_before = time.perf_counter(), 0.0

    @property
    def needs_gradient(self) -> bool:
        return bool(self.gradients.metrics)

    @functools.cached_property
    def total(self) -> int:
        """Layer-forwards of the whole run; a head counts as many as it has parameters for."""
        back = self.needs_gradient * (BACKWARD * len(self.staying) + BACKWARD * self.head)
        return self.forwards(self.layers) + len(self.batches) * (back + self.head * self.outputs.heads)

    def forwards(self, layers: int) -> int:
        """Layer-forwards of the walk through the first so many layers."""
        filling = {layer for layer, form in enumerate(self.decoder.forms()) if form.fills}
        return len(self.batches) * layer_forwards(layers, self.sets, filling=filling)

    @functools.cached_property
    def head(self) -> int:
        """How many layers' worth of arithmetic the head is."""
        head = self.decoder.model.get_submodule(self.decoder.anatomy.head).weight.numel()
        return max(1, round(int(head) / sum(weight.numel() for weight in self.decoder.layers[0].parameters())))

    @functools.cached_property
    def turns(self) -> Sequence[Sequence[Tensor]]:
        """The batches, as many at a time as there is room for their streams."""
        return self.decoder.turns(self.batches, tokens=self.batches[0].numel(), streams=len(self.sets))

    @property
    def seconds(self) -> float:
        """Since the run was made, and what it took before it was killed."""
        return self.seconds_before + time.perf_counter() - self.started

    def go(self) -> Run:
        """Walk, turn by turn, and back; from where a run like this one was killed, if its state was kept."""
        if self.keeper and (state := self.keeper.kept(self.decoder.device)):
            self._restore(state)
        for turn in self.turns[self.position.turn :]:
            self._forward(turn)
        if self.needs_gradient:
            self._back()
        if self.keeper:
            self.keeper.forget()
        return self

    def kept_by(self, checkpoint: Checkpoint) -> Run:
        """The run, its state kept on disk from time to time; not where layers carry on more than hidden states."""
        if self.decoder.bare:
            self.keeper = Keeper.of(
                checkpoint,
                dtype=self.decoder.dtype,
                device=self.decoder.device.type,
                ids=[self.ids.tolist(), [len(batch) for batch in self.batches], len(self.turns[0])],
                metrics=[metric.name for metric in self.wanted.metrics],
                wanted=[self.wanted.window, self.wanted.singles, [sorted(skipped) for skipped in self.sets]],
            )
        return self

    @torch.no_grad()
    def _forward(self, batches: Sequence[Tensor]) -> None:
        at = self.position
        at.walks = walks = at.walks or [self.decoder.enter(ids, self.sets) for ids in batches]
        self._mark()
        layers = range(walks[0].layer, self.layers)
        for layer in self.decoder.through(walks, layers, observe=self._observe, on_forward=self._tick):
            window = self.wanted.window
            if window and not self.needs_gradient and layer + 1 >= window:
                at.entering[layer + 1 - window] = []  # no block that starts there is still open
            self._mark()
            self._keep()
        if not self.needs_gradient:
            at.entering = [[] for _ in range(self.layers)]
        for walk in walks:
            self._head(walk)
        at.walks, at.turn = [], at.turn + 1
        self._keep()

    def _observe(self, layer: int, before: Tensor, after: Tensor) -> None:
        self.hidden.add_layer(layer, before, after)
        entering = self.position.entering
        if self.needs_gradient or self.hidden.blocks:
            entering[layer].append(before)
        first = layer + 1 - (self.wanted.window or 0)
        if self.hidden.blocks and first >= 0:
            self.hidden.add_block(first, entering[first][len(entering[layer]) - 1], after)

    def _head(self, walk: WalkState) -> None:
        """What leaves the last layer, to the head."""
        if self.needs_gradient:
            predicted = self.ids.shape[0] * (self.ids.shape[1] - 1)
            hidden = walk.hidden[self.wanted.without]
            self.position.leaving.append(loss_gradient(self.decoder, walk.ids, hidden, of=predicted))
            self._tick(BACKWARD * self.head)
        self.outputs.add(self.decoder, walk.ids, walk.hidden, lambda streams: self._tick(streams * self.head))

    def _back(self) -> None:
        at = self.position
        back = walk_back(
            self.decoder,
            self.batches,
            at.entering,
            at.leaving,
            layers=at.going_back,
            on_step=lambda: self._tick(BACKWARD),
        )
        for layer, gradients in back:
            self.gradients.add(layer, gradients)
            del gradients  # before those of the next layer are made
            at.entering[layer] = []
            at.going_back = [earlier for earlier in at.going_back if earlier < layer]
            self._keep()

    def _tick(self, forwards: int = 1) -> None:
        """Say how far the run is."""
        self.position.done += forwards
        self.progress(self.stage, self.position.done, self.total)

    def _mark(self) -> None:
        """Note the groups that enter the next layer, where a run without more layers is to begin there."""
        if self.trail is not None:
            self.trail.append([walk.groups for walk in self.position.walks])

    def _keep(self) -> None:
        if self.keeper:
            self.keeper.keep(
                lambda: {
                    "position": self.position.save(),
                    "accumulators": [each.save() for each in self.accumulators],
                    "seconds": self.seconds,
                }
            )

    def _restore(self, state: dict[str, Any]) -> None:
        self.position = Position.load(state["position"])
        for each, saved in zip(self.accumulators, state["accumulators"], strict=True):
            each.load(saved)
        self.seconds_before, self.stage = state["seconds"], f"{self.stage} (continued)"

    def loss(self, skipped: SkippedLayers) -> float:
        """The loss without a set of layers, in nats per predicted token."""
        return float(self.outputs.losses[skipped].value)

    def kl(self, skipped: SkippedLayers) -> float:
        """The KL divergence of the model without a set of layers from the whole one, in nats per predicted token."""
        return float(self.outputs.divergences[skipped].value)

    @property
    def base_loss(self) -> float | None:
        """The loss without any more layers gone, where a metric needed it."""
        return self.loss(self.wanted.without) if self.outputs.metrics else None

    def scores(self) -> Values:
        """The score of each layer by each metric; infinite for a layer that has gone."""
        scores = {
            **self.gradients.of_layers(self.staying),
            **self.hidden.of_layers(self.staying),
            **self.outputs.of_sets(self.singles),
        }
        return {name: self._placed(values) for name, values in scores.items()}

    def windows(self) -> Values:
        """The score of each block by the metrics that score blocks."""
        return self.hidden.of_blocks() | self.outputs.of_sets(self.blocks)

    def _placed(self, values: Sequence[float]) -> list[float]:
        place = dict(zip(self.staying, values, strict=True))
        return [place.get(layer, float("inf")) for layer in range(self.layers)]


def walk_on(run: Run, more: SkippedLayers) -> Run:
    """The run of the model without further layers; it begins where they begin to matter, if `run` kept its trail.

    What enters the first of them, and any layer before, is what it was in `run`, for sets of other names.
    """
    wanted = Wanted(run.wanted.metrics, without=run.wanted.without | more)
    following = Run(run.decoder, run.ids, wanted, progress=run.progress, stage=run.stage)
    if run.trail is None or run.needs_gradient:
        return following
    first = min(more)
    renamed = [[_renamed(groups, more, following) for groups in each] for each in run.trail[: first + 1]]
    following.trail = renamed[:first]
    following.position.walks = [
        WalkState(ids, groups, first) for ids, groups in zip(run.batches, renamed[first], strict=True)
    ]
    for metric, means in run.hidden.layers.items():
        following.hidden.layers[metric][:first] = means[:first]
    following.position.done = following.forwards(first)
    return following


def _renamed(groups: Sequence[Group], more: SkippedLayers, run: Run) -> list[Group]:
    """The groups as those of the sets with `more` layers, as far as the run has them; its first set comes first."""
    observed, renamed = run.sets[0], []
    for sets, state in groups:
        with_more = {each if run.outputs.compares and each == UNPRUNED else each | more: None for each in sets}
        kept = sorted((each for each in with_more if each in run.outputs.losses), key=lambda each: each != observed)
        renamed += [(tuple(kept), state)] if kept else []
    return sorted(renamed, key=lambda group: group[0][0] != observed)
