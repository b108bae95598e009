"""Parameters by part, multiply-accumulates and cache bytes of a model, counted without weights.

One forward on the meta device says it: torch's flop counter sees every matrix product, and transformers' own cache holds
what generation would hold. Nothing is tabled by architecture.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, DynamicOutputShapeException, FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode
from transformers.cache_utils import Cache

from shortstack.architecture import Anatomy
from shortstack.decoder.layer_io import fused_experts

if TYPE_CHECKING:
    from transformers import PreTrainedModel


VALUES_NEEDED = (DataDependentOutputException, DynamicOutputShapeException)


@dataclass(frozen=True)
class Parts:
    """Parameters by part; a tied head is counted in the embedding, once.

    parts: `embedding`, `layers.X` for each child X of the layers (norms among them together), `norm`, `head`, `other`.
    """

    total: int
    parts: Mapping[str, int]
    tied: bool


@dataclass(frozen=True)
class Macs:
    """Multiply-accumulates of a forward over `tokens` tokens, logits of every token included.

    total: every matrix product, as torch.utils.flop_counter sees it: attention over all pairs of tokens, masked or not.
    paper: the rule of arXiv 2411.15558, table 9: linear layers, and two for each number that leaves a norm; no attention
    scores. None where experts are fused into one weight, which that rule does not see.
    """

    tokens: int
    total: int
    paper: int | None

    @property
    def per_token(self) -> int:
        return self.total // self.tokens


@dataclass(frozen=True)
class CacheBytes:
    """The size of transformers' cache for one sequence: a fixed state, and what each token adds.

    per_token: while no sliding window is full. per_token_beyond: when all are.
    """

    fixed: int
    per_token: int
    per_token_beyond: int

    def to_dict(self) -> dict[str, Any]:
        return {"fixed_bytes": self.fixed, "bytes_per_token_beyond_windows": self.per_token_beyond}


def parts(model: PreTrainedModel, anatomy: Anatomy) -> Parts:
    """Return the parameters of a model by part; its weights may be on the meta device."""
    amounts: Counter[str] = Counter()
    norms = {name for name, module in model.named_modules() if _is_norm(module)}
    for name, parameter in model.named_parameters():  # what is shared comes once
        amounts[_part(name, anatomy, norms)] += parameter.numel()
    return Parts(amounts.total(), dict(amounts), anatomy.tied)


def _part(name: str, anatomy: Anatomy, norms: set[str]) -> str:
    module = name.rpartition(".")[0]
    if name.startswith(f"{anatomy.layers_path}."):
        return "layers.norms" if module in norms else f"layers.{name.removeprefix(anatomy.layers_path).split('.')[2]}"
    named = {anatomy.embedding: "embedding", anatomy.head: "head", anatomy.norm: "norm"}
    return named.get(module, "other")


def _is_norm(module: nn.Module) -> bool:
    return "norm" in type(module).__name__.lower() and not any(module.children())


def macs(model: PreTrainedModel, *, tokens: int) -> Macs | None:
    """Count the multiply-accumulates of one forward of a model on the meta device over `tokens` tokens of one sequence.

    None where the forward depends on values, which meta tensors do not have: experts routed by code of their own (dbrx).
    """
    seen: list[int] = []
    counter = FlopCounterMode(display=False)
    with ExitStack() as hooks:
        for module in model.modules():
            hooks.callback(module.register_forward_hook(_by_the_papers_rule(seen)).remove)
        try:
            with counter:
                _forward(model, tokens, use_cache=False)
        except VALUES_NEEDED:
            return None
    return Macs(tokens, counter.get_total_flops() // 2, None if fused_experts(model) else sum(seen))


def _by_the_papers_rule(seen: list[int]) -> Any:
    def hook(module: Any, _args: object, output: Any) -> None:
        first = output[0] if isinstance(output, tuple) else output
        if isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D":  # GPT-2's linear layer
            seen.append(first.numel() // first.shape[-1] * module.weight.numel())
        elif _is_norm(module):
            seen.append(2 * first.numel())

    return hook


def cache_bytes(model: PreTrainedModel) -> CacheBytes | None:
    """Count the cache bytes of a model on the meta device, in its weights' dtype, from forwards of two and three tokens.

    Recurrent layers hold a state of fixed size. Layers with a sliding window stop growing. What transformers caches counts:
    of DeepSeek's latent attention it is the keys and values, not the latent that other engines keep. None as for macs().
    """
    try:
        two, three = (_held(_forward(model, tokens, use_cache=True)) for tokens in (2, 3))
    except VALUES_NEEDED:
        return None
    added = [(after - before, window) for (before, window), (after, _) in zip(two, three, strict=True)]
    per_token = sum(nbytes for nbytes, _ in added)
    beyond = sum(nbytes for nbytes, window in added if window is None)
    return CacheBytes(sum(nbytes for nbytes, _ in two) - 2 * per_token, per_token, beyond)


def _held(output: Any) -> list[tuple[int, int | None]]:
    kept = {name: value for name, value in output.items() if name not in ("logits", "loss")}
    # A decoder's cache that leaves room for an encoder's holds one of its own kind.
    caches = [getattr(value, "self_attention_cache", value) for value in kept.values() if isinstance(value, Cache)]
    if not caches:
        return [(_size(kept), None)]
    return [(_size(vars(layer)), getattr(layer, "sliding_window", None)) for cache in caches for layer in cache.layers]


def _size(value: object) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in _tensors(value) if tensor.is_floating_point())


def _tensors(value: object) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, Sequence) and not isinstance(value, str):
        for item in value:
            yield from _tensors(item)
    elif type(value).__module__.startswith("transformers.") and hasattr(value, "__dict__"):
        yield from _tensors(vars(value))


@torch.no_grad()
def _forward(model: PreTrainedModel, tokens: int, *, use_cache: bool) -> Any:
    """Compute the shapes alone of a forward; experts as one product of each token's own, which needs no values to route."""
    if hasattr(model, "set_experts_implementation"):
        model.set_experts_implementation("batched_mm")
    with FakeTensorMode(allow_non_fake_inputs=True):  # transformers asks meta tensors for values, and fake ones not
        ids = torch.zeros(1, tokens, dtype=torch.long, device="meta")
        return model(input_ids=ids, use_cache=use_cache)
