"""score(): one walk feeds every metric asked for, on the same tokens."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from shortstack.checkpoint import Checkpoint
from shortstack.errors import InputError, ShortstackError
from shortstack.metrics import Metric, Scores, metrics_named
from shortstack.progress import Progress, silent
from shortstack.tokens import Tokens
from shortstack.walk import UNPRUNED, Decoder, Route, arithmetic, layer_forwards, pick_device

BATCH_TOKENS = 2048


def score(
    checkpoint: Checkpoint,
    tokens: Tokens | None = None,
    *,
    metrics: Sequence[str] | str = ("ppl",),
    dtype: str = "auto",
    device: str = "auto",
    seed: int = 0,
    progress: Progress = silent,
) -> Scores:
    """Score every layer by every metric; low = remove first.

    tokens: needed by metrics that look at activations or loss. dtype: "auto" is float32.

    Raises:
        InputError: an unknown metric, or one that needs tokens without any.
        ShortstackError: a score is not a number.
    """
    started = time.perf_counter()
    if isinstance(metrics, str):
        metrics = [name.strip() for name in metrics.split(",")]
    if not metrics:
        raise InputError("--metric", expected="at least one metric", found="none", fix="name one, or all")
    chosen = metrics_named(metrics)
    layers = checkpoint.anatomy.layers
    found: dict[str, Sequence[float]] = {
        metric.name: metric.function(layers, seed) for metric in chosen if metric.feed == "layers"
    }
    walked = [metric for metric in chosen if metric.feed != "layers"]
    base_loss: float | None = None
    if walked:
        measured, base_loss = _walked(
            checkpoint, tokens, walked, "float32" if dtype == "auto" else dtype, pick_device(device), progress
        )
        found |= measured
    return Scores(
        layers=layers,
        scores={metric.name: _checked(metric.name, found[metric.name]) for metric in chosen},
        tokens=tokens.record() if tokens and walked else None,
        model=model_record(checkpoint),
        base_loss=base_loss,
        seconds=round(time.perf_counter() - started, 3),
        peak_rss_bytes=peak_rss(),
    )


@torch.no_grad()
def _walked(
    checkpoint: Checkpoint,
    tokens: Tokens | None,
    metrics: Sequence[Metric],
    dtype: str,
    device: str,
    progress: Progress,
) -> tuple[dict[str, list[float]], float | None]:
    if tokens is None:
        raise InputError(
            "--text", expected=f"calibration text for {metrics[0].name}", found="none", fix="add --text pydoc or a file"
        )
    decoder = Decoder.load(checkpoint, dtype=arithmetic(dtype, checkpoint, device), device=device)
    layers = checkpoint.anatomy.layers
    needs_loss = any(metric.feed == "loss" for metric in metrics)
    routes: list[Route] = [UNPRUNED, *(frozenset({layer}) for layer in range(layers) if needs_loss)]
    hidden = {metric: [_Mean() for _ in range(layers)] for metric in metrics if metric.feed == "hidden"}
    losses = {route: _Mean() for route in routes}

    def observe(layer: int, before: Tensor, after: Tensor) -> None:
        for metric, means in hidden.items():
            means[layer].add(metric.function(before, after))

    batches = tokens.ids.to(device).split(max(1, BATCH_TOKENS // tokens.ids.shape[1]))
    tick = _ticker(progress, checkpoint, routes, len(batches), needs_loss)
    for ids in batches:
        arrived = decoder.walk(ids, routes, observe=observe, on_forward=tick)
        for route, states in arrived.items() if needs_loss else ():
            losses[route].add(decoder.losses(ids, states))
            tick(head=True)
    scores = {metric.name: [mean.value for mean in means] for metric, means in hidden.items()}
    scores |= {
        metric.name: [metric.function(losses[frozenset({layer})].value) for layer in range(layers)]
        for metric in metrics
        if metric.feed == "loss"
    }
    return scores, losses[UNPRUNED].value if needs_loss else None


class _Mean:
    """A mean over all tokens of all batches, accumulated in fp64 so that the batching does not show."""

    def __init__(self) -> None:
        self.total, self.count = 0.0, 0

    def add(self, values: Tensor) -> None:
        self.total += float(values.double().sum())
        self.count += values.numel()

    @property
    def value(self) -> float:
        return self.total / self.count


def _ticker(
    progress: Progress, checkpoint: Checkpoint, routes: Sequence[Route], batches: int, heads: bool
) -> Callable[..., None]:
    """Counts layer-forwards; a head counts as many layers as it has parameters for."""
    sizes, anatomy = checkpoint.sizes, checkpoint.anatomy
    head_parameters = checkpoint.blueprint.get_submodule(anatomy.head).weight.numel()
    weight = max(1, round(head_parameters / max(1, max(sizes.layer_parameters)))) if heads else 0
    total = batches * (layer_forwards(anatomy.layers, routes) + weight * len(routes))
    done = 0

    def tick(*, head: bool = False) -> None:
        nonlocal done
        done += weight if head else 1
        progress("scoring", done, total)

    return tick


def _checked(name: str, values: Sequence[float]) -> tuple[float, ...]:
    for layer, value in enumerate(values):
        if value != value:
            raise ShortstackError(
                f"metric {name}, layer {layer}",
                expected="a number",
                found="NaN",
                fix="check the weights for NaN, or compute with --dtype float32",
            )
    return tuple(values)


def model_record(checkpoint: Checkpoint) -> dict[str, Any]:
    """What a result says about the model it is of; the sizes let `plan` speak of parameters and bytes."""
    sizes = checkpoint.sizes
    return {
        "source": checkpoint.source,
        "revision": checkpoint.revision,
        "model_type": checkpoint.anatomy.model_type,
        "layer_parameters": list(sizes.layer_parameters),
        "layer_bytes": list(sizes.layer_bytes),
        "other_parameters": sizes.other_parameters,
        "other_bytes": sizes.other_bytes,
    }


def peak_rss() -> int:
    """The most memory this process has held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
