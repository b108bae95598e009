"""Where a correction can be folded into a layer exactly: matrices whose product is simply added to the hidden states.

They are found by trying, not by name. In most decoders the feed-forward block's last matrix adds to the layer's output,
and attention's last matrix adds to the stream that enters the feed-forward block. Where both blocks run side by side, both
add to the output. Where a norm follows a block, no matrix of it does.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from shortstack.walk import Decoder, State

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.01}
TOKENS = 4  # that a layer is tried on
OUTPUT = ""  # the place where the layer's output is


@dataclass(frozen=True)
class Outlet:
    """A matrix whose product is added to the stream: what is at `place` = rest + inputs @ weight.T.

    name: the module, inside the layer. place: the module which that stream enters next, or OUTPUT. turned: the weight is
    kept as [inputs, width], as GPT-2 does.
    """

    name: str
    place: str = OUTPUT
    turned: bool = False

    def weight(self, layer: nn.Module) -> nn.Parameter:
        return layer.get_parameter(f"{self.name}.weight")

    def laid(self, change: Tensor) -> Tensor:
        """A change [width, inputs] as the weight is laid out, or back."""
        return change.T if self.turned else change


@torch.no_grad()
def find_outlets(decoder: Decoder, number: int) -> list[Outlet]:
    """The outlets of a layer whose weights are in memory, in the order they are called, at most one for each place.

    Each matrix as wide as the hidden states is changed at random: it is an outlet where what changed is exactly what went in
    times that change. Of several at one place the last is taken.
    """
    trial = _Trial(decoder, number)
    found = {outlet.place: outlet for outlet in map(trial.tried, trial.before.candidates) if outlet}
    return sorted(found.values(), key=lambda outlet: trial.before.order.index(outlet.name))


@dataclass(frozen=True)
class _Heard:
    """One pass through a layer: what entered each module that was called once, and the output, under OUTPUT.

    All in fp32 and as [tokens, numbers].
    """

    entered: Mapping[str, Tensor]
    order: Sequence[str]
    candidates: Sequence[Outlet]


class _Trial:
    """A few random hidden states through one layer."""

    def __init__(self, decoder: Decoder, number: int) -> None:
        self.decoder, self.number, self.layer = decoder, number, decoder.layers[number]
        embedding: Tensor = decoder.model.get_submodule(decoder.anatomy.embedding).weight
        self.width, self.random = embedding.shape[1], torch.Generator().manual_seed(0)
        self.ids = torch.arange(TOKENS, device=decoder.device)[None]
        decoder.forms()  # learnt by a pass through all layers, which would be heard, too
        self.state = State(self._draw((1, TOKENS, self.width)).to(decoder.device, embedding.dtype), {})
        self.before = self.heard()

    def _draw(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), generator=self.random)

    def heard(self) -> _Heard:
        names = [name for name, _ in self.layer.named_modules() if name]
        with listening(self.layer, names) as entered:
            after = self.decoder.step(self.ids, self.number, [self.state])[0].hidden
        once = {name: calls[0].float().flatten(0, -2) for name, calls in entered.items() if len(calls) == 1}
        candidates = [outlet for outlet in _wide(self.layer, self.width) if outlet.name in once]
        return _Heard(
            {**once, OUTPUT: after.float().flatten(0, -2)}, [name for name in entered if entered[name]], candidates
        )

    def tried(self, outlet: Outlet) -> Outlet | None:
        """The outlet with its place, if it has one."""
        weight = outlet.weight(self.layer)
        change = self._draw(outlet.laid(weight).shape).to(weight.device) * weight.float().std()
        expected = self.before.entered[outlet.name] @ change.T
        with changed_by(weight, outlet.laid(change)):
            after = self.heard()
        product = self.before.entered[outlet.name] @ outlet.laid(weight).float().T
        later = self.before.order[self.before.order.index(outlet.name) + 1 :]
        for place in (OUTPUT, *later):
            there, here = after.entered.get(place), self.before.entered.get(place)
            if there is None or here is None or here.shape != expected.shape:
                continue
            if self._close(there - here, expected) and (place == OUTPUT or self._is_stream(here - product)):
                return Outlet(outlet.name, place, outlet.turned)
        return None

    def _is_stream(self, rest: Tensor) -> bool:
        """Whether what a product was added to is what entered the layer, but for a bias."""
        bias = (rest - self.state.hidden[0].float()).mean(0)
        return self._close(rest - bias, self.state.hidden[0].float())

    def _close(self, found: Tensor, expected: Tensor) -> bool:
        return bool((found - expected).norm() <= TOLERANCE[self.state.hidden.dtype] * expected.norm())


def _wide(layer: nn.Module, width: int) -> Iterator[Outlet]:
    """Modules with a matrix that gives as many numbers as hidden states have."""
    for name, module in layer.named_modules():
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() == 2:
            turned = type(module).__name__ == "Conv1D"
            if weight.shape[turned] == width:
                yield Outlet(name, turned=turned)


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
def changed_by(weight: nn.Parameter, change: Tensor) -> Iterator[None]:
    """While it lasts, the weight is larger by `change`."""
    kept = weight.data
    weight.data = (kept.float() + change).to(kept.dtype)
    try:
        yield
    finally:
        weight.data = kept
