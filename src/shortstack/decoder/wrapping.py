"""A loaded model as its layers and what surrounds them; the only place that wraps a layer's forward.

A layer runs inside transformers' own forward, whose other layers are passed over or entered by something else, so masks,
rotary embeddings and per-layer arguments are the library's, whatever the architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, MutableMapping, Set
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Self, cast

import torch
from torch import Tensor, nn

from shortstack.architecture import Anatomy
from shortstack.architecture.anatomy import learned_positions
from shortstack.checkpoint import Checkpoint
from shortstack.decoder.layer_io import Call, Form, Slot, State, first_gap, forms_of, hidden_of, inputs_of
from shortstack.decoder.streaming import LayerWeights, must_stream
from shortstack.errors import ArchitectureError, InputError
from shortstack.machine.device import AUTO, Compute, Dtype, fast_bfloat16, pick_device

if TYPE_CHECKING:
    from transformers import PreTrainedModel


# fp32 logits that exist at once, on an accelerator and on a CPU: there below the size from which malloc maps fresh pages
LOGIT_BYTES = (512 << 20, 28 << 20)


class Layered:
    """A model whose layers can be passed over, entered in the middle, and listened to."""

    def __init__(self, model: PreTrainedModel, anatomy: Anatomy, weights: LayerWeights | None = None) -> None:
        """Wrap a model. weights: brings the layers' weights one by one; without it they are all there."""
        self.model, self.anatomy, self.weights = model, anatomy, weights
        self.positions = learned_positions(model, anatomy)
        self.layers: list[nn.Module] = list(model.get_submodule(anatomy.layers_path).children())
        self.shared_out = False  # by accelerate, where its hooks are not on the layers yet
        self._forms: list[Form] | None = None
        self._gap: int | None = None

    @classmethod
    def load(
        cls,
        checkpoint: Checkpoint,
        *,
        dtype: torch.dtype,
        device: str = "cpu",
        device_map: str | Mapping[str, str | int] | None = None,
        stream: bool = False,
    ) -> Self:
        """Load the checkpoint's model, its weights frozen.

        device_map: shared out by accelerate. stream: with each layer's weights there only while it is walked.
        """
        if not stream:
            model = checkpoint.model(dtype=dtype, device=device, device_map=device_map)
            return cls(model.requires_grad_(False), checkpoint.anatomy)
        weights = LayerWeights(checkpoint, dtype=dtype, device=device)
        return cls(weights.model, checkpoint.anatomy, weights)

    @classmethod
    def open(cls, checkpoint: Checkpoint, compute: Compute = AUTO) -> Self:
        """Load as load() does, with what a user may leave open: dtype as arithmetic(), device as pick_device()."""
        device = pick_device(compute.device)
        dtype = arithmetic(compute.dtype, checkpoint, device)
        if compute.device_map:
            return cls.load(checkpoint, dtype=dtype, device_map=compute.device_map)
        stream = must_stream(checkpoint, dtype, device) if compute.stream is None else compute.stream
        return cls.load(checkpoint, dtype=dtype, device=device, stream=stream)

    @classmethod
    def outline(cls, checkpoint: Checkpoint, compute: Compute = AUTO) -> Self | None:
        """Load no more weights than those around the model's layers, to see what layers take and return.

        None where nothing of it can be read alone: it is quantised.
        """
        if checkpoint.quantised:
            return None
        decoder = cls.open(checkpoint, replace(compute, stream=True, device_map=None))
        decoder.shared_out = compute.device_map is not None
        return decoder

    @classmethod
    def tail(cls, checkpoint: Checkpoint, first: int, *, dtype: torch.dtype, device: str = "cpu") -> Self:
        """Load the checkpoint's model without weights for the layers before `first`: for finish(), entered at that layer."""
        weights = LayerWeights(checkpoint, dtype=dtype, device=device)
        decoder = cls(weights.model, checkpoint.anatomy, weights)
        decoder.forms()  # learnt while layers may still be blank
        weights.settle(first)
        decoder.weights = None
        return decoder

    @property
    def embedding(self) -> Tensor:
        """The weight [vocabulary, width] of the token embedding."""
        weight: Tensor = self.model.get_submodule(self.anatomy.embedding).weight
        return weight

    @property
    def vocabulary(self) -> int:
        return self.embedding.shape[0]

    @property
    def width(self) -> int:
        """The numbers of an embedding, and in all but a few models of a hidden state."""
        return self.embedding.shape[1]

    @property
    def dtype(self) -> Dtype:
        """The dtype that it computes in, as results name it."""
        return cast("Dtype", str(self.embedding.dtype).removeprefix("torch."))

    @property
    def device(self) -> torch.device:
        """Where hidden states are between layers: where the embedding computes."""
        hook = getattr(self.model.get_submodule(self.anatomy.embedding), "_hf_hook", None)
        return torch.device(hook.execution_device) if hook and self.embedding.is_meta else self.embedding.device

    def check_in_one_place(self, what_for: str) -> None:
        """Refuse a model that accelerate has shared out, whose weights come and go."""
        if self.shared_out or any(hasattr(layer, "_hf_hook") for layer in self.layers):
            raise InputError(f"weights are needed in one place, {what_for}; leave it out", option="device_map")

    def finish(self, ids: Tensor, start: tuple[int, Tensor] | None = None, **inputs: Any) -> Tensor:
        """Return the last layer's output [batch, length, width] in one forward of the model: to train, and with a cache.

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
            left.append(forms[index].read(output, State(hidden_of(args, kwargs), {})).hidden.to(self.device))
            return output

        with self._wrapped({**dict.fromkeys(range(at), give), last: take}):
            self.model.base_model(**{"use_cache": False, **inputs}, input_ids=ids)
        return left[0]

    def stream_bytes(self, tokens: int) -> int:
        """Count the bytes of the hidden states of so many tokens."""
        return tokens * self.width * self.embedding.element_size()

    def resident(self, layer: int) -> AbstractContextManager[None]:
        """Keep the layer's weights in memory while it lasts."""
        return self.weights.resident(layer) if self.weights else nullcontext()

    def _carried(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[Slot, Any]:
        """Return a layer's inputs beside its hidden states that are passed on from layer to layer."""
        given = inputs_of(args, kwargs)
        return {slot: given[slot] for slot in self._slots & given.keys()}

    @property
    def bare(self) -> bool:
        """Whether layers hand on hidden states alone."""
        return not self._slots

    def check_bare(self, fix: str) -> None:
        """Refuse a decoder whose layers hand on more."""
        if not self.bare:
            shared = "keys and values, a selection of tokens or router states"
            raise ArchitectureError(f"layers of {self.anatomy.architecture} also share {shared}; {fix}")

    @property
    def _slots(self) -> set[Slot]:
        return {slot for form in self.forms() for slot in (*form.carries.values(), *form.fills)}

    @torch.no_grad()
    def skipping(self, ids: Tensor, skipped: Set[int]) -> Tensor:
        """Compute the model's logits [batch, length, vocabulary] when the skipped layers return what enters them.

        All else is transformers' own forward, so this holds where the walk does not.
        """
        forms = self.forms()

        def skip(index: int, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
            inputs = inputs_of(args, kwargs)
            if forms[index].fills:  # what it leaves for later layers is needed all the same
                forward(*args, **kwargs)
            return forms[index].of(State(hidden_of(args, kwargs), inputs))

        with self._wrapped(dict.fromkeys(skipped, skip)):
            result: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return result

    def logits(self, ids: Tensor, hidden: Tensor) -> Tensor:
        """Compute the model's logits [batch, length, vocabulary] when `hidden` [batch, length, width] leaves its last layer.

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
        """Return how each layer returns its state, learnt from one forward of two tokens.

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
        """Compute logits [tokens, vocabulary] of states [tokens, width]: each passes norm and head as its own sequence."""
        return self.logits(states.new_zeros((len(states), 1), dtype=torch.long), states[:, None])[:, 0]

    def chunk_rows(self, states: Tensor) -> int:
        """Count how many tokens' fp32 logits take LOGIT_BYTES: more are never computed at once."""
        head = self.model.get_submodule(self.anatomy.head).weight
        return max(1, LOGIT_BYTES[states.device.type == "cpu"] // (4 * int(head.shape[0])))


def arithmetic(name: Dtype, checkpoint: Checkpoint, device: str) -> torch.dtype:
    """Pick the dtype to compute in: the named one, or for "auto" bf16 where checkpoint and device have it, else float32."""
    if name != "auto":
        named: torch.dtype = getattr(torch, name)
        return named
    stored = {tensor.dtype for tensor in checkpoint.tensors.values()}
    return torch.bfloat16 if stored & {"BF16", "F16"} and fast_bfloat16(device) else torch.float32
