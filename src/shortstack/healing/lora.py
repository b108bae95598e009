"""Low-rank adapters by peft, merged into the 16-bit weights at the end: LoRA, rsLoRA, DoRA, and QLoRA on 4-bit layers."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from shortstack.errors import InputError
from shortstack.healing.layer_choice import ChosenParts
from shortstack.machine.options import options

if TYPE_CHECKING:
    from peft.tuners.lora import LoraLayer
    from torch import Tensor, nn

    from shortstack.checkpoint import Checkpoint
    from shortstack.checkpoint.safetensors import StoredTensor
    from shortstack.decoder import Decoder
    from shortstack.healing.learner import Learner


ADAPTER = "default"


def adapter_rate(width: int) -> float:
    """Return a learning rate of adapters in a model with embeddings of that width, 15 * 5e-5 (2000 / width)^0.781.

    In two digits. Tinker's documentation has 5e-5 (2000 / width)^0.781 for Llama models trained whole (Thinking Machines,
    2025); adapters take 15 times that in short runs (Schulman et al., LoRA Without Regret, 2025). Studies know a healing by
    its options: another formula is another HealStep.code.

    >>> adapter_rate(576), adapter_rate(4096)
    (0.002, 0.00043)
    """
    return float(f"{15 * 5e-5 * (2000 / width) ** 0.781:.1e}")


@options
class LoraOptions:
    """Shape and place of adapters; the defaults are the paper's (Lu et al., 4.1)."""

    lora_r: int = Field(8, ge=1, description="Rank of adapters.")
    lora_alpha: float = Field(16.0, gt=0, description="LoRA scaling is alpha / r.")
    lora_dropout: float = Field(0.05, ge=0, lt=1, description="LoRA dropout.")
    target_modules: str | None = Field(
        None, description="Modules that get adapters: q_proj,v_proj. Default: all linear layers."
    )


@options
class Lora(ChosenParts, LoraOptions):
    """W + alpha / r B A, with A and B trained (Hu et al., arXiv 2106.09685), in every layer by default.

    The head trains whole with train_head or untie_embeddings.
    """

    name: ClassVar[str] = "lora"
    trains: ClassVar[str] = "low-rank adapters in every layer, merged at the end"
    paper: ClassVar[str] = "arXiv 2106.09685"
    needs: ClassVar[tuple[str, ...]] = ("peft",)
    variant: ClassVar[Mapping[str, bool]] = {}  # more arguments of peft.LoraConfig

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.train_last == 0:
            raise InputError("adapters need at least one layer; leave it out to train all", option="train_last")

    def learning_rate(self, checkpoint: Checkpoint) -> float:
        """Return that of adapters for this width; a head that trains whole beside them has the usual one."""
        return super().learning_rate(checkpoint) if self.trains_head(checkpoint) else adapter_rate(checkpoint.width)

    def prepare(self, checkpoint: Checkpoint, decoder: Decoder) -> Mapping[str, nn.Module]:
        """Put adapters in; return what of them trains, by name."""
        import peft

        self.untie(decoder)
        matrices = list(self._matrices(checkpoint, decoder))
        self._quantise(decoder, matrices)
        config = peft.LoraConfig(
            r=self.lora_r,
            lora_alpha=self.lora_alpha,
            lora_dropout=self.lora_dropout,
            target_modules=matrices,
            bias="none",
            **self.variant,
        )
        peft.inject_adapter_in_model(config, decoder.model)
        trained = {
            f"{name}.{kind}": part[ADAPTER]
            for name, layer in _adapted(decoder)
            for kind in ("lora_A", "lora_B", "lora_magnitude_vector")
            if ADAPTER in (part := getattr(layer, kind))
        }
        if self.trains_head(checkpoint):
            trained[decoder.anatomy.head] = decoder.model.get_submodule(decoder.anatomy.head)
        return trained

    def _quantise(self, decoder: Decoder, matrices: Sequence[str]) -> None:
        """Do nothing; QLoRA turns the matrices into 4 bits."""

    def _matrices(self, checkpoint: Checkpoint, decoder: Decoder) -> Iterator[str]:
        from torch import nn

        wanted = {name.strip() for name in self.target_modules.split(",")} if self.target_modules else None
        there = {
            f"{decoder.anatomy.layer(layer)}.{name}": name.rpartition(".")[2]
            for layer in self.trained_layers(checkpoint)
            for name, module in decoder.layers[layer].named_modules()
            if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"
        }
        unknown = sorted((wanted or set()) - set(there.values()))
        if unknown or not there:
            names = ", ".join(sorted(set(there.values())))
            message = f"no {', '.join(unknown)}; give some of {names}" if there else "the layers have no matrices"
            raise InputError(message, option="target_modules")
        yield from (name for name, kind in there.items() if wanted is None or kind in wanted)

    def tensors(self, checkpoint: Checkpoint, learner: Learner) -> Iterator[StoredTensor]:
        """Add the adapters to the stored weights in fp32; yield those, and the head where it trained."""
        from shortstack.checkpoint.weights import Edit, edited_tensors, stored_tensors

        for name, change in self._changes(checkpoint, learner.decoder):
            yield from edited_tensors(checkpoint, {f"{name}.weight": Edit(change.cpu())}).values()
        head = f"{learner.decoder.anatomy.head}."  # its weight, and its bias where it has one
        trained = {name: weight for name, weight in learner.trained_tensors().items() if name.startswith(head)}
        yield from stored_tensors(checkpoint, trained).values()

    def _changes(self, _checkpoint: Checkpoint, decoder: Decoder) -> Iterator[tuple[str, Tensor]]:
        """Return the update that merging adds to each matrix, in fp32 and in the matrix's layout, by its name."""
        for name, layer in _adapted(decoder):
            yield name, layer.get_delta_weight(ADAPTER).detach().float()


