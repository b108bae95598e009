"""The one walk over decoder layers, carrying a hidden stream for every way through them.

A *route* is the set of layers it skips: the empty route is the model itself, {5} the model without layer 5, {6, 7} the
tail cut of an eight-layer model. All routes start together and part where they first differ, so a prefix that several
share is computed once. Leave-one-out over N layers costs N(N+1)/2 layer-forwards instead of N*N.

Layers come one after the other, and all batches pass a layer before any enters the next: a layer's weights are needed once.
A layer runs inside transformers' own forward, whose other layers are passed over, so masks, rotary embeddings and per-layer
arguments are the library's, whatever the architecture.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping, Sequence, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from itertools import groupby
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor, nn

from shortstack.anatomy import Anatomy
from shortstack.checkpoint import Checkpoint
from shortstack.devices import arithmetic, pick_device
from shortstack.errors import ArchitectureError, InputError
from shortstack.handovers import Call, Form, Slot, State, entered_by, first_gap, forms_of, hidden_of, inputs_of
from shortstack.memory import available_memory
from shortstack.streaming import LayerWeights, must_stream

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Route = frozenset[int]
UNPRUNED: Route = frozenset()
Batch = TypeVar("Batch")
Observer = Callable[[int, Tensor, Tensor], None]
BATCH_TOKENS = 2048  # of a batch that passes the layers
STREAM_BYTES = 2 << 30  # hidden streams held at once; more batches are walked in turns
STACK_TOKENS = 2048  # streams of fewer tokens pass a layer together
# fp32 logits that exist at once, on an accelerator and on a CPU: there below the size from which malloc maps fresh pages
LOGIT_BYTES = (512 << 20, 28 << 20)


Group = tuple[tuple[Route, ...], State]  # routes that have not parted yet, and what they carry


@dataclass
class Front:
    """How far one batch of token ids [batch, length] has come: the groups of its routes, and the layer they enter next."""

    ids: Tensor
    groups: list[Group]
    layer: int = 0

    @property
    def arrived(self) -> dict[Route, Tensor]:
        """The hidden states of every route, [batch, length, width]; routes that never parted share one tensor."""
        return {route: state.hidden for routes, state in self.groups for route in routes}


def _nothing(_count: int) -> None:
    """What is called where nobody listens."""


class _Arrived(Exception):
    """Raised inside a forward to leave it when the walk has gone as far as it should."""


class Decoder:
    """A loaded model as its layers and what surrounds them; the only place that wraps a layer's forward."""

    def __init__(self, model: PreTrainedModel, anatomy: Anatomy, weights: LayerWeights | None = None) -> None:
        """weights: brings the layers' weights one by one; without it they are all there."""
        self.model, self.anatomy, self.weights = model, anatomy, weights
        self.positions = _learned_positions(model, anatomy)
        self.layers: list[nn.Module] = list(model.get_submodule(anatomy.layers_path).children())
        self._forms: list[Form] | None = None
        self._gap: int | None = None

    @classmethod
    def load(cls, checkpoint: Checkpoint, *, dtype: torch.dtype, device: str = "cpu", stream: bool = False) -> Decoder:
        """The checkpoint's model, its weights frozen; stream: with each layer's weights there only while it is walked."""
        if not stream:
            return cls(checkpoint.model(dtype=dtype, device=device).requires_grad_(False), checkpoint.anatomy)
        weights = LayerWeights(checkpoint, dtype=dtype, device=device)
        return cls(weights.model, checkpoint.anatomy, weights)

    @classmethod
    def open(
        cls, checkpoint: Checkpoint, *, dtype: str = "auto", device: str = "auto", stream: bool | None = None
    ) -> Decoder:
        """load() with what a user may leave open: dtype as arithmetic(), device as pick_device(), stream None where the
        model does not fit in memory.
        """
        device = pick_device(device)
        computed_in = arithmetic(dtype, checkpoint, device)
        stream = must_stream(checkpoint, computed_in, device) if stream is None else stream
        return cls.load(checkpoint, dtype=computed_in, device=device, stream=stream)

    @classmethod
    def tail(cls, checkpoint: Checkpoint, first: int, *, dtype: torch.dtype, device: str = "cpu") -> Decoder:
        """The checkpoint's model whose layers before `first` never get weights: for finish(), entered at that layer."""
        weights = LayerWeights(checkpoint, dtype=dtype, device=device)
        decoder = cls(weights.model, checkpoint.anatomy, weights)
        decoder.forms()  # learnt while layers may still be blank
        weights.settle(first)
        decoder.weights = None
        return decoder

    @property
    def dtype(self) -> str:
        """What it computes in, as results name it."""
        weight: Tensor = self.model.get_submodule(self.anatomy.embedding).weight
        return str(weight.dtype).removeprefix("torch.")

    @property
    def device(self) -> torch.device:
        device: torch.device = next(self.model.get_submodule(self.anatomy.embedding).parameters()).device
        return device

    def walk(
        self,
        ids: Tensor,
        routes: Sequence[Route] = (UNPRUNED,),
        *,
        start: tuple[int, Tensor] | None = None,
        until: int | None = None,
        **inputs: Tensor,
    ) -> dict[Route, Tensor]:
        """The hidden states of every route after the last layer, or before layer `until`.

        ids: [batch, length] token ids; `inputs` go to the model beside them (attention_mask).
        start: (layer, hidden): begin at that layer, entered by `hidden`, instead of at the embedding.
        Returns {route: [batch, length, width]}. Gradients flow as the caller has them enabled.
        """
        until = len(self.layers) if until is None else until
        if start and start[0] >= until:
            return dict.fromkeys(routes, start[1])
        front = self.enter(ids, routes, hidden=start[1] if start else None, **inputs)
        for _ in self.through([front], range(start[0] if start else 0, until), inputs=inputs):
            pass
        return front.arrived

    def finish(self, ids: Tensor, start: tuple[int, Tensor] | None = None, **inputs: Any) -> Tensor:
        """What leaves the last layer, [batch, length, width], in one forward of the model: for training, and with a cache.

        start: (layer, hidden): that layer is entered by `hidden`, and those before it do not run. Gradients flow.
        inputs: go to the model beside the token ids (attention_mask, position_ids, past_key_values).
        """
        at, last = start[0] if start else 0, len(self.layers) - 1
        if start and at > last:
            return start[1]
        forms, left = self.forms(), list[Tensor]()

        def give(index: int, _forward: Callable[..., Any], _args: Any, _kwargs: Any) -> Any:
            assert start  # noqa: S101  only layers before it are wrapped by this
            return forms[index].of(State(start[1], {}))

        def take(index: int, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            output = forward(*args, **kwargs)
            left.append(forms[index].read(output, State(hidden_of(args, kwargs), {})).hidden)
            return output

        with self._wrapped({**dict.fromkeys(range(at), give), last: take}):
            self.model.base_model(**{"use_cache": False, **inputs}, input_ids=ids)
        return left[0]

    def enter(
        self, ids: Tensor, routes: Sequence[Route] = (UNPRUNED,), *, hidden: Tensor | None = None, **inputs: Tensor
    ) -> Front:
        """Routes before layer 0: the token ids embedded, or other hidden states in their place."""
        if self.positions and ids.shape[1] > self.positions:
            raise InputError(
                "--length",
                expected=f"at most {self.positions} tokens, for which {self.anatomy.architecture} has positions",
                found=str(ids.shape[1]),
                fix=f"add --length {self.positions}, or --max-length when healing",
            )
        self._check_direct()
        found: list[State] = []

        def stop(_index: int, _forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            found.append(State(hidden_of(args, kwargs), self._carried(args, kwargs)))
            raise _Arrived

        with suppress(_Arrived), self._wrapped(dict.fromkeys(range(len(self.layers)), stop)):
            self.model.base_model(input_ids=ids, use_cache=False, **inputs)
        entering = found[0] if hidden is None else State(hidden, found[0].carried)
        return Front(ids, [(tuple(dict.fromkeys(routes)), entering)])

    def through(
        self,
        fronts: Sequence[Front],
        layers: Iterable[int],
        *,
        observe: Observer | None = None,
        on_forward: Callable[[int], None] = _nothing,
        inputs: Mapping[str, Tensor] | None = None,
    ) -> Iterator[int]:
        """Take every front through these layers: all of them through one layer, then through the next.

        observe(layer, before, after) sees the stream of the first route of each front, [batch, length, width].
        on_forward is told how many streams have passed a layer; `inputs` go to the model beside the token ids. Yields a
        layer's number when all are through.
        """
        for layer in layers:
            with self.resident(layer):
                for front in fronts:
                    front.groups = self._advance(front, layer, observe, on_forward, inputs or {})
                    front.layer = layer + 1
            yield layer

    def _advance(
        self,
        front: Front,
        layer: int,
        observe: Observer | None,
        on_forward: Callable[[int], None],
        inputs: Mapping[str, Tensor],
    ) -> list[Group]:
        """Every stream of a front through the layer, or around it."""
        first, form = front.groups[0][0][0], self.forms()[layer]
        passing, entering = list[Group](), list[Group]()
        for routes, before in front.groups:
            skipping = tuple(route for route in routes if layer in route)
            taking = tuple(route for route in routes if layer not in route)
            entering += [(taking, before)] if taking else []
            # What a layer leaves for later ones is needed by those that skip it, too.
            (entering if form.fills else passing).extend([(skipping, before)] if skipping else [])
        groups = []
        after = self.step(front.ids, layer, [before for _, before in entering], on_forward=on_forward, **inputs)
        for (routes, before), state in zip(entering, after, strict=True):
            taken = layer not in routes[0]
            groups.append((routes, state if taken else State(before.hidden, state.carried)))
            if observe and taken and first in routes:
                observe(layer, before.hidden, state.hidden)
        found = [*groups, *passing]
        return sorted(found, key=lambda group: first not in group[0])  # the first route's group stays first

    def step(
        self,
        ids: Tensor,
        layer: int,
        states: Sequence[State],
        *,
        on_forward: Callable[[int], None] = _nothing,
        **inputs: Tensor,
    ) -> list[State]:
        """Each state as it leaves the layer; masks, positions and the like are those that transformers makes for `ids`."""
        together = 1 if self._slots else max(1, STACK_TOKENS // ids.numel())
        stacks = [states[start : start + together] for start in range(0, len(states), together)]
        after = list[State]()
        for many, some in groupby(stacks, key=len):
            after += self._stacked(ids, layer, list(some), partial(on_forward, many), inputs)
        return after

    def _stacked(
        self,
        ids: Tensor,
        layer: int,
        stacks: Sequence[Sequence[State]],
        on_forward: Callable[[], None],
        inputs: Mapping[str, Tensor],
    ) -> list[State]:
        """Stacks of equally many states, each as one batch: what a layer makes of a sample does not depend on others."""
        many = len(stacks[0])
        if many == 1:
            return self._each(ids, layer, (state for (state,) in stacks), on_forward, inputs)
        wide = {name: value.repeat(many, *[1] * (value.dim() - 1)) for name, value in inputs.items()}
        entering = (State(torch.cat([state.hidden for state in stack]), {}) for stack in stacks)
        found = self._each(ids.repeat(many, 1), layer, entering, on_forward, wide)
        # Clones: who keeps one of them (what entered a layer, a trail) must not keep the whole stack.
        return [State(part.clone(), {}) for stack in found for part in stack.hidden.split(len(ids))]

    def _each(
        self,
        ids: Tensor,
        layer: int,
        states: Iterable[State],
        on_forward: Callable[[], None],
        inputs: Mapping[str, Tensor],
    ) -> list[State]:
        """One state after the other through the layer, inside one forward of the model."""
        after = list[State]()

        def visit(index: int, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            form = self.forms()[index]
            if index < layer:
                return form.of(State(hidden_of(args, kwargs), self._carried(args, kwargs)))
            for state in states if index == layer else ():
                entering = state.copy()
                after.append(form.read(forward(*entered_by(args, entering), **entered_by(kwargs, entering)), entering))
                on_forward()
            raise _Arrived

        with suppress(_Arrived), self._wrapped(dict.fromkeys(range(len(self.layers)), visit)):
            self.model.base_model(input_ids=ids, use_cache=False, **inputs)
        return after or list(states)  # untouched by a layer that text alone does not pass (cross-attention)

    def turns(self, batches: Sequence[Batch], *, tokens: int, streams: int) -> list[Sequence[Batch]]:
        """Batches, as many at a time as their streams have room for: STREAM_BYTES, or a quarter of the memory there is.

        tokens: of the largest batch. streams: of each batch. That quarter is rounded down to a power of two, so that a walk
        which is taken up again is divided as it was.
        """
        quarter = max(1, available_memory(str(self.device)) // 4)
        room = min(STREAM_BYTES, 1 << (quarter.bit_length() - 1))
        together = max(1, room // (self.stream_bytes(tokens) * streams))
        return [batches[start : start + together] for start in range(0, len(batches), together)]

    def stream_bytes(self, tokens: int) -> int:
        """Bytes of the hidden states of so many tokens."""
        embedding: Tensor = self.model.get_submodule(self.anatomy.embedding).weight
        return int(tokens * embedding.shape[1] * embedding.element_size())

    def resident(self, layer: int) -> AbstractContextManager[None]:
        """While it lasts, the layer's weights are in memory."""
        return self.weights.resident(layer) if self.weights else nullcontext()

    def _carried(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[Slot, Any]:
        """What enters a layer beside its hidden states, and is handed from layer to layer."""
        given = inputs_of(args, kwargs)
        return {slot: given[slot] for slot in self._slots & given.keys()}

    @property
    def bare(self) -> bool:
        """Whether layers hand on hidden states alone."""
        return not self._slots

    def check_bare(self, fix: str) -> None:
        """Refuse a decoder whose layers hand on more.

        Raises:
            ArchitectureError: they do; `fix` says what to do instead.
        """
        if not self.bare:
            raise ArchitectureError(
                self.anatomy.architecture,
                expected="layers that hand on hidden states alone",
                found="layers that also share keys and values, a selection of tokens or router states",
                fix=fix,
            )

    @property
    def _slots(self) -> set[Slot]:
        return {slot for form in self.forms() for slot in (*form.carries.values(), *form.fills)}

    def _check_direct(self) -> None:
        self.forms()
        if self._gap is not None:
            raise ArchitectureError(
                self.anatomy.architecture,
                expected="each layer to be entered by what the one before it returned",
                found=f"something else enters layer {self._gap}: the model loops, or computes between layers",
                fix="cut it by --metric reverse or --layers; scoring and healing walk layer by layer",
            )

    @torch.no_grad()
    def skipping(self, ids: Tensor, route: Route) -> Tensor:
        """The model's logits [batch, length, vocabulary] when the layers of `route` return what enters them.

        All else is transformers' own forward, so this holds where the walk does not.
        """
        forms = self.forms()

        def skip(index: int, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            inputs = inputs_of(args, kwargs)
            if forms[index].fills:  # what it leaves for later layers is needed all the same
                forward(*args, **kwargs)
            return forms[index].of(State(hidden_of(args, kwargs), inputs))

        with self._wrapped(dict.fromkeys(route, skip)):
            result: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return result

    def logits(self, ids: Tensor, hidden: Tensor) -> Tensor:
        """The model's logits [batch, length, vocabulary] when `hidden` [batch, length, width] leaves its last layer.

        Final norm, head, scaling and soft-capping are transformers' own: its forward runs with the layers passed over.
        """
        forms = self.forms()

        def leave(index: int, _forward: Callable[..., Any], _args: Any, _kwargs: Any) -> Any:
            return forms[index].of(State(hidden, {}))

        with self._wrapped(dict.fromkeys(range(len(self.layers)), leave)):
            result: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return result

    @torch.no_grad()
    def forms(self) -> list[Form]:
        """How each layer returns its state, learnt from one forward of two tokens.

        An output that is the very object which the next layer receives is carried along, under the slot it arrives in.
        """
        if self._forms is None:
            calls: list[Call] = []

            def learn(index: int, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
                inputs = inputs_of(args, kwargs)
                before = {slot: set(value) for slot, value in inputs.items() if isinstance(value, MutableMapping)}
                with self.weights.blank(index) if self.weights else nullcontext():
                    output = forward(*args, **kwargs)
                filled = frozenset(slot for slot, keys in before.items() if keys != set(inputs[slot]))
                calls.append(Call(index, hidden_of(args, kwargs), inputs, output, filled))
                return output

            with self._wrapped(dict.fromkeys(range(len(self.layers)), learn)):
                self.model.base_model(
                    input_ids=torch.zeros(1, 2, dtype=torch.long, device=self.device), use_cache=False
                )
            self._forms, self._gap = forms_of(calls, len(self.layers)), first_gap(calls)
        return self._forms

    @contextmanager
    def _wrapped(self, visitors: dict[int, Callable[..., Any]]) -> Iterator[None]:
        """Replace forward(...) of the numbered layers by visitor(index, forward, args, kwargs), and put it back after."""

        def wrap(index: int, visitor: Callable[..., Any]) -> Callable[..., Any]:
            forward = self.layers[index].forward
            return lambda *args, **kwargs: visitor(index, forward, args, kwargs)

        # An instance attribute shadows the class's method; nn.Module types assignment to `forward` as a module's.
        wrapped = {index: wrap(index, visitor) for index, visitor in visitors.items()}
        placed = {index: vars(self.layers[index]).get("forward") for index in wrapped}  # accelerate puts one there, too
        for index, forward in wrapped.items():
            vars(self.layers[index])["forward"] = forward
        try:
            yield
        finally:
            for index, earlier in placed.items():
                del vars(self.layers[index])["forward"]
                if earlier is not None:
                    vars(self.layers[index])["forward"] = earlier

    def token_logits(self, states: Tensor) -> Tensor:
        """Logits [tokens, vocabulary] of states [tokens, width]: each passes norm and head as a sequence of its own."""
        return self.logits(states.new_zeros((len(states), 1), dtype=torch.long), states[:, None])[:, 0]

    def chunk_rows(self, states: Tensor) -> int:
        """How many tokens' fp32 logits take LOGIT_BYTES: more are never computed at once."""
        head = self.model.get_submodule(self.anatomy.head).weight
        return max(1, LOGIT_BYTES[states.device.type == "cpu"] // (4 * int(head.shape[0])))


def by_length(lengths: Sequence[int]) -> list[list[int]]:
    """Samples in groups of alike length, each of at most BATCH_TOKENS tokens with its padding."""
    groups: list[list[int]] = []
    for sample in sorted(range(len(lengths)), key=lambda sample: lengths[sample]):
        if not groups or (len(groups[-1]) + 1) * lengths[sample] > BATCH_TOKENS:
            groups.append([])
        groups[-1].append(sample)
    return groups


def _learned_positions(model: PreTrainedModel, anatomy: Anatomy) -> int | None:
    """How many positions a model with a table of them has; None where they are computed."""
    parents = {path.rpartition(".")[0] for path in (anatomy.layers_path, anatomy.embedding)}
    tables = [
        module.num_embeddings
        for name, module in model.named_modules()
        if isinstance(module, nn.Embedding)
        and name.rpartition(".")[0] in parents
        and re.search(r"wpe|position", name.rpartition(".")[2])
    ]
    stated = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return min([*tables, stated or max(tables)]) if tables else None


def layer_forwards(layers: int, routes: Sequence[Route], *, filling: Set[int] = frozenset()) -> int:
    """How many layer-forwards a walk of these routes costs for one batch; those that skip a `filling` layer run it too.

    >>> layer_forwards(8, [UNPRUNED] + [frozenset({i}) for i in range(8)])
    36
    """
    return sum(
        len(
            {
                (route & frozenset(range(layer)), layer in route)
                for route in routes
                if layer not in route or layer in filling
            }
        )
        for layer in range(layers)
    )
