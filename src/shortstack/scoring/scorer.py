"""score(): one walk feeds every metric asked for, on the same tokens."""

from __future__ import annotations

import time
from collections.abc import Sequence

from shortstack.checkpoint import Checkpoint, Model
from shortstack.checkpoint.weights import TRAINABLE, read_weight
from shortstack.data import Rows, Text, Tokens
from shortstack.decoder import Decoder, read_tokens
from shortstack.errors import CheckpointError, InputError
from shortstack.machine.device import AUTO, Compute
from shortstack.machine.files import to_jsonable
from shortstack.machine.numbers import checked
from shortstack.machine.progress import Progress, silent
from shortstack.scoring.measurement import Measurement, MeasurementSpec, Values
from shortstack.scoring.metrics import METRICS, Metric, metrics_named
from shortstack.scoring.scores import Scores


def score(
    model: Model,
    text: Tokens | Text | Rows | None = None,
    *,
    metrics: Sequence[str] | str = ("ppl",),
    window: int | None = None,
    compute: Compute = AUTO,
    progress: Progress = silent,
) -> Scores:
    """Score every layer by every metric; low = remove first.

    text: what the model is run on for metrics of activations or loss, by default `mix`. window: also score the removal of
    every block of so many layers, by the metrics that can. Sums are in float64.

    Raises:
        InputError: an unknown metric, or a window no metric can score.
        ArchitectureError: layers that a metric cannot see into.
        ShortstackError: a score is not a number.
    """
    started, checkpoint, chosen = time.perf_counter(), Checkpoint.of(model), metrics_named(metrics)
    layers, fed = checkpoint.anatomy.layers, [metric for metric in chosen if metric.needs_text]
    tokens = read_tokens(checkpoint, text, compute=compute, progress=progress) if fed else None
    _check_window(window, layers, chosen)
    scores: Values = {
        metric.name: metric.function(layers, compute.seed) for metric in chosen if not metric.needs_scores
    }
    weights = [metric for metric in chosen if metric.feed == "weights"]
    scores |= _weighed(checkpoint, weights, progress) if weights else {}
    decoder = run = None
    blocks: Values = {}
    if tokens:
        decoder = Decoder.open(checkpoint, compute)
        run = Measurement(decoder, tokens, MeasurementSpec(fed, window), progress=progress).go()
        scores, blocks = scores | run.scores(), run.block_scores()
    return Scores(
        layers=layers,
        scores={metric.name: _checked(metric.name, scores[metric.name]) for metric in chosen},
        window=window,
        blocks={name: _checked(f"{name} of blocks of {window}", values) for name, values in blocks.items()},
        tokens=tokens.record() if tokens else None,
        model={
            "source": checkpoint.source,
            "revision": checkpoint.revision,
            "model_type": checkpoint.anatomy.model_type,
            "digest": checkpoint.weights_digest,
            **to_jsonable(checkpoint.sizes),  # by which a plan knows parameters and bytes
        },
        dtype=decoder.dtype if decoder else None,
        base_loss=run.base_loss if run else None,
        seconds=round(time.perf_counter() - started, 3),
    )


def _check_window(window: int | None, layers: int, metrics: Sequence[Metric]) -> None:
    """Refuse a size of blocks that the model does not have, or that no metric scores."""
    if window is None:
        return
    if not 0 < window < layers:
        raise InputError(
            f"{window} is no block of the model's {layers} layers; give 1 to {layers - 1}", option="window"
        )
    if not any(metric.windows for metric in metrics):
        named, able = ", ".join(metric.name for metric in metrics), [name for name in METRICS if METRICS[name].windows]
        raise InputError(f"{named} cannot score blocks; add one of {', '.join(able)}", option="window")


def _weighed(checkpoint: Checkpoint, metrics: Sequence[Metric], progress: Progress) -> Values:
    layers = checkpoint.anatomy.layers
    sums, weighed = {metric.name: [0.0] * layers for metric in metrics}, []
    for name, tensor in checkpoint.tensors.items():
        layer = checkpoint.layer_names.layer_of(name)
        wanted = [metric for metric in metrics if metric.sees(name, len(tensor.shape))]
        if layer is None or layer >= layers or not wanted:
            continue
        if tensor.dtype not in (*TRAINABLE, "F64"):  # codes, whose scales lie beside them
            message = f"{name} of {checkpoint.directory} is quantised ({tensor.dtype}) and cannot be weighed"
            raise CheckpointError(f"{message}; choose another metric, or take the unquantised model", option="metric")
        weighed.append((layer, tensor, wanted))
    for done, (layer, tensor, wanted) in enumerate(weighed, start=1):
        weight = read_weight(tensor).float()
        for metric in wanted:
            sums[metric.name][layer] += metric.function(weight)
        progress("weighing", done, len(weighed))
    return {metric.name: [metric.finish(value) for value in sums[metric.name]] for metric in metrics}


def _checked(name: str, values: Sequence[float]) -> tuple[float, ...]:
    return tuple(checked(float(value), f"metric {name}, layer {layer}") for layer, value in enumerate(values))
