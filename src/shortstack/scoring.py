"""score(): one walk feeds every metric asked for, on the same tokens."""

from __future__ import annotations

import functools
import resource
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor

from shortstack.checkpoint import Checkpoint
from shortstack.errors import CheckpointError, InputError, ShortstackError
from shortstack.gradients import WeightGradient, loss_gradient, walk_back
from shortstack.loading import read_weight
from shortstack.losses import divergences, next_token_losses
from shortstack.metrics import Metric, metrics_named
from shortstack.progress import Progress, silent
from shortstack.scores import Scores
from shortstack.streaming import must_stream
from shortstack.tokens import Tokens
from shortstack.walk import UNPRUNED, Decoder, Front, Route, arithmetic, layer_forwards, pick_device

BATCH_TOKENS = 2048
STREAM_BYTES = 2 << 30  # hidden streams held at once; more tokens are walked in turns
BACKWARD = 3  # layer-forwards that a layer's part of the walk back takes: it once more, and twice as much for gradients


def score(
    checkpoint: Checkpoint,
    tokens: Tokens | None = None,
    *,
    metrics: Sequence[str] | str = ("ppl",),
    window: int | None = None,
    dtype: str = "auto",
    device: str = "auto",
    stream: bool | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> Scores:
    """Score every layer by every metric; low = remove first.

    tokens: needed by metrics that look at activations or loss. window: also score the removal of every block of so many
    layers, by the metrics that can. dtype: "auto" is bf16 where checkpoint and device both have it, else float32; sums are
    in float64. stream: read weights layer by layer; None where the model does not fit in memory.

    Raises:
        InputError: an unknown metric, one that needs tokens without any, or a window no metric can score.
        ShortstackError: a score is not a number.
    """
    started = time.perf_counter()
    chosen = metrics_named(name.strip() for name in (metrics.split(",") if isinstance(metrics, str) else metrics))
    if not chosen:
        raise InputError("--metric", expected="at least one metric", found="none", fix="name one, or all")
    layers = checkpoint.anatomy.layers
    _check_window(window, layers, chosen)
    found: dict[str, Sequence[float]] = {
        metric.name: metric.function(layers, seed) for metric in chosen if metric.feed == "layers"
    }
    found |= _weighed(checkpoint, [metric for metric in chosen if metric.feed == "weights"], progress)
    walked = [metric for metric in chosen if metric.feed not in ("layers", "weights")]
    run = None
    if walked:
        if tokens is None:
            raise InputError(
                "--text",
                expected=f"calibration text for {walked[0].name}",
                found="none",
                fix="add --text pydoc or a file",
            )
        device = pick_device(device)
        computed_in = arithmetic(dtype, checkpoint, device)
        stream = must_stream(checkpoint, computed_in, device) if stream is None else stream
        decoder = Decoder.load(checkpoint, dtype=computed_in, device=device, stream=stream)
        run = _Run(decoder, tokens, walked, window, progress)
        run.go()
        found |= run.scores()
    return Scores(
        layers=layers,
        scores={metric.name: _checked(metric.name, found[metric.name]) for metric in chosen},
        window=window,
        window_scores={name: _checked(f"{name} of blocks", values) for name, values in run.windows().items()}
        if run
        else {},
        tokens=tokens.record() if tokens and walked else None,
        model=model_record(checkpoint),
        dtype=str(computed_in).removeprefix("torch.") if run else None,
        base_loss=run.losses[UNPRUNED].value if run and run.needs_loss else None,
        seconds=round(time.perf_counter() - started, 3),
        peak_rss_bytes=peak_rss(),
    )


def _check_window(window: int | None, layers: int, metrics: Sequence[Metric]) -> None:
    if window is None:
        return
    if not 0 < window < layers:
        raise InputError(
            "--window",
            expected=f"1 to {layers - 1} of the model's {layers} layers",
            found=str(window),
            fix="name the size of the block you would remove",
        )
    if not any(metric.windows for metric in metrics):
        raise InputError(
            "--window",
            expected="a metric that scores blocks: ppl, kl, angular or angular-mean",
            found=", ".join(metric.name for metric in metrics),
            fix="add one of these, or leave --window out",
        )


@torch.no_grad()
def _weighed(checkpoint: Checkpoint, metrics: Sequence[Metric], progress: Progress) -> dict[str, Sequence[float]]:
    """Scores that need the stored weights alone, which are read once, tensor by tensor."""
    layers = checkpoint.anatomy.layers
    sums = {metric.name: [0.0] * layers for metric in metrics}
    for done, (name, tensor) in enumerate(checkpoint.tensors.items() if metrics else (), start=1):
        layer = checkpoint.layer_of(name)
        wanted = [metric for metric in metrics if _sees(metric, name, len(tensor.shape))]
        if layer is None or layer >= layers or not wanted:
            continue
        weight = read_weight(tensor)
        if not weight.is_floating_point():
            raise CheckpointError(
                checkpoint.directory,
                expected=f"{name} in floating point, to weigh it",
                found=tensor.dtype,
                fix="choose another metric, or start from the unquantised model",
            )
        for metric in wanted:
            sums[metric.name][layer] += metric.function(weight.float())
        progress("weighing", done, len(checkpoint.tensors))
    return {metric.name: [metric.finish(value) for value in sums[metric.name]] for metric in metrics}


def _sees(metric: Metric, name: str, dimensions: int) -> bool:
    """Whether a metric counts a weight: the matrices, or all tensors named so (the authors' rule)."""
    return "weight" in name if metric.all_weights else dimensions > 1


class _Run:
    """One walk over all layers, and one back where a metric wants gradients: what each metric is handed adds up here."""

    def __init__(
        self, decoder: Decoder, tokens: Tokens, metrics: Sequence[Metric], window: int | None, progress: Progress
    ) -> None:
        self.decoder, self.metrics, self.window, self.progress = decoder, metrics, window, progress
        self.layers, self.places = len(decoder.layers), range(len(decoder.layers) - (window or 0) + 1 if window else 0)
        ids = tokens.ids.to(decoder.device)
        self.batches = ids.split(max(1, BATCH_TOKENS // ids.shape[1]))
        self.predicted = ids.shape[0] * (ids.shape[1] - 1)
        feeds = {metric.feed for metric in metrics}
        self.needs_kl, self.needs_gradient = "kl" in feeds, "gradient" in feeds
        self.needs_loss = bool(feeds & {"loss", "kl"})
        self.singles = [frozenset({layer}) for layer in range(self.layers) if self.needs_loss]
        self.blocks = [frozenset(range(place, place + (window or 0))) for place in self.places if self.needs_loss]
        self.routes: list[Route] = list(dict.fromkeys([UNPRUNED, *self.singles, *self.blocks]))
        self.losses = {route: _Mean() for route in self.routes}
        self.divergences = {route: _Mean() for route in self.routes}
        hidden = [metric for metric in metrics if metric.feed == "hidden"]
        self.hidden = {metric: [_Mean() for _ in range(self.layers)] for metric in hidden}
        self.spans = {metric: [_Mean() for _ in self.places] for metric in hidden if metric.windows and window}
        self.entering: list[list[Tensor]] = [[] for _ in range(self.layers)]  # [layer][batch]
        self.leaving: list[Tensor] = []
        self.weights = {metric.name: [0.0] * self.layers for metric in metrics if metric.feed == "gradient"}

        self.done, self.total = 0, len(self.batches) * self._batch_cost()

    def _batch_cost(self) -> int:
        """Layer-forwards that a batch takes; a head counts as many as it has parameters for."""
        filling = {layer for layer, form in enumerate(self.decoder.forms()) if form.fills}
        forwards = layer_forwards(self.layers, self.routes, filling=filling)
        back = self.needs_gradient * (BACKWARD * self.layers + BACKWARD * self.head)
        return forwards + back + self.head * (len(self.routes) * self.needs_loss + self.needs_kl)

    @functools.cached_property
    def head(self) -> int:
        """How many layers' worth of arithmetic the head is."""
        head = self.decoder.model.get_submodule(self.decoder.anatomy.head).weight.numel()
        return max(1, round(int(head) / sum(weight.numel() for weight in self.decoder.layers[0].parameters())))

    def tick(self, forwards: int = 1) -> None:
        """Say how far the walk is."""
        self.done += forwards
        self.progress("scoring", self.done, self.total)

    def go(self) -> None:
        """Walk, turn by turn, and back."""
        for turn in self.turns():
            self._forward(turn)
        if self.needs_gradient:
            back = walk_back(
                self.decoder,
                self.batches,
                self.entering,
                self.leaving,
                layers=range(self.layers),
                on_step=lambda: self.tick(BACKWARD),
            )
            for layer, gradients in back:
                self._weigh(layer, gradients)
                self.entering[layer] = []

    def turns(self) -> Iterable[Sequence[Tensor]]:
        """The batches, as many at a time as their streams fit in STREAM_BYTES."""
        embedding = self.decoder.model.get_submodule(self.decoder.anatomy.embedding).weight
        each = self.batches[0].numel() * embedding.shape[1] * embedding.element_size() * len(self.routes)
        together = max(1, STREAM_BYTES // each)
        return [self.batches[start : start + together] for start in range(0, len(self.batches), together)]

    @torch.no_grad()
    def _forward(self, batches: Sequence[Tensor]) -> None:
        fronts = [self.decoder.enter(ids, self.routes) for ids in batches]
        done = self.decoder.through(fronts, range(self.layers), observe=self._observe, on_forward=self.tick)
        for layer in done:
            if self.window and not self.needs_gradient and layer + 1 >= self.window:
                self.entering[layer + 1 - self.window] = []  # no block that starts there is still open
        if not self.needs_gradient:
            self.entering = [[] for _ in range(self.layers)]
        for front in fronts:
            self._head(front)

    def _observe(self, layer: int, before: Tensor, after: Tensor) -> None:
        for metric, means in self.hidden.items():
            means[layer].add(_counted(metric, metric.function(before, after)))
        if self.needs_gradient or self.spans:
            self.entering[layer].append(before)
        first = layer + 1 - (self.window or 0)
        if self.spans and first >= 0:
            start = self.entering[first][len(self.entering[layer]) - 1]
            for metric, spans in self.spans.items():
                spans[first].add(_counted(metric, metric.function(start, after)))

    def _head(self, front: Front) -> None:
        whole, arrived = front.arrived[UNPRUNED], [front.arrived[route] for route in self.routes]
        if self.needs_gradient:
            self.leaving.append(loss_gradient(self.decoder, front.ids, whole, of=self.predicted))
            self.tick(BACKWARD * self.head)
        if self.needs_kl:
            for losses, kls in divergences(self.decoder, front.ids, whole, arrived):
                for route, loss, kl in zip(self.routes, losses, kls, strict=True):
                    self.losses[route].add(loss)
                    self.divergences[route].add(kl)
            self.tick(self.head * (len(self.routes) + 1))
        elif self.needs_loss:
            for route, hidden in zip(self.routes, arrived, strict=True):
                self.losses[route].add(next_token_losses(self.decoder, front.ids, hidden).flatten())
                self.tick(self.head)

    def _weigh(self, layer: int, gradients: Sequence[WeightGradient]) -> None:
        for metric in self.metrics:
            if metric.feed == "gradient":
                self.weights[metric.name][layer] = metric.finish(
                    sum(
                        metric.function(found.weight, found.gradient)
                        for found in gradients
                        if _sees(metric, found.name, found.weight.dim())
                    )
                )

    def scores(self) -> dict[str, Sequence[float]]:
        """What each walked metric found, a number for each layer."""
        found: dict[str, Sequence[float]] = dict(self.weights)
        for metric, means in self.hidden.items():
            values = [metric.finish(mean.value) for mean in means]
            found[metric.name] = values if metric.last_scored else [*values[:-1], float("inf")]
        return found | self._measured(self.singles)

    def windows(self) -> dict[str, Sequence[float]]:
        """What the metrics that can found of each block."""
        if not self.window:
            return {}
        found = {metric.name: [metric.finish(mean.value) for mean in means] for metric, means in self.spans.items()}
        return found | self._measured(self.blocks)

    def _measured(self, routes: Sequence[Route]) -> dict[str, Sequence[float]]:
        feeds = {"loss": self.losses, "kl": self.divergences}
        return {
            metric.name: [metric.finish(metric.function(feeds[metric.feed][route].value)) for route in routes]
            for metric in self.metrics
            if metric.feed in feeds
        }


def _counted(metric: Metric, values: Tensor) -> Tensor:
    """The values [batch, length, ...] of the tokens that count, as [tokens, ...]."""
    return values[:, -1] if metric.last_token else values.flatten(0, 1)


class _Mean:
    """A mean over tokens of numbers, or of vectors, added up in fp64 so that the batching does not show."""

    def __init__(self) -> None:
        self.total: Tensor | float = 0.0
        self.count = 0

    def add(self, values: Tensor) -> None:
        """values: [tokens, ...]."""
        self.total = self.total + values.double().sum(0).cpu()
        self.count += len(values)

    @property
    def value(self) -> Any:
        return (torch.as_tensor(self.total) / self.count).tolist()


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
        "extra_parameters": sizes.extra_parameters,
        "extra_bytes": sizes.extra_bytes,
    }


def peak_rss() -> int:
    """The most memory this process has held, in bytes."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
