"""One walk over all layers, and one back where a metric wants gradients, which adds up what metrics are fed with.

The walk back has the gradients of one layer at a time: what entered each layer was kept, and it is computed again from that.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from shortstack.data import Tokens
from shortstack.decoder import Decoder
from shortstack.decoder.batching import Batches
from shortstack.decoder.decoder import UNPRUNED, SkippedLayers, WalkState, layer_forwards
from shortstack.decoder.layer_io import State
from shortstack.decoder.losses import (
    CrossEntropy,
    check_states,
    chunked_loss,
    divergences,
    next_token_losses,
    predicting,
)
from shortstack.errors import ArchitectureError
from shortstack.machine.numbers import in_float64
from shortstack.machine.progress import Progress, paced, silent
from shortstack.scoring.metrics import Metric

BACKWARD = 3  # layer-forwards that a layer's part of the walk back takes: it once more, and twice as much for gradients
Values = dict[str, Sequence[float]]  # by the metric's name, a number for each layer or block


class Mean:
    """A mean over tokens of numbers, or of vectors, added up in fp64 so that the batching does not show."""

    def __init__(self) -> None:
        self.total: Tensor = torch.zeros((), dtype=torch.float64)
        self.count = 0

    def add(self, values: Tensor) -> None:
        """Add values of tokens, [tokens, ...]."""
        self.total = self.total + in_float64(values).sum(0).cpu()
        self.count += len(values)

    @property
    def value(self) -> Any:
        return (self.total / self.count).tolist()


class HiddenMeans:
    """Metrics of the hidden states around a layer, and around a block of `window` layers by those that can."""

    def __init__(self, metrics: Sequence[Metric], layers: int, window: int | None) -> None:
        metrics = [metric for metric in metrics if metric.feed == "hidden"]
        self.layers = {metric: [Mean() for _ in range(layers)] for metric in metrics}
        of_blocks = [metric for metric in metrics if metric.windows and window]
        self.blocks = {metric: [Mean() for _ in range(layers - (window or 1) + 1)] for metric in of_blocks}

    def of_layers(self, staying: Sequence[int]) -> Values:
        """Return the scores of these layers."""
        scores: Values = {}
        for metric, means in self.layers.items():
            scores[metric.name] = [metric.finish(means[layer].value) for layer in staying]
        return scores

    def of_blocks(self) -> Values:
        return {metric.name: [metric.finish(mean.value) for mean in means] for metric, means in self.blocks.items()}


def _add(
    means: Mapping[Metric, Sequence[Mean]], place: int, around: tuple[Tensor, Tensor], counted: Tensor | None
) -> None:
    """Add the hidden states before and after a layer or block, [batch, length, width]; counted: [batch, length]."""
    for metric, metric_means in means.items():
        values = metric.function(*(states.flatten(2) for states in around))  # [batch, length, ...]
        if metric.last_token:
            metric_means[place].add(values[:, -1])
        else:
            metric_means[place].add(values.flatten(0, 1) if counted is None else values[counted])


class OutputMeans:
    """The loss without each set of layers and, where a metric needs it, its KL divergence from the whole model."""

    def __init__(self, metrics: Sequence[Metric], sets: Sequence[SkippedLayers]) -> None:
        self.metrics = [metric for metric in metrics if metric.feed in {"loss", "kl"}]
        self.losses = {skipped: Mean() for skipped in sets}
        self.compares = any(metric.feed == "kl" for metric in self.metrics)
        self.kls = {skipped: Mean() for skipped in sets} if self.compares else {}

    @property
    def heads(self) -> int:
        """How many streams of a batch pass the head."""
        return len(self.losses) + self.compares if self.metrics else 0

    def add(self, decoder: Decoder, walk: WalkState, on_head: Callable[[int], None], counted: Tensor | None) -> None:
        """Add a batch behind the last layer; on_head: so many streams passed the head; counted: as in predicting()."""
        ids, hidden = walk.ids, walk.hidden
        if self.compares:
            others = [hidden[skipped] for skipped in self.losses]
            for chunk in divergences(decoder, ids, hidden[UNPRUNED], others, counted):
                for means, values in zip((self.losses, self.kls), chunk, strict=True):
                    for mean, value in zip(means.values(), values, strict=True):
                        mean.add(value)
            on_head(self.heads)
        elif self.metrics:
            for skipped, mean in self.losses.items():
                mean.add(next_token_losses(decoder, ids, hidden[skipped], counted))
                on_head(1)


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
        self.gradients = {metric: [math.inf] * self.layers for metric in spec.metrics if metric.feed == "gradient"}
        if self.gradients:
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
        # [layer][batch]: what entered each layer, [batch, length, width], as far as it is still needed
        self.entering: list[list[Tensor]] = [[] for _ in range(self.layers)]
        # [batch]: the loss's gradient in what leaves the last layer that is not yet walked back
        self.leaving: list[Tensor] = []
        self.done = 0  # layer-forwards

    @functools.cached_property
    def total(self) -> int:
        """Layer-forwards of the whole run; a head counts as many as it has parameters for."""
        filling = {layer for layer, form in enumerate(self.decoder.forms()) if form.fills}
        forwards = layer_forwards(self.layers, self.sets, filling=filling)
        back = BACKWARD * (len(self.staying) + self.head) if self.gradients else 0
        return len(self.batches) * (forwards + back + self.head * self.outputs[0].heads)

    @functools.cached_property
    def head(self) -> int:
        """How many layers' worth of arithmetic the head is."""
        head = self.decoder.model.get_submodule(self.decoder.anatomy.head).weight.numel()
        return max(1, round(int(head) / sum(weight.numel() for weight in self.decoder.layers[0].parameters())))

    def go(self) -> Measurement:
        """Walk, turn by turn, and back."""
        batches, tokens = range(len(self.batches)), self.batches.largest
        for turn in self.decoder.memory_batches(batches, tokens=tokens, streams=len(self.sets)):
            self._forward(turn)
        if self.gradients:
            self._back()
        return self

    @torch.no_grad()
    def _forward(self, numbers: Sequence[int]) -> None:
        walks = [replace(self.decoder.enter(self.batches.ids[number], self.sets), number=number) for number in numbers]
        layers = range(self.layers)
        for layer in self.decoder.through(walks, layers, observe=self._observe, on_forward=self._tick):
            closed = layer + 1 - (self.spec.window or self.layers + 1)
            if not self.gradients and closed >= 0:
                self.entering[closed] = []  # no block that starts there is still open
        if not self.gradients:
            self.entering = [[] for _ in range(self.layers)]
        for walk in walks:
            self._head(walk)

    def _observe(self, walk: WalkState, layer: int, before: Tensor, after: Tensor) -> None:
        check_states(before, *walk.ids.shape)
        hidden, counted = self.hidden[self.batches.kind_of[walk.number]], self._predicting(walk.number)
        _add(hidden.layers, layer, (before, after), counted)
        if self.gradients or hidden.blocks:
            self.entering[layer].append(before)
            first = layer + 1 - (self.spec.window or 1)
            if hidden.blocks and first >= 0:
                entered = self.entering[first][len(self.entering[layer]) - 1]
                _add(hidden.blocks, first, (entered, after), counted)

    def _predicting(self, number: int) -> Tensor | None:
        """Return which positions of a batch predict a token that counts, [batch, length]; None: all are looked at."""
        counted = self.batches.counted[number]
        return None if counted is None else torch.nn.functional.pad(counted[:, 1:], (0, 1))

    def _head(self, walk: WalkState) -> None:
        kind, counted = self.batches.kind_of[walk.number], self.batches.counted[walk.number]
        if self.gradients:
            hidden = walk.hidden[self.spec.without]
            self.leaving.append(loss_gradient(self.decoder, walk.ids, hidden, counted=counted))
            self._tick(BACKWARD * self.head)
        self.outputs[kind].add(self.decoder, walk, lambda streams: self._tick(streams * self.head), counted)

    def _predicted(self, kind: int) -> float:
        """Return the divisor of a kind's summed loss, so that all kinds together give the mean by their weights."""
        kinds = self.batches.kinds
        return self.batches.predicted(kind) * sum(text.weight for text in kinds) / kinds[kind].weight

    def _back(self) -> None:
        for layer in reversed(self.staying):
            with self.decoder.resident(layer):
                gradients = self._gradients(layer)
                for metric, scores in self.gradients.items():
                    scores[layer] = metric.finish(
                        sum(
                            metric.function(weight, gradient)
                            for name, weight, gradient in gradients
                            if metric.sees(name, weight.dim())
                        )
                    )
                del gradients  # before those of the next layer are made
            self.entering[layer] = []

    def _gradients(self, layer: int) -> list[tuple[str, Tensor, Tensor]]:
        """Return each weight of a layer by its name, and the loss's gradient in it, fp32, summed over all batches."""
        weights = dict(self.decoder.layers[layer].named_parameters())
        sums = {name: torch.zeros_like(weight, dtype=torch.float32) for name, weight in weights.items()}
        for number, ids in enumerate(self.batches.ids):
            entering, leaving = self.entering[layer][number], self.leaving[number]
            gradients, self.leaving[number] = layer_gradients(
                self.decoder, layer, ids, entering, leaving, list(weights.values())
            )
            for total, gradient in zip(sums.values(), gradients, strict=True):
                if gradient is not None:  # an expert that no token was sent to
                    total += gradient.float() / self._predicted(self.batches.kind_of[number])
            self._tick(BACKWARD)
        return [(name, weight.detach(), sums[name]) for name, weight in weights.items()]

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
        by_gradient: Values = {metric.name: values for metric, values in self.gradients.items()}
        others = self._combined([hidden.of_layers(self.staying) for hidden in self.hidden])
        others |= self._outputs(self.singles)
        return by_gradient | {name: self._placed(values) for name, values in others.items()}

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
        base = (self.base_loss or 0.0) if len(self.batches.kinds) > 1 else 0.0
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
        return [place.get(layer, math.inf) for layer in range(self.layers)]


def loss_gradient(decoder: Decoder, ids: Tensor, hidden: Tensor, *, counted: Tensor | None) -> Tensor:
    """Compute the gradient, in what leaves the last layer, of this batch's summed loss; a mean's would underflow in float16.

    ids: [batch, length]; hidden: [batch, length, width] -> [batch, length, width]. counted: as in predicting().
    """
    with torch.enable_grad():
        hidden = hidden.detach().requires_grad_(True)
        states, targets = predicting(ids, hidden, counted)
        loss = chunked_loss(decoder, states, CrossEntropy(targets))
    return torch.autograd.grad(loss, hidden)[0]


def check_differentiable(decoder: Decoder) -> None:
    """Refuse a model for which a walk back would miss a part of a gradient."""
    decoder.check_in_one_place("for their gradients")
    fix = "choose a metric without gradients, such as ppl or bi"
    for number, layer in enumerate(decoder.layers):
        matrices = [weight for weight in layer.parameters() if weight.dim() > 1]
        if not all(weight.is_floating_point() for weight in matrices) or not matrices:
            message = f"layer {number} has quantised weights, which have no gradients; {fix}"
            raise ArchitectureError(message, option="metric")
    decoder.check_bare(fix)


def layer_gradients(
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
