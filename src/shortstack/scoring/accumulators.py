"""Accumulators of what a walk feeds to metrics: hidden states, losses, or gradients of weights.

An accumulator is fed as the walk goes on, and gives its metrics' scores when it is done.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from shortstack.decoder import Decoder
from shortstack.decoder.decoder import UNPRUNED, SkippedLayers, WalkState
from shortstack.decoder.losses import divergences, next_token_losses
from shortstack.machine.numbers import in_float64
from shortstack.scoring.gradients import WeightGradient
from shortstack.scoring.metrics import Metric

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
    """Metrics of the hidden states around a layer, and around a block of layers by those that can."""

    def __init__(self, metrics: Sequence[Metric], layers: int, window: int | None = None) -> None:
        """Begin means of each layer and block. window: the number of layers in each block that is scored."""
        metrics = [metric for metric in metrics if metric.feed == "hidden"]
        self.layers = {metric: [Mean() for _ in range(layers)] for metric in metrics}
        of_blocks = [metric for metric in metrics if metric.windows and window]
        self.blocks = {metric: [Mean() for _ in range(layers - (window or 1) + 1)] for metric in of_blocks}

    def add_layer(self, layer: int, before: Tensor, after: Tensor, counted: Tensor | None = None) -> None:
        """Add a layer: hidden states [batch, length, width] before and after. counted: [batch, length], None for all."""
        _add(self.layers, layer, (before, after), counted)

    def add_block(self, first: int, before: Tensor, after: Tensor, counted: Tensor | None = None) -> None:
        """Add a block's hidden states. first: the block's first layer; the others: as add_layer."""
        _add(self.blocks, first, (before, after), counted)

    def of_layers(self, staying: Sequence[int]) -> Values:
        """Return the scores of these layers; infinite for the last where a metric does not score it."""
        scores: Values = {}
        for metric, means in self.layers.items():
            values = [metric.finish(means[layer].value) for layer in staying]
            scores[metric.name] = values if metric.last_scored else [*values[:-1], float("inf")]
        return scores

    def of_blocks(self) -> Values:
        """Return the scores of the blocks, by their first layer."""
        return {metric.name: [metric.finish(mean.value) for mean in means] for metric, means in self.blocks.items()}


def _add(
    means: Mapping[Metric, Sequence[Mean]], place: int, around: tuple[Tensor, Tensor], counted: Tensor | None
) -> None:
    for metric, metric_means in means.items():
        values = metric.function(*around)  # [batch, length, ...]
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

    def add(
        self,
        decoder: Decoder,
        walk: WalkState,
        on_head: Callable[[int], None],
        counted: Tensor | None = None,
    ) -> None:
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

    def of_sets(self, sets: Sequence[SkippedLayers]) -> Values:
        """Return the scores without each of these sets."""
        return {
            metric.name: [metric.finish(metric.function(self.value(metric, skipped))) for skipped in sets]
            for metric in self.metrics
            if sets
        }

    def value(self, metric: Metric, skipped: SkippedLayers) -> float:
        """Return the mean that a metric is fed with: the loss without the set, or its KL divergence, per token."""
        return float((self.losses if metric.feed == "loss" else self.kls)[skipped].value)


class GradientSums:
    """Metrics of a layer's weights and of the loss's gradients in them."""

    def __init__(self, metrics: Sequence[Metric], layers: int) -> None:
        self.metrics = [metric for metric in metrics if metric.feed == "gradient"]
        self.scores = {metric.name: [0.0] * layers for metric in self.metrics}

    def add(self, layer: int, gradients: Sequence[WeightGradient]) -> None:
        for metric in self.metrics:
            seen = [parameter for parameter in gradients if metric.sees(parameter.name, parameter.weight.dim())]
            self.scores[metric.name][layer] = metric.finish(
                sum(metric.function(parameter.weight, parameter.gradient) for parameter in seen)
            )

    def of_layers(self, staying: Sequence[int]) -> Values:
        return {name: [values[layer] for layer in staying] for name, values in self.scores.items()}
