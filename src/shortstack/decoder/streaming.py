"""A checkpoint's weights one layer at a time: what surrounds the layers stays in memory, a layer's come and go.

While one layer computes, the next is read. Memory: embedding, head, and two layers, whatever the depth.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Set
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from shortstack.architecture.anatomy import meta_model
from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.checkpoint import ALIGNMENT
from shortstack.checkpoint.weights import load_into, read_weight
from shortstack.errors import CheckpointError
from shortstack.machine.memory import Memory, available_memory

SPARE = 0.8  # of the memory there is; the rest is for activations
Weights = Mapping[str, Tensor]


def must_stream(checkpoint: Checkpoint, dtype: torch.dtype, device: str) -> bool:
    """Say whether the weights, turned into `dtype`, take more memory than the device has to spare.

    Quantised ones are not read layer by layer.
    """
    if checkpoint.quantised:
        return False
    return checkpoint.parameters * dtype.itemsize > SPARE * available_memory(device)


def check_streamable(checkpoint: Checkpoint, dtype: torch.dtype, device: str) -> None:
    """Refuse a model that cannot be read layer by layer."""
    if checkpoint.quantised:
        raise CheckpointError(f"quantised weights of {checkpoint.source} are not read layer by layer; leave stream out")
    around, largest = checkpoint.sizes.other_parameters * dtype.itemsize, max(checkpoint.sizes.layer_bytes)
    needed = {"cpu": around + 2 * largest} if device == "cpu" else {device: around + largest, "cpu": 2 * largest}
    for place, nbytes in needed.items():
        Memory(nbytes, place).check(f"reading {checkpoint.source} layer by layer")


class LayerWeights:
    """A model whose layers have weights only inside resident().

    Weights that several layers share (zamba's attention) stay in memory like what surrounds the layers.
    """

    def __init__(self, checkpoint: Checkpoint, *, dtype: torch.dtype, device: str) -> None:
        """Build the model without weights in its layers. dtype: what floating-point weights are turned into."""
        check_streamable(checkpoint, dtype, device)
        self._checkpoint, self._dtype, self._device = checkpoint, dtype, device
        model = meta_model(checkpoint.directory, trust_remote_code=checkpoint.trust_remote_code, dtype=dtype)
        self.model = model.eval().requires_grad_(False)
        self._layers = list(self.model.get_submodule(checkpoint.anatomy.layers_path).children())
        uses = Counter(id(weight) for layer in self._layers for weight in set(layer.parameters()))
        shared = {weight for weight, count in uses.items() if count > 1}
        self._own = [list(_places(layer, shared)) for layer in self._layers]
        self._stored = self._divided(shared)
        self._reader = ThreadPoolExecutor(1, "reading the next layer")
        self._coming: tuple[int, Future[Weights]] | None = None
        self._here: int | None = None
        self._tied = False
        largest = max(self._room(layer) for layer in self._stored if layer is not None)
        # Two pieces of memory for the whole walk: fresh ones for each layer would leave holes that take as much again.
        self._free, self._taken = (torch.empty(largest, dtype=torch.uint8) for _ in range(2))
        self._load({name: read_weight(checkpoint.tensors[name]) for name in self._stored[None]})
        for module in self.model.modules():
            for name, buffer in module.named_buffers(recurse=False):
                module._buffers[name] = buffer.to(device)
        self._check_loaded(None)

    @contextmanager
    def resident(self, layer: int) -> Iterator[None]:
        """Keep the layer's weights in memory while it lasts, and read the next in the same direction."""
        weights = self._take(layer)
        step = -1 if self._here is not None and layer < self._here else 1
        self._here = layer
        if 0 <= layer + step < len(self._layers):
            self._coming = (layer + step, self._reader.submit(self._read, layer + step, self._free))
        self._load(weights)
        del weights
        self._check_loaded(layer)
        try:
            yield
        finally:
            self._fill(layer, "meta")

    @contextmanager
    def blank(self, layer: int) -> Iterator[None]:
        """Give the layer weights of zero while it lasts: enough to see what it takes and returns."""
        self._fill(layer, self._device)
        try:
            yield
        finally:
            self._fill(layer, "meta")

    def settle(self, first: int) -> None:
        """Bring the layers from `first` on into memory for good; those before it never get weights."""
        for layer in range(first, len(self._layers)):
            self._load(self._read(layer, torch.empty(self._room(layer), dtype=torch.uint8)))
            self._check_loaded(layer)
        self._free = self._taken = torch.empty(0, dtype=torch.uint8)

    def _divided(self, shared: Set[int]) -> dict[int | None, list[str]]:
        """Group stored names by layer; None: what stays in memory. Leave out extra layers past the last (MTP heads)."""
        names: dict[int | None, list[str]] = {None: []}
        staying = {
            f"{number}.{name}"
            for number, layer in enumerate(self._layers)
            for name, weight in layer.named_parameters()
            if id(weight) in shared
        }
        for name in self._checkpoint.tensors:
            layer = self._checkpoint.layer_names.layer_of(name)
            if layer is not None and name.removeprefix(f"{self._checkpoint.layer_names.path}.") in staying:
                layer = None
            if layer is None or layer < len(self._layers):
                names.setdefault(layer, []).append(name)
        return names

    def _take(self, layer: int) -> Weights:
        coming, self._coming = self._coming, None
        weights = coming[1].result() if coming else {}
        if not coming or coming[0] != layer:
            weights = self._read(layer, self._free)
        self._free, self._taken = self._taken, self._free
        return weights

    def _read(self, layer: int, buffer: Tensor) -> Weights:
        weights, start = {}, 0
        for name in self._stored.get(layer, []):
            tensor = self._checkpoint.tensors[name]
            weights[name] = read_weight(tensor, buffer[start:])
            start += _aligned(tensor.size)
        return weights

    def _room(self, layer: int) -> int:
        return sum(_aligned(self._checkpoint.tensors[name].size) for name in self._stored[layer])

    def _load(self, weights: Weights) -> None:
        report = load_into(self.model, weights, dtype=self._dtype, device=self._device)
        wrong = [*report.mismatched_keys, *report.conversion_errors, *report.error_msgs]
        if wrong:
            raise self._broken(f"{len(wrong)} weights do not fit the config, {wrong[0]} among them")
        if not self._tied:  # the head is tied unless it came by itself
            self.model.tie_weights(missing_keys=report.missing_keys, recompute_mapping=False)
            self._tied = True

    def _fill(self, layer: int, device: str) -> None:
        """Fill in weights of zero on a device, or none at all on the meta device."""
        for module, name in self._own[layer]:
            weight = module.get_parameter(name)
            blank = torch.zeros_like(weight, device=device, dtype=self._dtype if weight.is_floating_point() else None)
            setattr(module, name, nn.Parameter(blank, requires_grad=False))

    def _check_loaded(self, layer: int | None) -> None:
        if layer is None:
            inside = {id(module.get_parameter(name)) for own in self._own for module, name in own}
            around = [(name, weight) for name, weight in self.model.named_parameters() if id(weight) not in inside]
            missing = [name for name, weight in around if weight.is_meta]
        else:
            missing = [name for module, name in self._own[layer] if module.get_parameter(name).is_meta]
        if missing:
            raise self._broken(f"{len(missing)} weights are missing, {missing[0]} among them")

    def _broken(self, wrong: str) -> CheckpointError:
        return CheckpointError(f"{self._checkpoint.directory}: {wrong}; download or save the checkpoint again")


def _places(layer: nn.Module, shared: Set[int]) -> Iterator[tuple[nn.Module, str]]:
    """Yield the modules and names of a layer's parameters, without those that other layers share."""
    for module in layer.modules():
        for name, weight in module.named_parameters(recurse=False):
            if id(weight) not in shared:
                yield module, name


def _aligned(size: int) -> int:
    return -(-size // ALIGNMENT) * ALIGNMENT
