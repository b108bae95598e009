"""The state that decoder layers pass on, and how, learnt from one forward; and hooks that record a layer's modules."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from copy import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

Recorded = dict[str, list[Tensor]]  # by the module's name, in the order of the calls
Slot = int | str  # of a layer's inputs: a position after the hidden states, or a keyword


@dataclass(frozen=True)
class State:
    """The state between two layers: hidden states, and whatever else some architectures carry along.

    carried: input slot of a layer -> value (zaya's router states, the token selection that GLM's layers share), or a
    dictionary that layers fill for later ones (the keys and values that Gemma 3n's last layers share).
    """

    hidden: Tensor
    carried: Mapping[Slot, Any]

    def copy(self) -> State:
        """Copy the state with dictionaries of its own, for a layer to fill."""
        return State(
            self.hidden,
            {slot: copy(value) if isinstance(value, MutableMapping) else value for slot, value in self.carried.items()},
        )

    def on(self, device: torch.device) -> State:
        """Return the state with its hidden states on a device, where those of other layers are, too."""
        return self if self.hidden.device == device else State(self.hidden.to(device), self.carried)


@dataclass(frozen=True)
class Form:
    """How a layer returns its state: bare, or first of a sequence whose other items are `rest`.

    carries: position among the outputs -> slot of the next layer's inputs that it goes to.
    fills: slots of dictionaries that the layer writes to.
    """

    kind: type | None
    rest: tuple[Any, ...]
    carries: Mapping[int, Slot]
    fills: frozenset[Slot]

    def of(self, state: State) -> Any:
        """Give a state the form in which the layer would have returned it."""
        if self.kind is None:
            return state.hidden
        rest = [
            state.carried.get(self.carries[place]) if place in self.carries else value
            for place, value in enumerate(self.rest, start=1)
        ]
        return self.kind((state.hidden, *rest))

    def read(self, output: Any, before: State) -> State:
        """Read the state in what the layer returned."""
        if self.kind is None:
            return State(output, before.carried)
        return State(output[0], {**before.carried, **{slot: output[place] for place, slot in self.carries.items()}})


@dataclass(frozen=True)
class Call:
    """One layer's forward, as it was seen: inputs beside the hidden states, output, and the dictionaries it wrote to."""

    layer: int
    hidden: Tensor
    inputs: Mapping[Slot, Any]
    output: Any
    filled: frozenset[Slot]

    def form(self, carries: Mapping[int, Slot]) -> Form:
        if not isinstance(self.output, tuple | list):
            return Form(None, (), {}, self.filled)
        here = {place: slot for place, slot in carries.items() if place < len(self.output)}
        return Form(type(self.output), tuple(self.output[1:]), here, self.filled)


def forms_of(calls: Sequence[Call], layers: int) -> list[Form]:
    """Learn the form of each layer from one forward through all; one that was not called (cross-attention) is bare."""
    carries: dict[int, Slot] = {}
    for call, following in pairwise(calls):
        for place, value in enumerate(call.output if isinstance(call.output, tuple | list) else ()):
            for slot, given in following.inputs.items():
                if place and value is not None and given is value:
                    carries[place] = slot
    forms = {call.layer: call.form(carries) for call in calls}
    return [forms.get(layer, Form(None, (), {}, frozenset())) for layer in range(layers)]


def first_gap(calls: Sequence[Call]) -> int | None:
    """Find the first layer that is not entered by what the one before it returned, or is not called in order."""
    for call, following in pairwise(calls):
        left, entered = call.output[0] if isinstance(call.output, tuple | list) else call.output, following.hidden
        # NaN is equal to NaN: what is wrong with the weights is for the caller to see.
        same = left.shape == entered.shape and ((left == entered) | (left.isnan() & entered.isnan())).all()
        if not same or following.layer <= call.layer:
            return following.layer
    return None


def hidden_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    hidden: Tensor = args[0] if args else kwargs["hidden_states"]
    return hidden


def inputs_of(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[Slot, Any]:
    """Collect a layer's inputs beside the hidden states."""
    named: dict[Slot, Any] = {name: value for name, value in kwargs.items() if name != "hidden_states"}
    return {**dict(enumerate(args[1:], start=1)), **named}


def entered_by(
    state: State, args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Put a state into the inputs of a layer, in place of the one transformers passed."""
    values = {"hidden_states": state.hidden, **state.carried}
    rest = (state.carried.get(place, value) for place, value in enumerate(args) if place)
    named = {name: values.get(name, value) for name, value in kwargs.items()}
    return ((state.hidden, *rest) if args else ()), named


def recorded_inputs(layer: nn.Module, names: Sequence[str]) -> AbstractContextManager[Recorded]:
    """Record, while it lasts, the tensors that enter these modules."""
    entering = nn.Module.register_forward_pre_hook
    return _recorded(layer, names, entering, lambda args, kwargs: args[0] if args else kwargs.get("hidden_states"))


def recorded_outputs(layer: nn.Module, names: Sequence[str]) -> AbstractContextManager[Recorded]:
    """Record, while it lasts, the tensors that leave these modules (the first, of several)."""
    leaving = nn.Module.register_forward_hook
    return _recorded(layer, names, leaving, lambda _args, _kwargs, left: left[0] if isinstance(left, tuple) else left)


@contextmanager
def _recorded(
    layer: nn.Module, names: Sequence[str], register: Callable[..., Any], of: Callable[..., Any]
) -> Iterator[Recorded]:
    recorded: Recorded = {}
    with ExitStack() as hooks:
        for name in names:

            def record(_module: nn.Module, *call: Any, name: str = name) -> None:
                value = of(*call)
                if isinstance(value, Tensor):
                    recorded.setdefault(name, []).append(value)

            hooks.callback(register(layer.get_submodule(name), record, with_kwargs=True).remove)
        yield recorded


def linear_layers(layer: nn.Module) -> dict[str, nn.Linear]:
    """Find the linear layers inside a decoder layer, by their names in it."""
    return {name: module for name, module in layer.named_modules() if isinstance(module, nn.Linear)}


def fused_experts(model: nn.Module) -> bool:
    """Say whether matrices of several experts are one weight, which no linear layer holds."""
    others = (module for module in model.modules() if not isinstance(module, nn.Conv1d))
    return any(weight.dim() == 3 for module in others for weight in module.parameters(recurse=False))
