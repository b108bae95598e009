"""Hooks on modules that are there for a while, and the linear layers they are put on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

from torch import Tensor, nn


@contextmanager
def listening(layer: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """While it lasts, the tensors that enter these modules are collected under their names, in the order of the calls."""
    found: dict[str, list[Tensor]] = {}
    with ExitStack() as hooks:
        for name in names:

            def hear(_module: nn.Module, args: tuple[object, ...], kwargs: dict[str, object], name: str = name) -> None:
                first = args[0] if args else kwargs.get("hidden_states")
                if isinstance(first, Tensor):
                    found.setdefault(name, []).append(first)

            hooks.callback(layer.get_submodule(name).register_forward_pre_hook(hear, with_kwargs=True).remove)
        yield found


@contextmanager
def leaving(layer: nn.Module, names: Sequence[str]) -> Iterator[dict[str, list[Tensor]]]:
    """While it lasts, the tensors that leave these modules (the first, of several) are collected under their names."""
    found: dict[str, list[Tensor]] = {}
    with ExitStack() as hooks:
        for name in names:

            def hear(_module: nn.Module, _args: object, output: object, name: str = name) -> None:
                first = output[0] if isinstance(output, tuple) else output
                if isinstance(first, Tensor):
                    found.setdefault(name, []).append(first)

            hooks.callback(layer.get_submodule(name).register_forward_hook(hear).remove)
        yield found


def linear_layers(layer: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers inside a decoder layer, by their names in it."""
    return {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}
