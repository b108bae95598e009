"""The one walk over decoder layers, carrying a hidden stream for every shortened model that is asked for.

A shortened model is the set of layers it skips: the empty set is the model itself, {5} the model without layer 5, {6, 7} the
tail cut of an eight-layer model. All streams start together and part where the sets first differ, so a prefix that several
share is computed once. Leave-one-out over N layers costs N(N+1)/2 layer-forwards instead of N*N.

Layers come one after the other, and all batches pass a layer before any enters the next: a layer's weights are needed once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import Any, TypeVar

import torch
from torch import Tensor

from shortstack.architecture.anatomy import check_positions
from shortstack.decoder.layer_io import State, entered_by, hidden_of
from shortstack.decoder.wrapping import Layered
from shortstack.errors import ArchitectureError
from shortstack.machine.memory import available_memory

SkippedLayers = frozenset[int]
UNPRUNED: SkippedLayers = frozenset()
Batch = TypeVar("Batch")
STREAM_BYTES = 2 << 30  # hidden streams held at once; more batches are walked in turns
STACK_TOKENS = 2048  # streams of fewer tokens pass a layer together
Group = tuple[tuple[SkippedLayers, ...], State]  # sets whose streams have not parted yet, and their one stream


@dataclass
class WalkState:
    """How far one batch of token ids [batch, length] has come: its streams in groups, and the layer they enter next.

    number: which of many batches it is, for who walks them.
    """

    ids: Tensor
    groups: list[Group]
    layer: int = 0
    number: int = 0

    @property
    def hidden(self) -> dict[SkippedLayers, Tensor]:
        """The hidden states by skipped layers, [batch, length, width]; streams that never parted are one tensor."""
        return {skipped: state.hidden for together, state in self.groups for skipped in together}


Observer = Callable[[WalkState, int, Tensor, Tensor], None]


class _Arrived(Exception):
    """Raised inside a forward to leave it when the walk has gone as far as it should."""


class Decoder(Layered):
    """A loaded model whose layers streams pass one by one."""

    def walk(
        self, ids: Tensor, sets: Sequence[SkippedLayers] = (UNPRUNED,), *, until: int | None = None
    ) -> dict[SkippedLayers, Tensor]:
        """Compute the hidden states without each set of layers, after the last layer or before layer `until`.

        ids: [batch, length] token ids. Returns {skipped layers: [batch, length, width]}. Gradients flow as the caller has
        them enabled.
        """
        walk = self.enter(ids, sets)
        for _ in self.through([walk], range(len(self.layers) if until is None else until)):
            pass
        return walk.hidden

    def embed(self, ids: Tensor) -> Tensor:
        """Embed token ids into what enters layer 0, [batch, length, width]."""
        return self.enter(ids).hidden[UNPRUNED]

    def enter(self, ids: Tensor, sets: Sequence[SkippedLayers] = (UNPRUNED,)) -> WalkState:
        """Begin a walk before layer 0, which the embedded token ids enter."""
        check_positions(self, ids.shape[1], "length", fix="ask for fewer")
        self.check_direct()
        entered: list[State] = []

        def stop(_index: int, _forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            entered.append(State(hidden_of(args, kwargs), self._carried(args, kwargs)))
            raise _Arrived

        with suppress(_Arrived), self._wrapped(dict.fromkeys(range(len(self.layers)), stop)):
            self.model.base_model(input_ids=ids, use_cache=False)
        return WalkState(ids, [(tuple(dict.fromkeys(sets)), entered[0])])

    def through(
        self,
        walks: Sequence[WalkState],
        layers: Iterable[int],
        *,
        observe: Observer | None = None,
        on_forward: Callable[[int], None] = lambda _count: None,
    ) -> Iterator[int]:
        """Take every walk through these layers: all of them through one layer, then through the next.

        observe(walk, layer, before, after) sees the stream of each walk's first set of layers, [batch, length, width].
        on_forward is told how many streams have passed a layer. Yields a layer's number when all are through.
        """
        for layer in layers:
            with self.resident(layer):
                for walk in walks:
                    walk.groups = self._advance(walk, layer, observe, on_forward)
                    walk.layer = layer + 1
            yield layer

    def _advance(
        self, walk: WalkState, layer: int, observe: Observer | None, on_forward: Callable[[int], None]
    ) -> list[Group]:
        """Bring every stream of a walk through the layer, or around it."""
        first, form = walk.groups[0][0][0], self.forms()[layer]
        passing, entering = list[Group](), list[Group]()
        for together, before in walk.groups:
            skipping = tuple(skipped for skipped in together if layer in skipped)
            taking = tuple(skipped for skipped in together if layer not in skipped)
            entering += [(taking, before)] if taking else []
            # What a layer leaves for later ones is needed by those that skip it, too.
            (entering if form.fills else passing).extend([(skipping, before)] if skipping else [])
        groups = []
        after = self.step(walk.ids, layer, [before for _, before in entering], on_forward=on_forward)
        for (together, before), state in zip(entering, after, strict=True):
            taken = layer not in together[0]
            groups.append((together, state if taken else State(before.hidden, state.carried)))
            if observe and taken and first in together:
                observe(walk, layer, before.hidden, state.hidden)
        # The first set's group stays first.
        return sorted([*groups, *passing], key=lambda group: first not in group[0])

    def step(
        self,
        ids: Tensor,
        layer: int,
        states: Sequence[State],
        *,
        on_forward: Callable[[int], None] = lambda _count: None,
    ) -> list[State]:
        """Pass each state through the layer; masks, positions and the like are those that transformers makes for `ids`."""
        together = 1 if self._slots else max(1, STACK_TOKENS // ids.numel())
        stacks = [states[start : start + together] for start in range(0, len(states), together)]
        after = list[State]()
        for many, some in groupby(stacks, key=len):
            after += self._stacked(ids, layer, list(some), partial(on_forward, many))
        return after

    def _stacked(
        self, ids: Tensor, layer: int, stacks: Sequence[Sequence[State]], on_forward: Callable[[], None]
    ) -> list[State]:
        """Pass stacks of equally many states, each as one batch: what a layer makes of a sample depends on no other."""
        many = len(stacks[0])
        if many == 1:
            return self._each(ids, layer, (state for (state,) in stacks), on_forward)
        entering = (State(torch.cat([state.hidden for state in stack]), {}) for stack in stacks)
        left = self._each(ids.repeat(many, 1), layer, entering, on_forward)
        # Clones: who keeps one of them (what entered a layer, a trail) must not keep the whole stack.
        return [State(part.clone(), {}) for stack in left for part in stack.hidden.split(len(ids))]

    def _each(self, ids: Tensor, layer: int, states: Iterable[State], on_forward: Callable[[], None]) -> list[State]:
        """Pass one state after the other through the layer, inside one forward of the model."""
        after = list[State]()

        def visit(index: int, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            form = self.forms()[index]
            if index < layer:
                return form.of(State(hidden_of(args, kwargs), self._carried(args, kwargs)))
            for state in states if index == layer else ():
                entering = state.copy()
                given, named = entered_by(entering, args, kwargs)
                after.append(form.read(forward(*given, **named), entering).on(self.device))
                on_forward()
            raise _Arrived

        with suppress(_Arrived), self._wrapped(dict.fromkeys(range(len(self.layers)), visit)):
            self.model.base_model(input_ids=ids, use_cache=False)
        return after or list(states)  # untouched by a layer that text alone does not pass (cross-attention)

    def memory_batches(self, batches: Sequence[Batch], *, tokens: int, streams: int) -> list[Sequence[Batch]]:
        """Group batches, as many as their streams have room for: STREAM_BYTES, or a quarter of the memory there is.

        tokens: of the largest batch. streams: of each batch.
        """
        room = min(STREAM_BYTES, available_memory(str(self.device)) // 4)
        together = max(1, room // (self.stream_bytes(tokens) * streams))
        return [batches[start : start + together] for start in range(0, len(batches), together)]

    def check_direct(self) -> None:
        """Refuse a model that computes something between its layers."""
        self.forms()
        if self._gap is not None:
            loops = f"{self.anatomy.architecture} computes between its layers or loops over them: see layer {self._gap}"
            raise ArchitectureError(f"{loops}; choose layers by the metric reverse or name them, and do not heal it")


def layer_forwards(layers: int, sets: Sequence[SkippedLayers], *, filling: Set[int] = frozenset()) -> int:
    """Count the layer-forwards of a walk without these sets for one batch; who skips a `filling` layer runs it too.

    >>> layer_forwards(8, [UNPRUNED] + [frozenset({i}) for i in range(8)])
    36
    """
    forwards = 0
    for layer in range(layers):
        running = [skipped for skipped in sets if layer not in skipped or layer in filling]
        forwards += len({(skipped & frozenset(range(layer)), layer in skipped) for skipped in running})
    return forwards
