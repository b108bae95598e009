"""One walk over all layers, and one back where a metric wants gradients; accumulators add up what metrics are fed with."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from shortstack.data import Tokens
from shortstack.decoder import Decoder
from shortstack.decoder.batching import Batches
from shortstack.decoder.decoder import UNPRUNED, SkippedLayers, WalkState, layer_forwards
from shortstack.machine.progress import Progress, paced, silent
from shortstack.scoring.accumulators import GradientSums, HiddenMeans, OutputMeans, Values
from shortstack.scoring.gradients import check_differentiable, loss_gradient, walk_back
from shortstack.scoring.metrics import Metric

BACKWARD = 3  # layer-forwards that a layer's part of the walk back takes: it once more, and twice as much for gradients


@dataclass(frozen=True)
class MeasurementSpec:
    """The quantities to measure: metrics of each layer, of each block of `window` layers, and the loss and KL of whole
    sets.

    without: layers that the model is taken to lack already. singles: whether each remaining layer is scored.
    """

    metrics: Sequence[Metric]
    window: int | None = None
    without: SkippedLayers = UNPRUNED
    singles: bool = True
    sets: Sequence[SkippedLayers] = ()


class Measurement:
    """A walk that measures. go() walks; the results are read after it."""

    def __init__(
        self,
        decoder: Decoder,
        tokens: Tokens,
        spec: MeasurementSpec,
        *,
        progress: Progress = silent,
        stage: str = "scoring",
    ) -> None:
        self.decoder, self.spec, self.stage = decoder, spec, stage
        self.progress = paced(progress, tokens.ids.numel())
        self.batches = Batches.of(tokens, decoder.device)
        self.layers = len(decoder.layers)
        self.staying = [layer for layer in range(self.layers) if layer not in spec.without]
        feeds = {metric.feed for metric in spec.metrics}
        if "gradient" in feeds:
            check_differentiable(decoder)
        measures_loss = bool(feeds & {"loss", "kl"})
        self.singles = [spec.without | {layer} for layer in self.staying if measures_loss and spec.singles]
        size = spec.window if measures_loss and spec.window else self.layers + 1
        self.blocks = [frozenset(range(start, start + size)) for start in range(self.layers - size + 1)]
        reference = [UNPRUNED] if "kl" in feeds else []
        every = [spec.without, *reference, *self.singles, *self.blocks, *spec.sets]
        self.sets: list[SkippedLayers] = list(dict.fromkeys(every))
        self.hidden = [HiddenMeans(spec.metrics, self.layers, spec.window) for _ in self.batches.kinds]
        self.outputs = [OutputMeans(spec.metrics, self.sets) for _ in self.batches.kinds]
        self.gradients = GradientSums(spec.metrics, self.layers)
        # [layer][batch]: what entered each layer, [batch, length, width], as far as it is still needed
        self.entering: list[list[Tensor]] = [[] for _ in range(self.layers)]
        # [batch]: the loss's gradient in what leaves the last layer that is not yet walked back
        self.leaving: list[Tensor] = []
        self.done = 0  # layer-forwards

    @property
    def needs_gradient(self) -> bool:
        return bool(self.gradients.metrics)

    @functools.cached_property
    def total(self) -> int:
        """Layer-forwards of the whole run; a head counts as many as it has parameters for."""
        filling = {layer for layer, form in enumerate(self.decoder.forms()) if form.fills}
        forwards = layer_forwards(self.layers, self.sets, filling=filling)
        back = self.needs_gradient * (BACKWARD * len(self.staying) + BACKWARD * self.head)
        return len(self.batches) * (forwards + back + self.head * self.outputs[0].heads)

    @functools.cached_property
    def head(self) -> int:
        """How many layers' worth of arithmetic the head is."""
        head = self.decoder.model.get_submodule(self.decoder.anatomy.head).weight.numel()
        return max(1, round(int(head) / sum(weight.numel() for weight in self.decoder.layers[0].parameters())))

    @functools.cached_property
    def memory_batches(self) -> Sequence[Sequence[int]]:
        """The batches by their numbers, as many at a time as there is room for their streams."""
        return self.decoder.memory_batches(
            range(len(self.batches)), tokens=self.batches.largest, streams=len(self.sets)
        )

    def go(self) -> Measurement:
        """Walk, turn by turn, and back."""
        for turn in self.memory_batches:
            self._forward(turn)
        if self.needs_gradient:
            self._back()
        return self

    @torch.no_grad()
    def _forward(self, numbers: Sequence[int]) -> None:
        walks = [replace(self.decoder.enter(self.batches.ids[number], self.sets), number=number) for number in numbers]
        layers = range(self.layers)
        for layer in self.decoder.through(walks, layers, observe=self._observe, on_forward=self._tick):
            closed = layer + 1 - (self.spec.window or self.layers + 1)
            if not self.needs_gradient and closed >= 0:
                self.entering[closed] = []  # no block that starts there is still open
        if not self.needs_gradient:
            self.entering = [[] for _ in range(self.layers)]
        for walk in walks:
            self._head(walk)

    def _observe(self, walk: WalkState, layer: int, before: Tensor, after: Tensor) -> None:
        hidden, counted = self.hidden[self.batches.kind_of[walk.number]], self._predicting(walk.number)
        hidden.add_layer(layer, before, after, counted)
        if self.needs_gradient or hidden.blocks:
            self.entering[layer].append(before)
            first = layer + 1 - (self.spec.window or 1)
            if hidden.blocks and first >= 0:
                hidden.add_block(first, self.entering[first][len(self.entering[layer]) - 1], after, counted)

    def _predicting(self, number: int) -> Tensor | None:
        """Return which positions of a batch predict a token that counts, [batch, length]; None: all are looked at."""
        counted = self.batches.counted[number]
        return None if counted is None else torch.nn.functional.pad(counted[:, 1:], (0, 1))

    def _head(self, walk: WalkState) -> None:
        kind, counted = self.batches.kind_of[walk.number], self.batches.counted[walk.number]
        if self.needs_gradient:
            hidden = walk.hidden[self.spec.without]
            self.leaving.append(
                loss_gradient(self.decoder, walk.ids, hidden, of=self._predicted(kind), counted=counted)
            )
            self._tick(BACKWARD * self.head)
        self.outputs[kind].add(self.decoder, walk, lambda streams: self._tick(streams * self.head), counted)

    def _predicted(self, kind: int) -> float:
        """Return the divisor of a kind's summed loss, so that all kinds together give the mean by their weights."""
        kinds = self.batches.kinds
        return self.batches.predicted(kind) * sum(text.weight for text in kinds) / kinds[kind].weight

    def _back(self) -> None:
        batches, tick = self.batches.ids, lambda: self._tick(BACKWARD)
        back = walk_back(self.decoder, batches, self.entering, self.leaving, layers=self.staying, on_step=tick)
        for layer, gradients in back:
            self.gradients.add(layer, gradients)
            del gradients  # before those of the next layer are made
            self.entering[layer] = []

    def _tick(self, forwards: int = 1) -> None:
        self.done += forwards
        self.progress(self.stage, self.done, self.total)

    def loss(self, skipped: SkippedLayers) -> float:
        """Return the loss without a set of layers, in nats per predicted token: the mean over kinds by their weights."""
        return self.batches.mean([outputs.losses[skipped].value for outputs in self.outputs])

    def distance(self, skipped: SkippedLayers) -> float:
        """Return the KL divergence of the model without a set of layers from the whole one, in nats per predicted token."""
        return self.batches.mean([outputs.kls[skipped].value for outputs in self.outputs])

    @property
    def base_loss(self) -> float | None:
        """The loss without any more layers gone, where a metric needed it."""
        return self.loss(self.spec.without) if self.outputs[0].metrics else None

    def scores(self) -> Values:
        """Return the score of each layer by each metric; infinite for a layer that has gone."""
        scores = {
            **self.gradients.of_layers(self.staying),
            **self._combined([hidden.of_layers(self.staying) for hidden in self.hidden]),
            **self._outputs(self.singles),
        }
        return {name: self._placed(values) for name, values in scores.items()}

    def block_scores(self) -> Values:
        """Return the score of each block, by its first layer, by the metrics that score blocks."""
        return self._combined([hidden.of_blocks() for hidden in self.hidden]) | self._outputs(self.blocks)

    def _combined(self, kinds: Sequence[Values]) -> Values:
        return {
            name: [self.batches.mean(values) for values in zip(*(kind[name] for kind in kinds), strict=True)]
            for name in kinds[0]
        }

    def _outputs(self, sets: Sequence[SkippedLayers]) -> Values:
        """Score by loss and divergence. Of several kinds each loss counts by what it is above the unpruned model's."""
        if len(self.batches.kinds) == 1:
            return self.outputs[0].of_sets(sets)
        base = self.base_loss or 0.0
        return {
            metric.name: [
                metric.finish(metric.function(self.loss(cut) - base if metric.feed == "loss" else self.distance(cut)))
                for cut in sets
            ]
            for metric in self.outputs[0].metrics
            if sets
        }

    def _placed(self, values: Sequence[float]) -> list[float]:
        place = dict(zip(self.staying, values, strict=True))
        return [place.get(layer, float("inf")) for layer in range(self.layers)]
