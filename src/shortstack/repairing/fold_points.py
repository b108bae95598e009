"""Where a correction can be folded into a layer exactly: weights whose product is simply added to the hidden states.

They are found by trying, not by name. In most decoders the feed-forward block's last matrix adds to the layer's output,
and attention's last matrix adds to the stream that enters the feed-forward block. Where both blocks run side by side, both
add to the output. Where a norm follows a block, the norm's own weight can change channel by channel. Where a router mixes
experts, their last matrices can be scaled, all by one number.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from shortstack.checkpoint.weights import Edit
from shortstack.decoder import Decoder
from shortstack.decoder.layer_io import Recorded, State, recorded_inputs, recorded_outputs
from shortstack.repairing.ridge import ChannelRegression, MatrixRegression, Regression, ScaleRegression

TOLERANCE = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.01}
TOKENS = 4  # that a layer is tried on
OUTPUT = ""  # the place where the layer's output is
INSTEAD = "leave repair out, and select layers by a metric"
TRIED_SCALE = -1.5  # exact in every dtype, and no rectifier hides it as a positive factor would


@dataclass(frozen=True)
class FoldPoint(ABC):
    """A weight whose product is added to the stream: what is at `place` = rest + what `module` gives.

    name: the weight's, inside the layer, as results tell it. place: the module which that stream enters next, or OUTPUT.
    """

    name: str
    place: str = OUTPUT

    kind: ClassVar[str]
    regression: ClassVar[type[Regression]]

    @property
    def module(self) -> str:
        """The module whose output is what is added."""
        return self.name

    @abstractmethod
    def recorded(self, layer: nn.Module) -> AbstractContextManager[list[Tensor]]:
        """Record, while it lasts, what a change is multiplied with, [..., d] of each pass."""

    @abstractmethod
    def product(self, inputs: Tensor, change: Tensor) -> Tensor:
        """Return what a change adds at the place, [..., width] in fp32, given the recorded inputs."""

    @abstractmethod
    def edits(self, change: Tensor) -> dict[str, Edit]:
        """Return the edit of each parameter of the layer that a change touches."""

    @abstractmethod
    def drawn(self, layer: nn.Module, draw: Callable[[Sequence[int]], Tensor]) -> Tensor:
        """Return a change to try, large enough to be seen."""

    @contextmanager
    def changed(self, layer: nn.Module, change: Tensor) -> Iterator[None]:
        """Make the change in the layer while it lasts."""
        with ExitStack() as kept:
            for name, edit in self.edits(change).items():
                kept.enter_context(_edited(layer.get_parameter(name), edit))
            yield


@dataclass(frozen=True)
class Matrix(FoldPoint):
    """The last matrix of a block; its change is [width, inputs]. turned: the weight is [inputs, width], as GPT-2's is."""

    turned: bool = False
    kind = "matrix"
    regression = MatrixRegression

    @contextmanager
    def recorded(self, layer: nn.Module) -> Iterator[list[Tensor]]:
        with recorded_inputs(layer, [self.name]) as entered:
            yield entered.setdefault(self.name, [])

    def product(self, inputs: Tensor, change: Tensor) -> Tensor:
        return inputs.float() @ change.T

    def edits(self, change: Tensor) -> dict[str, Edit]:
        return {f"{self.name}.weight": Edit(added=change.T if self.turned else change)}

    def drawn(self, layer: nn.Module, draw: Callable[[Sequence[int]], Tensor]) -> Tensor:
        weight = layer.get_parameter(f"{self.name}.weight")
        return draw(weight.shape[::-1] if self.turned else weight.shape).to(weight.device) * weight.float().std()

    @classmethod
    def candidates(cls, layer: nn.Module, width: int) -> Iterator[Matrix]:
        """Yield modules with a matrix that gives as many numbers as hidden states have."""
        for name, module in layer.named_modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and weight.dim() == 2:
                turned = type(module).__name__ == "Conv1D"
                if weight.shape[turned] == width:
                    yield cls(name, turned=turned)