@options
class RsLora(Lora):
    """alpha / sqrt(r) instead of alpha / r (Kalajdzievski, arXiv 2312.03732)."""

    name: ClassVar[str] = "rslora"
    trains: ClassVar[str] = "LoRA scaled by alpha / sqrt(r)"
    paper: ClassVar[str] = "arXiv 2312.03732"
    variant: ClassVar[Mapping[str, bool]] = {"use_rslora": True}


@options
class DoRA(Lora):
    """The direction of W + alpha / r B A, with a trained length for each row (Liu et al., arXiv 2402.09353)."""

    name: ClassVar[str] = "dora"
    trains: ClassVar[str] = "LoRA with a trained magnitude per output row"
    paper: ClassVar[str] = "arXiv 2402.09353"
    variant: ClassVar[Mapping[str, bool]] = {"use_dora": True}

    def prepare(self, checkpoint: Checkpoint, decoder: Decoder) -> Mapping[str, nn.Module]:
        """Prepare as LoRA does, with the lengths of the stored rows: what a decoder computes in may have rounded them."""
        trained = super().prepare(checkpoint, decoder)
        for _, layer, _ in _exact(checkpoint, decoder):
            layer.lora_magnitude_vector[ADAPTER].update_layer(
                base_layer=layer.get_base_layer(),
                lora_A=layer.lora_A[ADAPTER].weight,
                lora_B=layer.lora_B[ADAPTER].weight,
                scaling=layer.scaling[ADAPTER],
            )
        return trained

    def _changes(self, checkpoint: Checkpoint, decoder: Decoder) -> Iterator[tuple[str, Tensor]]:
        import torch

        for name, layer, weight in _exact(checkpoint, decoder):
            before = weight.data.clone()
            with torch.no_grad():
                layer.merge()
            yield name, weight.data - before


@options
class QLora(Lora):
    """LoRA beside matrices held in 4 bits, nf4 with double quantisation (Dettmers et al., arXiv 2305.14314).

    What is written is the 16-bit weights with the adapters added.
    """

    name: ClassVar[str] = "qlora"
    trains: ClassVar[str] = "LoRA on base weights quantised to 4 bits"
    paper: ClassVar[str] = "arXiv 2305.14314"
    needs: ClassVar[tuple[str, ...]] = ("peft", "bitsandbytes")

    def _quantise(self, decoder: Decoder, matrices: Sequence[str]) -> None:
        from torch import nn

        from shortstack.decoder.quantisation import four_bit

        for place in matrices:
            matrix = decoder.model.get_submodule(place)
            if not isinstance(matrix, nn.Linear):
                message = f"qlora takes linear layers, and {place} is a {type(matrix).__name__}; use lora"
                raise InputError(message, option="method")
            four = four_bit(matrix, needed_by="qlora", gradients=True)
            parent, _, name = place.rpartition(".")
            setattr(decoder.model.get_submodule(parent), name, four)


def _adapted(decoder: Decoder) -> Iterator[tuple[str, LoraLayer]]:
    from peft.tuners.lora import LoraLayer

    for name, module in decoder.model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def _exact(checkpoint: Checkpoint, decoder: Decoder) -> Iterator[tuple[str, LoraLayer, nn.Parameter]]:
    """Iterate over the adapted matrices; each has its stored weight in float32 until the next is asked for."""
    from shortstack.checkpoint.weights import exact_weights

    layers = {f"{name}.weight": (name, layer) for name, layer in _adapted(decoder)}
    for place, exact in exact_weights(checkpoint, layers):
        name, layer = layers[place]
        weight = layer.get_base_layer().weight
        original, weight.data = weight.data, exact.to(weight.device)
        yield name, layer, weight
        weight.data = original
