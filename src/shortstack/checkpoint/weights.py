"""Stored tensors into a model's weights, by transformers' own conversion of names and forms."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from shortstack.architecture.anatomy import meta_model
from shortstack.checkpoint.checkpoint import Checkpoint
from shortstack.checkpoint.safetensors import StoredTensor, read_into
from shortstack.errors import CheckpointError
from shortstack.machine.progress import hush_transformers

if TYPE_CHECKING:
    from transformers import PreTrainedModel


DTYPES = {
    "BOOL": torch.bool,
    "U8": torch.uint8,
    "I8": torch.int8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F32": torch.float32,
    "F64": torch.float64,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}
TRAINABLE = ("BF16", "F16", "F32")


def read_weight(tensor: StoredTensor, buffer: Tensor | None = None) -> Tensor:
    """Read a stored tensor into memory: its own, or as many bytes of a buffer [bytes] of uint8."""
    memory = torch.empty(tensor.size, dtype=torch.uint8) if buffer is None else buffer[: tensor.size]
    weight = memory.view(_dtype(tensor)).view(tensor.shape)
    if tensor.size:
        read_into(tensor, memory.numpy().data)
    return weight


def _dtype(tensor: StoredTensor) -> torch.dtype:
    if tensor.dtype not in DTYPES:
        raise CheckpointError(f"{tensor.file}: {tensor.name} is in {tensor.dtype}; start from the unquantised model")
    return DTYPES[tensor.dtype]


def load_into(model: PreTrainedModel, weights: Mapping[str, Tensor], *, dtype: torch.dtype | None, device: str) -> Any:
    """Give a model these stored tensors, as dtype; returns transformers' report of missing, unexpected and unfit ones."""
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    hush_transformers()
    conversions = copy.deepcopy(get_model_conversion_mapping(model))
    for conversion in conversions if device == "meta" else ():
        if getattr(conversion, "force_cpu", False):  # huge weights are converted there; without data they cannot be
            conversion.force_cpu = False
    config = LoadStateDictConfig(
        dtype=dtype,
        dtype_plan=model._get_dtype_plan(dtype) if dtype else {},  # what an architecture keeps in fp32
        device_map={"": device},
        weight_mapping=conversions,
    )
    report, _ = convert_and_load_state_dict_in_model(model, dict(weights), config)
    return report


def check_fit(checkpoint: Checkpoint, *, extra_heads: bool = True) -> None:
    """Refuse a checkpoint whose tensors are not the weights its config describes; only headers are read.

    extra_heads: layers past the last (MTP heads), which go with a cut, may be there. Quantised weights have forms of their
    own, which are not checked.
    """
    if checkpoint.quantised:
        return
    model = meta_model(checkpoint.directory, trust_remote_code=checkpoint.trust_remote_code)
    blank = {
        name: torch.empty(tensor.shape, dtype=_dtype(tensor), device="meta")
        for name, tensor in checkpoint.tensors.items()
        if not (extra_heads and checkpoint.layer_names.is_extra_head(name))
    }
    report = load_into(model, blank, dtype=None, device="meta")
    model.tie_weights(missing_keys=report.missing_keys, recompute_mapping=False)
    model._adjust_missing_and_unexpected_keys(report)  # what an architecture expects to be missing, or left over
    for kind, names, fix in (
        ("missing", report.missing_keys, "download the checkpoint again"),
        ("of another shape", report.mismatched_keys, "find the config that belongs to these weights"),
        ("without a place in the model", report.unexpected_keys, "save it again by save_pretrained"),
        ("not convertible", report.conversion_errors, "find the config that belongs to these weights"),
    ):
        if names:
            shown = f"{len(names)} weights are {kind}: {', '.join(sorted(map(_described, names))[:3])}"
            raise CheckpointError(f"{checkpoint.directory}: {shown}; {fix}")


def check_unquantised(checkpoint: Checkpoint, what_for: str, verb: str) -> None:
    """Refuse quantised weights, which would be written in another form than they have."""
    if checkpoint.quantised:
        quantised = f"{checkpoint.source} is quantised, and weights of 16 or 32 bits are needed {what_for}"
        raise CheckpointError(f"{quantised}; {verb} the unquantised model, then quantise")


def _described(name: Any) -> str:
    """Describe a weight of transformers' report: by its bare name, or with the shape stored and the one it has room for."""
    if isinstance(name, str):
        return name
    weight, stored, room = name
    return f"{weight} of shape {tuple(stored)}, not {tuple(room)}"


