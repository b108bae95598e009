"""The same layers with less in them, chosen by what their inputs are: narrow() and mask().

narrow() writes a plain checkpoint with fewer neurons in each MLP, a smaller intermediate size. A neuron is a row of each
matrix that enters the MLP (gate and up) and the column of the one that leaves it (down). MLPs are found by trying, and a cut
is written by copying byte ranges: no tensor is loaded for it.

mask() makes 2:4 sparsity: of every four weights side by side in a row, the two that matter least are zero. Hardware that has
it halves these matrices and multiplies them faster; a mask alone saves nothing. Here it is quality only.
"""

from __future__ import annotations

import copy
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from shortstack.architecture.selfcheck import built
from shortstack.checkpoint import Checkpoint, CheckpointWriter
from shortstack.checkpoint.record import provenance
from shortstack.checkpoint.safetensors import StoredTensor
from shortstack.checkpoint.writer import layout
from shortstack.data import Tokens
from shortstack.decoder import Decoder
from shortstack.decoder.batching import Batches
from shortstack.decoder.layer_io import linear_layers, recorded_inputs
from shortstack.decoder.mlps import Mlp, mlps_of
from shortstack.errors import ArchitectureError
from shortstack.machine.numbers import in_float64
from shortstack.machine.progress import Progress, silent

SIZE_FIELD = re.compile(r"intermediate|ffn|inner|mlp|feed_forward")  # names of config fields that may count neurons
MULTIPLE = 8  # of neurons: what matrix units want
LEAVE_OUT = "leave width pruning out"
GROUP, ZEROS = 4, 2  # of a mask


@torch.no_grad()
def input_norms(decoder: Decoder, ids: Tensor, *, progress: Progress = silent) -> dict[str, Tensor]:
    """Compute |X_j|_2 over all tokens of `ids` [samples, length], for each input channel j of each linear layer.

    By the names of modules in the whole model, [inputs] in float64; from one walk of the unchanged model.
    """
    walks = [decoder.enter(batch) for batch in Batches.of(Tokens.given(ids), decoder.device).ids]
    walk = decoder.through(walks, range(len(decoder.layers)))
    norms: dict[str, Tensor] = {}
    for number, layer in enumerate(decoder.layers):
        with recorded_inputs(layer, list(linear_layers(layer))) as inputs:
            next(walk)
        for name, batches in inputs.items():
            squares = sum(in_float64(batch.flatten(0, -2)).square().sum(0) for batch in batches)
            norms[f"{decoder.anatomy.layer(number)}.{name}"] = torch.as_tensor(squares).sqrt()
        progress("measuring inputs", number + 1, len(decoder.layers))
    return norms


@torch.no_grad()
def find_mlps(decoder: Decoder) -> list[Mlp]:
    mlps: list[Mlp] = []
    for number in range(len(decoder.layers)):
        with decoder.resident(number):
            fitting = mlps_of(decoder, number)
        if len(fitting) != 1:
            raise ArchitectureError(
                f"{len(fitting)} (fused matrices and routed experts are none)",
                expected="one MLP whose neurons are rows of linear layers that lie beside the one it ends in",
                fix=LEAVE_OUT,
                where=f"{decoder.anatomy.architecture}, layer {number}",
            )
        mlps += fitting
    if len(set(mlps)) > 1:
        raise ArchitectureError(
            f"{sorted({mlp.neurons for mlp in mlps})} neurons",
            expected="MLPs of one width in all layers",
            fix=LEAVE_OUT,
            where=decoder.anatomy.architecture,
        )
    return mlps


def neuron_bytes(checkpoint: Checkpoint, mlps: Sequence[Mlp]) -> int:
    return sum(
        tensor.size // mlp.neurons
        for number, mlp in enumerate(mlps)
        for tensor, _ in _stored(checkpoint, number, mlp).values()
    )


