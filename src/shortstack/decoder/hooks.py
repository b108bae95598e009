"""Hooks on modules that are there for a while, and the linear layers they are put on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn

Recorded = dict[str, list[Tensor]]  # by the module's name, in the order of the calls


@contextmanager
def recorded_inputs(layer: nn.Module, names: Sequence[str]) -> Iterator[Recorded]:
    """While it lasts, the tensors that enter these modules are recorded."""
    recorded: Recorded = {}
    with ExitStack() as hooks:
        for name in names:

            def record(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], name: str = name) -> None:
                _append(recorded, name, args[0] if args else kwargs.get("hidden_states"))

            hooks.callback(layer.get_submodule(name).register_forward_pre_hook(record, with_kwargs=True).remove)
        yield recorded


@contextmanager
def recorded_outputs(layer: nn.Module, names: Sequence[str]) -> Iterator[Recorded]:
    """While it lasts, the tensors that leave these modules (the first, of several) are recorded."""
    recorded: Recorded = {}
    with ExitStack() as hooks:
        for name in names:

            def record(_module: nn.Module, _args: Any, output: Any, name: str = name) -> None:
                _append(recorded, name, output[0] if isinstance(output, tuple) else output)

            hooks.callback(layer.get_submodule(name).register_forward_hook(record).remove)
        yield recorded


def _append(recorded: Recorded, name: str, value: Any) -> None:
    if isinstance(value, Tensor):
        recorded.setdefault(name, []).append(value)


def linear_layers(layer: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers inside a decoder layer, by their names in it."""
    return {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}


def fused_experts(model: nn.Module) -> bool:
    """Whether matrices of several experts are one weight, which no linear layer holds."""
    others = (module for module in model.modules() if not isinstance(module, nn.Conv1d))
    return any(weight.dim() == 3 for module in others for weight in module.parameters(recurse=False))