def exact_weights(checkpoint: Checkpoint, names: Iterable[str]) -> Iterator[tuple[str, Tensor]]:
    """Read weights as they are stored, in float32, by their names in the whole model's state dict.

    A tied head is the embedding. One layer is in memory at a time.
    """
    anatomy = checkpoint.anatomy
    layers, head, embedding = f"{anatomy.layers_path}.", f"{anatomy.head}.weight", f"{anatomy.embedding}.weight"
    source = {name: embedding if anatomy.tied and name == head else name for name in names}

    def layer(name: str) -> str | None:
        return name.removeprefix(layers).partition(".")[0] if name.startswith(layers) else None

    for _, group in groupby(source, key=layer):
        wanted = list(group)
        reverted = _reverted(checkpoint, _blank(checkpoint, {source[name] for name in wanted}))
        stored = [_known(checkpoint, name) for name in reverted]
        model = copy.deepcopy(checkpoint.blueprint).float()  # weights become what the model is of
        weights = {tensor.name: read_weight(tensor) for tensor in stored}
        load_into(model, weights, dtype=torch.float32, device="cpu")
        yield from ((name, model.get_parameter(source[name]).data) for name in wanted)


def stored_tensors(checkpoint: Checkpoint, weights: Mapping[str, Tensor]) -> dict[str, StoredTensor]:
    """Turn new weights, by their names in the state dict, into what the checkpoint stores: its names and its dtypes."""
    tensors = (_as_stored(checkpoint, name, weight) for name, weight in _reverted(checkpoint, weights).items())
    return {tensor.name: tensor for tensor in tensors}


@dataclass(frozen=True)
class Edit:
    """A change to a weight: it is multiplied by a factor, and a tensor of its shape is added."""

    added: Tensor | None = None
    factor: float = 1.0

    def of(self, weight: Tensor) -> Tensor:
        """Edit a weight; in fp32 where something is added."""
        scaled = weight if self.factor == 1 else weight * self.factor
        return scaled if self.added is None else scaled.float() + self.added


def edited_tensors(checkpoint: Checkpoint, edits: Mapping[str, Edit]) -> dict[str, StoredTensor]:
    """Edit the stored weights, in fp32; edits: by the weights' names in the whole model's state dict."""
    weights = checkpoint.blueprint.state_dict()
    added = {name: edit.added for name, edit in edits.items() if edit.added is not None}
    factors = {name: torch.tensor(edit.factor).expand(weights[name].shape) for name, edit in edits.items()}
    changes, tensors = _reverted(checkpoint, added), {}
    for name, factor in _reverted(checkpoint, factors).items():  # as it divides the weights, so it does their factors
        stored = checkpoint.tensors[_as_stored(checkpoint, name, factor).name]
        edited = read_weight(stored).float()
        edited *= factor
        if name in changes:  # where nothing is added, a zero keeps its sign
            edited = torch.where(changes[name] == 0, edited, edited + changes[name])
        tensors[stored.name] = _as_stored(checkpoint, name, edited)
    return tensors


def _reverted(checkpoint: Checkpoint, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return weights by the names that save_pretrained gives them."""
    from transformers.core_model_loading import revert_weight_conversion

    return dict(revert_weight_conversion(checkpoint.blueprint, dict(weights))) if weights else {}


def _stored(checkpoint: Checkpoint, name: str) -> StoredTensor | None:
    """Find the stored tensor of a weight, by the name that save_pretrained gives it: the model's own prefix may lack."""
    prefix = f"{checkpoint.blueprint.base_model_prefix}."
    candidates = (name, name.removeprefix(prefix), f"{prefix}{name}")
    return next((checkpoint.tensors[candidate] for candidate in candidates if candidate in checkpoint.tensors), None)


def _known(checkpoint: Checkpoint, name: str) -> StoredTensor:
    """Find the stored tensor of a weight, as _stored(); of a head without one the embedding's, by the head's name."""
    tensor = _stored(checkpoint, name)
    if tensor is None and name in _reverted(checkpoint, _blank(checkpoint, [f"{checkpoint.anatomy.head}.weight"])):
        (embedding,) = _reverted(checkpoint, _blank(checkpoint, [f"{checkpoint.anatomy.embedding}.weight"]))
        tied = _stored(checkpoint, embedding)
        tensor = replace(tied, name=name) if tied else None
    if tensor is None:
        raise CheckpointError(f"{checkpoint.directory} stores no tensor for {name}; report this checkpoint")
    return tensor


def _blank(checkpoint: Checkpoint, names: Iterable[str]) -> dict[str, Tensor]:
    structure = checkpoint.blueprint.state_dict()
    return {name: structure[name] for name in names}


def _as_stored(checkpoint: Checkpoint, name: str, weight: Tensor) -> StoredTensor:
    known = _known(checkpoint, name)
    if known.dtype not in TRAINABLE:
        fix = "heal a model stored in float32, float16 or bfloat16, and convert it then"
        raise CheckpointError(f"{checkpoint.directory} stores {name} in {known.dtype}; {fix}")
    stored = weight.to(DTYPES[known.dtype])
    if not torch.isfinite(stored).all():
        found = f"{name} reaches {weight.abs().max():g}, and {known.dtype} holds {torch.finfo(stored.dtype).max:g}"
        raise CheckpointError(f"{found}; store the model in bfloat16 or float32 first, or train at a lower rate")
    data = stored.contiguous().flatten().view(torch.uint8).numpy().tobytes()
    return replace(known, shape=tuple(weight.shape), data=data)
