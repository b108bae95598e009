"""Low-rank adapters by peft, merged into the 16-bit weights at the end: LoRA, rsLoRA, DoRA, and QLoRA on 4-bit layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.safetensors import StoredTensor
from shortstack.checkpoint.weights import Edit, edited_tensors, stored_tensors
from shortstack.decoder import Decoder
from shortstack.decoder.quantisation import bitsandbytes, four_bit
from shortstack.errors import InputError, parameter
from shortstack.healing.head import Head
from shortstack.healing.layer_choice import Places
from shortstack.healing.learner import Learner
from shortstack.healing.methods import check_adapter

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer


ADAPTER = "default"


@dataclass(frozen=True)
class Lora:
    """W + alpha / r B A, with A and B trained (Hu et al., arXiv 2106.09685); in every layer unless some are named.

    rank, alpha, dropout: the paper's are 8, 16 and 0.05 (Lu et al., 4.1). targets: comma-separated last parts of the names
    of matrices, such as q_proj,v_proj; None is all matrices of a layer. The head trains whole, if it is asked to.
    """

    rank: int = 8
    alpha: float = 16.0
    dropout: float = 0.05
    targets: str | None = None
    last: int | None = None
    layers: str | None = None
    near_cut: int | None = None
    head: bool | None = None
    untie_head: bool = False
    name: ClassVar[str] = "lora"
    variant: ClassVar[Mapping[str, bool]] = {}

    def __post_init__(self) -> None:
        check_adapter(rank=self.rank, alpha=self.alpha, dropout=self.dropout, last=self.last)

    def to_dict(self) -> dict[str, Any]:
        return {"name": self.name, **asdict(self)}

    @property
    def _head(self) -> Head:
        return Head(self.head, self.untie_head)

    def adapted_layers(self, checkpoint: Checkpoint) -> tuple[int, ...]:
        """The layers that get adapters, in order."""
        return Places(self.last, self.layers, self.near_cut).found(checkpoint, checkpoint.anatomy.layers)

    def first(self, checkpoint: Checkpoint) -> int:
        """The first layer that is not frozen.

        Raises:
            InputError: layers or a head that cannot train, or peft is not installed.
        """
        _peft()
        self._head.trains(checkpoint, default=False)
        return min(self.adapted_layers(checkpoint), default=checkpoint.anatomy.layers)

    def prepare(self, checkpoint: Checkpoint, decoder: Decoder) -> Mapping[str, nn.Module]:
        """Put adapters in; what of them trains, by its name."""
        self._head.prepare(decoder)
        places = list(self._places(checkpoint, decoder))
        self._quantise(decoder, places)
        config = _peft().LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            lora_dropout=self.dropout,
            target_modules=places,
            bias="none",
            **self.variant,
        )
        _peft().inject_adapter_in_model(config, decoder.model)
        found = {
            f"{name}.{kind}": part[ADAPTER]
            for name, layer in _adapted(decoder)
            for kind in ("lora_A", "lora_B", "lora_magnitude_vector")
            if ADAPTER in (part := getattr(layer, kind))
        }
        if self._head.trains(checkpoint, default=False):
            found[decoder.anatomy.head] = decoder.model.get_submodule(decoder.anatomy.head)
        return found

    def _quantise(self, decoder: Decoder, places: Sequence[str]) -> None:
        """Nothing here; QLoRA turns the matrices into 4 bits."""

    def _places(self, checkpoint: Checkpoint, decoder: Decoder) -> Iterator[str]:
        """The names of the matrices that get adapters.

        Raises:
            InputError: a target that no matrix of those layers is called.
        """
        wanted = {name.strip() for name in self.targets.split(",")} if self.targets else None
        there = {
            f"{decoder.anatomy.layer(layer)}.{name}": name.rpartition(".")[2]
            for layer in self.adapted_layers(checkpoint)
            for name, module in decoder.layers[layer].named_modules()
            if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        }
        unknown = sorted((wanted or set()) - set(there.values()))
        if unknown or not there:
            raise InputError(
                parameter("targets"),
                expected=f"some of {', '.join(sorted(set(there.values())))}" if there else "layers with matrices",
                found=", ".join(unknown) or "none",
                fix=f"leave {parameter('targets')} out for all matrices",
            )
        yield from (name for name, kind in there.items() if wanted is None or kind in wanted)

    def tensors(self, checkpoint: Checkpoint, learner: Learner) -> dict[str, StoredTensor]:
        """The stored weights with the adapters added in fp32, and the head where it trained."""
        edits = {f"{name}.weight": Edit(_change(layer).cpu()) for name, layer in _adapted(learner.decoder)}
        head = f"{learner.decoder.anatomy.head}.weight"
        trained = {name: weight for name, weight in learner.trained_tensors().items() if name == head}
        return edited_tensors(checkpoint, edits) | stored_tensors(checkpoint, trained)

    def added_bytes(self, checkpoint: Checkpoint) -> int:
        return self._head.added_bytes(checkpoint)

    def config(self, checkpoint: Checkpoint) -> dict[str, Any]:
        """The config fields that change."""
        return self._head.config(checkpoint)


@dataclass(frozen=True)
class RsLora(Lora):
    """alpha / sqrt(r) instead of alpha / r (Kalajdzievski, arXiv 2312.03732)."""

    name: ClassVar[str] = "rslora"
    variant: ClassVar[Mapping[str, bool]] = {"use_rslora": True}


@dataclass(frozen=True)
class DoRA(Lora):
    """The direction of W + alpha / r B A, with a trained length for each row (Liu et al., arXiv 2402.09353)."""

    name: ClassVar[str] = "dora"
    variant: ClassVar[Mapping[str, bool]] = {"use_dora": True}


@dataclass(frozen=True)
class QLora(Lora):
    """LoRA beside matrices held in 4 bits, nf4 with double quantisation (Dettmers et al., arXiv 2305.14314).

    What is written is the 16-bit weights with the adapters added.
    """

    name: ClassVar[str] = "qlora"

    def first(self, checkpoint: Checkpoint) -> int:
        bitsandbytes(parameter("method", "qlora"))
        return super().first(checkpoint)

    def _quantise(self, decoder: Decoder, places: Sequence[str]) -> None:
        for place in places:
            matrix = decoder.model.get_submodule(place)
            if not isinstance(matrix, nn.Linear):
                raise InputError(
                    parameter("method", "qlora"),
                    expected="layers of linear matrices",
                    found=f"{type(matrix).__name__} at {place}",
                    fix=f"use {parameter('method', 'lora')}",
                )
            four = four_bit(matrix, asked=parameter("method", "qlora"), gradients=True)
            parent, _, name = place.rpartition(".")
            setattr(decoder.model.get_submodule(parent), name, four)


def _adapted(decoder: Decoder) -> Iterator[tuple[str, LoraLayer]]:
    from peft.tuners.lora import LoraLayer

    for name, module in decoder.model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


@torch.no_grad()
def _change(layer: LoraLayer) -> Tensor:
    """What merging the adapter adds to the layer's weight, in fp32 and laid out as it is."""
    if not layer.use_dora.get(ADAPTER):
        change: Tensor = layer.get_delta_weight(ADAPTER).float()
        return change
    weight = layer.get_base_layer().weight
    before = weight.data
    weight.data = before.float()
    layer.merge()
    found: Tensor = weight.data - before.float()
    weight.data = before
    return found


def _peft() -> Any:
    try:
        import peft
    except ImportError as error:
        raise InputError(
            parameter("method"), expected="peft, for adapters", found=str(error), fix="pip install 'shortstack[lora]'"
        ) from error
    return peft
