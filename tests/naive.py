"""The papers' formulas as one would first write them: whole models, whole logits, one forward for each removed layer.

Each function takes a checkpoint directory and token ids [samples, length], and gives one number per layer, or per window.
"""

from __future__ import annotations

import copy
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedModel

from zoo import pass_over

LAYERS = 8


def load(directory: Path) -> PreTrainedModel:
    return copy.deepcopy(_loaded(directory))


@functools.cache
def _loaded(directory: Path) -> PreTrainedModel:
    return AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()


def stack(model: PreTrainedModel) -> tuple[str, torch.nn.ModuleList]:
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.ModuleList) and len(module) == LAYERS
    }
    path = min(found, key=len)
    return path, found[path]


def logits_without(directory: Path, ids: Tensor, removed: Sequence[int]) -> Tensor:
    return _logits_without(directory, ids, frozenset(removed))


@functools.lru_cache(2000)
@torch.no_grad()
def _logits_without(directory: Path, ids: Tensor, removed: frozenset[int]) -> Tensor:
    model = load(directory)
    pass_over(model, stack(model)[0], removed)
    return model(input_ids=ids, use_cache=False).logits


def losses(directory: Path, ids: Tensor, sets: Sequence[Sequence[int]]) -> list[float]:
    found = [logits_without(directory, ids, removed)[:, :-1] for removed in sets]
    return [float(torch.nn.functional.cross_entropy(some.flatten(0, 1), ids[:, 1:].flatten())) for some in found]


def divergences(directory: Path, ids: Tensor, sets: Sequence[Sequence[int]]) -> list[float]:
    whole = logits_without(directory, ids, [])[:, :-1].double().softmax(-1)
    found = []
    for removed in sets:
        other = logits_without(directory, ids, removed)[:, :-1].double().softmax(-1)
        found.append(float((whole * (whole / other).log()).sum(-1).mean()))
    return found


@torch.no_grad()
def hidden_states(directory: Path, ids: Tensor) -> list[Tensor]:
    """The input of each layer, and the output of the last: N + 1 tensors."""
    model = load(directory)
    entering, leaving = [], []

    def hook(_module, args, kwargs, output):
        entering.append(args[0] if args else kwargs["hidden_states"])
        leaving.append(output[0] if isinstance(output, tuple) else output)

    for layer in stack(model)[1]:
        layer.register_forward_hook(hook, with_kwargs=True)
    model(input_ids=ids, use_cache=False)
    return [*entering, leaving[-1]]


def angle(directory: Path, ids: Tensor, n: int, of: slice) -> list[float]:
    """of: the tokens that count."""
    states = hidden_states(directory, ids)
    found = []
    for start in range(LAYERS - n + 1):
        cosines = torch.nn.functional.cosine_similarity(states[start], states[start + n], dim=-1)
        found.append(float((torch.arccos(cosines) / math.pi)[:, of].mean()))
    return found


def influence(directory: Path, ids: Tensor) -> list[float]:
    states = hidden_states(directory, ids)
    return [
        float((1 - torch.nn.functional.cosine_similarity(a, b, dim=-1)).mean()) for a, b in itertools.pairwise(states)
    ]


def magnitude_of_change(directory: Path, ids: Tensor) -> list[float]:
    states = hidden_states(directory, ids)
    return [float(((b - a).norm(dim=-1) / b.norm(dim=-1)).mean()) for a, b in itertools.pairwise(states)]


def stored_layers(directory: Path) -> list[dict[str, Tensor]]:
    tensors = load_file(directory / "model.safetensors")
    path = stack(load(directory))[0]
    return [{name: t for name, t in tensors.items() if f"{path}.{layer}." in f"{name}"} for layer in range(LAYERS)]


def norms(directory: Path, p: int) -> list[float]:
    return [
        float(sum(torch.linalg.vector_norm(weight, p) for weight in layer.values() if weight.dim() >= 2))
        for layer in stored_layers(directory)
    ]


def gradients(directory: Path, ids: Tensor) -> list[dict[str, tuple[Tensor, Tensor]]]:
    """(weight, gradient of the mean loss) of every parameter of every layer, by autograd through the whole model."""
    model = load(directory)
    model(input_ids=ids, labels=ids, use_cache=False).loss.backward()
    return [
        {name: (w.detach(), w.grad) for name, w in layer.named_parameters() if w.grad is not None}
        for layer in stack(model)[1]
    ]


def taylor(directory: Path, ids: Tensor) -> list[float]:
    return [
        sum(float((w * g).abs().sum()) for w, g in layer.values() if w.dim() >= 2)
        for layer in gradients(directory, ids)
    ]


def gradient_norm(directory: Path, ids: Tensor) -> list[float]:
    return [
        math.sqrt(sum(float((g**2).sum()) for w, g in layer.values() if w.dim() >= 2))
        for layer in gradients(directory, ids)
    ]


LAST, EVERY = slice(-1, None), slice(None)
ONE_BY_ONE = [[layer] for layer in range(LAYERS)]
# The walked and weighed metrics; random and reverse have no formula to be checked against but their definition.
METRICS: dict[str, Callable[[Path, Tensor], list[float]]] = {
    "magnitude-l1": lambda directory, _ids: norms(directory, 1),
    "magnitude-l2": lambda directory, _ids: norms(directory, 2),
    "taylor": taylor,
    "gradient": gradient_norm,
    "ppl": lambda directory, ids: [math.exp(loss) for loss in losses(directory, ids, ONE_BY_ONE)],
    "kl": lambda directory, ids: divergences(directory, ids, ONE_BY_ONE),
    "bi": influence,
    "angular": lambda directory, ids: angle(directory, ids, 1, LAST),
    "angular-mean": lambda directory, ids: angle(directory, ids, 1, EVERY),
    "relative-magnitude": magnitude_of_change,
}


def windows(n: int) -> list[list[int]]:
    return [list(range(start, start + n)) for start in range(LAYERS - n + 1)]


WINDOWS: dict[str, Callable[[Path, Tensor, int], list[float]]] = {
    "ppl": lambda directory, ids, n: [math.exp(loss) for loss in losses(directory, ids, windows(n))],
    "kl": lambda directory, ids, n: divergences(directory, ids, windows(n)),
    "angular": lambda directory, ids, n: angle(directory, ids, n, LAST),
    "angular-mean": lambda directory, ids, n: angle(directory, ids, n, EVERY),
}