def fitting_neurons(checkpoint: Checkpoint, mlps: Sequence[Mlp], budget: int) -> int:
    """Return how many neurons of each layer fit into so many bytes of weights; 0 where not even MULTIPLE do."""
    neuron_size = neuron_bytes(checkpoint, mlps)
    room = mlps[0].neurons - max(0, -(-(checkpoint.weight_bytes - budget) // neuron_size))
    return max(0, room if room == mlps[0].neurons else room // MULTIPLE * MULTIPLE)


def chosen_neurons(
    checkpoint: Checkpoint, mlps: Sequence[Mlp], keep: int, norms: Mapping[str, Tensor]
) -> list[list[int]]:
    """Choose the `keep` neurons that give most over the calibration tokens, [layers][keep]; of equals the lower number.

    norms: what input_norms() found (after Minitron, arXiv 2407.14679, 2.2).
    """
    given = [norms[f"{checkpoint.anatomy.layer(number)}.{mlp.leaving}"] for number, mlp in enumerate(mlps)]
    orders = (neuron_norms.argsort(descending=True, stable=True)[:keep] for neuron_norms in given)
    return [sorted(order.tolist()) for order in orders]


def size_field(checkpoint: Checkpoint, mlps: Sequence[Mlp], keep: int) -> str:
    """Return the config field that counts neurons: with `keep` in it, MLPs have so many, and all else is as it was."""
    for field, value in _text(checkpoint, checkpoint.config).items():
        if SIZE_FIELD.search(field) and type(value) is int and value == mlps[0].neurons:
            model, _ = built(_resized(checkpoint, field, keep), checkpoint.directory, checkpoint.trust_remote_code)
            if _shapes(model) == _expected(checkpoint, mlps, keep):
                return str(field)
    raise ArchitectureError(
        "none",
        expected=f"a config field that counts the {mlps[0].neurons} neurons of each MLP, and nothing else",
        fix=LEAVE_OUT,
        where=checkpoint.directory,
    )


def _text(checkpoint: Checkpoint, config: Mapping[str, Any]) -> Any:
    key = checkpoint.anatomy.text_key
    return config[key] if key else config


def _resized(checkpoint: Checkpoint, field: str, keep: int) -> dict[str, Any]:
    config = copy.deepcopy(dict(checkpoint.config))
    _text(checkpoint, config)[field] = keep
    return config


def _shapes(model: nn.Module) -> dict[str, tuple[int, ...]]:
    return {name: tuple(weight.shape) for name, weight in model.named_parameters()}


def _expected(checkpoint: Checkpoint, mlps: Sequence[Mlp], keep: int) -> dict[str, tuple[int, ...]]:
    shapes = _shapes(checkpoint.blueprint)
    for number, mlp in enumerate(mlps):
        for name, axis in _weights(mlp):
            full = f"{checkpoint.anatomy.layer(number)}.{name}"
            if full in shapes:  # not every matrix has a bias
                shapes[full] = (*shapes[full][:axis], keep, *shapes[full][axis + 1 :])
    return shapes


def _weights(mlp: Mlp) -> Iterator[tuple[str, int]]:
    """Yield the parameters of a layer that have a neuron's numbers, and the axis along which neurons lie."""
    for name in mlp.entering:
        yield f"{name}.weight", 0
        yield f"{name}.bias", 0
    yield f"{mlp.leaving}.weight", 1


def _stored(checkpoint: Checkpoint, number: int, mlp: Mlp) -> dict[str, tuple[StoredTensor, int]]:
    places = {f"{checkpoint.layer_names.path}.{number}.{name}": axis for name, axis in _weights(mlp)}
    missing = [name for name in places if name.endswith(".weight") and name not in checkpoint.tensors]
    if missing:
        raise ArchitectureError(
            "none of that name", expected=f"a stored tensor {missing[0]}", fix=LEAVE_OUT, where=checkpoint.directory
        )
    return {name: (checkpoint.tensors[name], axis) for name, axis in places.items() if name in checkpoint.tensors}


def narrow(
    checkpoint: Checkpoint, mlps: Sequence[Mlp], kept: Sequence[Sequence[int]], field: str, out: str | Path
) -> Checkpoint:
    """Write the checkpoint with only the kept neurons, [layers][keep], to the new directory `out`, and open it.

    field: as size_field() finds it.
    """
    started, keep = time.perf_counter(), len(kept[0])
    cut = {
        name: tensor.blocks(axis, neurons, mlp.neurons)
        for number, (mlp, neurons) in enumerate(zip(mlps, kept, strict=True))
        for name, (tensor, axis) in _stored(checkpoint, number, mlp).items()
    }
    tensors = [cut.get(name, tensor) for name, tensor in checkpoint.tensors.items()]
    with CheckpointWriter(out, source=checkpoint.directory, nbytes=sum(tensor.size for tensor in tensors)) as writer:
        writer.json("config.json", _resized(checkpoint, field, keep))
        for path in checkpoint.side_files():
            writer.copy(path)
        origin = {tensor.name: tensor.file.name for tensor in checkpoint.tensors.values()}
        writer.tensors(layout(tensors, origin))
        record = provenance(checkpoint, "narrow", time.perf_counter() - started)
        writer.commit({**record, "width": {"neurons": mlps[0].neurons, "kept": keep, "field": field}})
    return Checkpoint.open(writer.out, trust_remote_code=checkpoint.trust_remote_code)


def unmaskable(decoder: Decoder) -> str | None:
    """Return why mask() cannot take a decoder; None where it can."""
    for number, layer in enumerate(decoder.layers):
        for name, module in linear_layers(layer).items():
            if module.in_features % GROUP:
                return f"layer {number} {name} has {module.in_features} inputs, which do not divide by {GROUP}"
    return None


@torch.no_grad()
def mask(decoder: Decoder, norms: Mapping[str, Tensor]) -> None:
    """Zero two of every four inputs of each row of each linear layer inside the layers, in place.

    Those with the smallest |W_ij| |X_j|_2 (Wanda, Sun et al., arXiv 2306.11695, equation 1) go, the input_norms() being
    those of the unmasked model; Wanda's code takes each layer's behind the layers masked already.
    """
    for number, layer in enumerate(decoder.layers):
        for name, module in linear_layers(layer).items():
            weight = module.weight
            score = weight.abs().float() * norms[f"{decoder.anatomy.layer(number)}.{name}"].to(weight.device)
            least = score.view(len(weight), -1, GROUP).topk(ZEROS, largest=False).indices
            weight.data.view(len(weight), -1, GROUP).scatter_(-1, least, 0)