@dataclass(frozen=True)
class Diagonal(FoldPoint):
    """The weight of a norm behind a block, [width]: it multiplies the normed hidden states channel by channel."""

    kind = "diagonal"
    regression = ChannelRegression

    @contextmanager
    def recorded(self, layer: nn.Module) -> Iterator[list[Tensor]]:
        norm, inputs = layer.get_submodule(self.name), list[Tensor]()
        twin = copy.deepcopy(norm).float()

        def record(_module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            floats = {name: _float(value) for name, value in kwargs.items()}
            inputs.append(_normed(twin, [_float(value) for value in args], floats))

        with ExitStack() as hooks:
            hooks.callback(norm.register_forward_pre_hook(record, with_kwargs=True).remove)
            yield inputs

    def product(self, inputs: Tensor, change: Tensor) -> Tensor:
        return inputs * change

    def edits(self, change: Tensor) -> dict[str, Edit]:
        return {f"{self.name}.weight": Edit(added=change)}

    def drawn(self, layer: nn.Module, draw: Callable[[Sequence[int]], Tensor]) -> Tensor:
        weight = layer.get_parameter(f"{self.name}.weight")
        return draw(weight.shape).to(weight.device) * (1 + weight.float().square().mean().sqrt())

    @classmethod
    def candidates(cls, layer: nn.Module, width: int) -> Iterator[Diagonal]:
        """Yield modules whose weight is one number for each channel."""
        for name, module in layer.named_modules():
            weight = getattr(module, "weight", None)
            if isinstance(weight, Tensor) and weight.shape == (width,):
                yield cls(name)


@dataclass(frozen=True)
class Scalar(FoldPoint):
    """The last matrices of all experts that a router mixes: scaled by one number, the mixture is.

    name: the parameter that holds them. mixing: the module whose output the mixture is.
    """

    mixing: str = ""
    kind = "scalar"
    regression = ScaleRegression

    @property
    def module(self) -> str:
        return self.mixing

    @contextmanager
    def recorded(self, layer: nn.Module) -> Iterator[list[Tensor]]:
        with recorded_outputs(layer, [self.mixing]) as left:
            yield left.setdefault(self.mixing, [])

    def product(self, inputs: Tensor, change: Tensor) -> Tensor:
        return inputs.float() * change

    def edits(self, change: Tensor) -> dict[str, Edit]:
        return {self.name: Edit(factor=1 + float(change))}

    def drawn(self, layer: nn.Module, draw: Callable[[Sequence[int]], Tensor]) -> Tensor:
        return torch.tensor(TRIED_SCALE)

    @classmethod
    def candidates(cls, layer: nn.Module, width: int) -> Iterator[Scalar]:
        """Yield parameters that hold a matrix for each expert, with every module around them that could give the mixture."""
        for name, weight in layer.named_parameters():
            holder = name.rpartition(".")[0] if weight.dim() == 3 else ""
            while holder:
                yield cls(name, mixing=holder)
                holder = holder.rpartition(".")[0]


def check_refittable(decoder: Decoder) -> None:
    """Refuse a model whose layers cannot be refitted, before it is walked."""
    decoder.check_in_one_place("to be refitted")
    decoder.check_bare(INSTEAD)
    decoder.check_direct()


@torch.no_grad()
def find_fold_points(decoder: Decoder, number: int) -> list[FoldPoint]:
    """Find the fold points of a layer whose weights are in memory, in the order they are called, at most one for each place.

    Each weight that could be one is changed: it is one where what changed is exactly the change's product with what was
    recorded. Matrices are tried first, then the weights of norms, then those of experts, until one adds to the layer's
    output. Where several of a kind add at one place, the last is taken.
    """
    points: dict[str, FoldPoint] = {}
    trial = _Trial(decoder, number)
    for kind in (Matrix, Diagonal, Scalar):
        if OUTPUT not in points:
            points = {point.place: point for point in trial.tried(kind.candidates(trial.layer, trial.width))} | points
    return sorted(points.values(), key=lambda point: trial.order.index(point.module))


@dataclass(frozen=True)
class _Pass:
    """One pass through a layer: what entered and left each module that was called once, and the output, under OUTPUT.

    All in fp32 and as [tokens, numbers].
    """

    entered: Mapping[str, Tensor]
    left: Mapping[str, Tensor]


class _Trial:
    def __init__(self, decoder: Decoder, number: int) -> None:
        self.decoder, self.number, self.layer = decoder, number, decoder.layers[number]
        self.random, self.ids = torch.Generator().manual_seed(0), torch.arange(TOKENS, device=decoder.device)[None]
        entering = decoder.embed(self.ids)  # as wide as what enters layers, which embeddings may not be
        self.width = entering.shape[-1]
        self.state = State(self._draw(entering.shape).to(entering), {})
        self.order = list[str]()  # of the modules, as they are called
        self.before = self._passed()

    def _draw(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(tuple(shape), generator=self.random)

    def _passed(self) -> _Pass:
        names = [name for name, _ in self.layer.named_modules() if name]
        with recorded_inputs(self.layer, names) as entered, recorded_outputs(self.layer, names) as left:
            after = self.decoder.step(self.ids, self.number, [self.state])[0].hidden
        self.order = list(entered)
        return _Pass({**_once(entered), OUTPUT: after.float().flatten(0, -2)}, _once(left))

    def tried(self, candidates: Iterator[FoldPoint]) -> Iterator[FoldPoint]:
        with ExitStack() as hooks:
            recording = [(point, hooks.enter_context(point.recorded(self.layer))) for point in candidates]
            self._passed()
        for point, inputs in recording:
            if len(inputs) == 1 and {point.module} <= self.before.entered.keys() & self.before.left.keys():
                place = self._place(point, inputs[0].flatten(0, -2))
                if place is not None:
                    yield replace(point, place=place)

    def _place(self, point: FoldPoint, inputs: Tensor) -> str | None:
        change = point.drawn(self.layer, self._draw)
        change = change * self._gain(point.product(inputs, change))
        expected = point.product(inputs, change)
        with point.changed(self.layer, change):
            after = self._passed()
        added = self.before.left[point.module]
        for place in (*self.order[self.order.index(point.module) + 1 :], OUTPUT):
            there, here = after.entered.get(place), self.before.entered.get(place)
            if there is None or here is None or here.shape != expected.shape:
                continue
            if self._close(there - here, expected) and (place == OUTPUT or self._is_stream(here - added)):
                return place
        return None

    def _gain(self, product: Tensor) -> float:
        """Return the factor that lifts a product to the size of the stream: a 16-bit sum loses much smaller ones."""
        size = product.norm()
        return max(1.0, float(self.state.hidden.float().norm() / size)) if size > 0 else 1.0

    def _is_stream(self, rest: Tensor) -> bool:
        """Return whether what a product was added to is what entered the layer, but for a bias."""
        entered = self.state.hidden.float().flatten(0, -2)
        return rest.shape == entered.shape and self._close(rest - (rest - entered).mean(0), entered)

    def _close(self, value: Tensor, expected: Tensor) -> bool:
        return bool((value - expected).norm() <= TOLERANCE[self.state.hidden.dtype] * expected.norm())


def _once(calls: Recorded) -> dict[str, Tensor]:
    """Return the recorded tensors of modules that were called once, in fp32 and as [tokens, numbers]."""
    alone = {name: tensors[0] for name, tensors in calls.items() if len(tensors) == 1}
    # A router's tensor may not have a dimension of tokens.
    return {name: tensor.float().flatten(0, -2) for name, tensor in alone.items() if tensor.dim() > 1}


def _normed(norm: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> Tensor:
    """Return what a norm's weight multiplies: its output at weights of 1 less that at 0, without whatever is added."""
    weight = norm.get_parameter("weight")
    given = []
    for value in (1.0, 0.0):
        weight.data.fill_(value)
        given.append(norm.forward(*args, **kwargs))  # not norm(...): the copy has the hooks of what it was copied from
    return given[0] - given[1]  # type: ignore[no-any-return]


def _float(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.is_floating_point() else value


@contextmanager
def _edited(weight: nn.Parameter, edit: Edit) -> Iterator[None]:
    kept = weight.data
    weight.data = edit.of(kept).to(kept.dtype)
    try:
        yield
    finally:
        weight.data = kept
