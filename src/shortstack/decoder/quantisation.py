"""Weight-only quantisation of a loaded model's layers, in memory, by the libraries that do it; nothing is written."""

from __future__ import annotations

import importlib.util
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shortstack.checkpoint import Checkpoint
from shortstack.decoder.decoder import Decoder
from shortstack.decoder.layer_io import fused_experts, linear_layers
from shortstack.errors import ArchitectureError, InputError
from shortstack.machine.options import install

DEVICES = ("cpu", "cuda")  # where the schemes were run


@dataclass(frozen=True)
class Scheme:
    """A way to hold matrices in fewer bits. library: what does it, from the extra `quant`."""

    name: str
    library: str
    convert: Callable[[nn.Module, str], None]

    def missing(self, device: str) -> str | None:
        """Say why it cannot be had on a device, as far as that is known without trying; None where it can."""
        if importlib.util.find_spec(self.library) is None:
            return f"needs {self.library}; {install('quant')}"
        if device.partition(":")[0] not in DEVICES:
            return f"{self.library} is not used on {device}"
        return None


@dataclass(frozen=True)
class Held:
    """The quantised matrices of a layer: their names in it, their weights, and the bytes these take, scales included."""

    layer: int
    names: tuple[str, ...]
    weights: int
    bytes: int


@torch.no_grad()
def quantise(decoder: Decoder, scheme: Scheme) -> list[Held]:
    """Quantise every linear layer inside the decoder's layers in place, and say what each layer's take; biases stay."""
    return [_quantised(number, layer, scheme) for number, layer in enumerate(decoder.layers)]


def _quantised(number: int, layer: nn.Module, scheme: Scheme) -> Held:
    matrices = linear_layers(layer)
    weights = sum(matrix.weight.numel() for matrix in matrices.values())
    for path in matrices:
        parent, _, name = path.rpartition(".")
        scheme.convert(layer.get_submodule(parent), name)
    biases = sum(matrix.bias.nbytes for matrix in matrices.values() if matrix.bias is not None)
    nbytes = sum(held_bytes(layer.get_submodule(path)) for path in matrices) - biases
    return Held(number, tuple(matrices), weights, nbytes)


def saved_bytes(checkpoint: Checkpoint, quantised: Iterable[Held]) -> int:
    """Count the bytes that the quantised matrices save of the checkpoint that they were loaded from."""
    return sum(_stored_bytes(checkpoint, matrices) - matrices.bytes for matrices in quantised)


def _stored_bytes(checkpoint: Checkpoint, matrices: Held) -> int:
    ends = tuple(f".{name}.weight" for name in matrices.names)
    layer_of = checkpoint.layer_names.layer_of
    stored = [
        tensor
        for name, tensor in checkpoint.tensors.items()
        if name.endswith(ends) and layer_of(name) == matrices.layer
    ]
    weights = sum(math.prod(tensor.shape) for tensor in stored)
    if weights != matrices.weights:
        raise ArchitectureError(
            f"{weights:,}",
            expected=f"{matrices.weights:,} weights in matrices that are stored by the names they are loaded by",
            fix="measure it by evaluate: its matrices are stored in another form",
            where=f"{checkpoint.directory}, layer {matrices.layer}",
        )
    return sum(tensor.size for tensor in stored)


def uncovered(decoder: Decoder) -> str | None:
    """Say why quantisation and masks of linear layers would leave out most of a decoder; None where they do not."""
    if fused_experts(decoder.model):
        return "matrices of several experts are one weight, which is not covered"
    if any(type(module).__name__ == "Conv1D" for layer in decoder.layers for module in layer.modules()):
        return "matrices are Conv1D modules, which are not covered"
    if not all(map(linear_layers, decoder.layers)):
        return "a layer has no linear layers"
    return None


def held_bytes(module: nn.Module) -> int:
    """Count the bytes of a module's weights, what is shared once; of quantised ones with their scales and codes."""
    tensors = {id(value): value for value in module.state_dict(keep_vars=True).values() if isinstance(value, Tensor)}
    return sum(part.numel() * part.element_size() for value in tensors.values() for part in _inside(value))


def _inside(tensor: Tensor) -> Iterator[Tensor]:
    """Yield a tensor, or those that one of torchao's consists of."""
    if not hasattr(tensor, "__tensor_flatten__"):
        yield tensor
        return
    for name in tensor.__tensor_flatten__()[0]:
        yield from _inside(getattr(tensor, name))


def _int8(parent: nn.Module, name: str) -> None:
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    quantize_(parent.get_submodule(name), Int8WeightOnlyConfig())


def _nf4(parent: nn.Module, name: str) -> None:
    setattr(parent, name, four_bit(parent.get_submodule(name), needed_by="nf4"))


INT8 = Scheme("int8", "torchao", _int8)
NF4 = Scheme("nf4", "bitsandbytes", _nf4)
SCHEMES: Mapping[str, Scheme] = {scheme.name: scheme for scheme in (INT8, NF4)}


def four_bit(matrix: nn.Module, *, needed_by: str, gradients: bool = False) -> nn.Module:
    """Return a linear layer with its weight in nf4, double-quantised (Dettmers et al., arXiv 2305.14314), on its device.

    needed_by: what needs it, as an error names it. gradients: whether they flow through it to what comes before.
    """
    try:
        from bitsandbytes import nn as kinds
    except (ImportError, RuntimeError, OSError) as error:
        raise InputError(
            error, expected="bitsandbytes, for 4-bit weights", fix=install("quant"), where=needed_by
        ) from error
    assert isinstance(matrix, nn.Linear)  # noqa: S101  the caller has looked
    four = kinds.Linear4bit(
        matrix.in_features,
        matrix.out_features,
        bias=matrix.bias is not None,
        compute_dtype=matrix.weight.dtype,
        quant_type="nf4",
        compress_statistics=True,
        device="meta",
    )
    four.weight = kinds.Params4bit(
        matrix.weight.data, requires_grad=False, quant_type="nf4", compress_statistics=True, module=four
    )
    four.bias = matrix.bias
    if gradients:
        four.support_avx512bf16_for_cpu = False  # else evaluating packs the matrix for a product without a gradient
    return four.to(matrix.weight.device)  # type: ignore[no-any-return]
