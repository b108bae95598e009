"""The one walk over decoder layers, carrying a hidden stream for every way through them.

A *route* is the set of layers it skips: the empty route is the model itself, {5} the model without layer 5, {6, 7} the
tail cut of an eight-layer model. All routes start together and part where they first differ, so a prefix that several
share is computed once. Leave-one-out over N layers costs N(N+1)/2 layer-forwards instead of N*N.

The walk runs inside transformers' own forward: each layer's `forward` is wrapped while it runs, so masks, rotary
embeddings and per-layer arguments are the library's, whatever the architecture.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from shortstack.anatomy import Anatomy
from shortstack.checkpoint import Checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Route = frozenset[int]
UNPRUNED: Route = frozenset()
Observer = Callable[[int, Tensor, Tensor], None]
# fp32 logits that exist at once, on an accelerator and on a CPU: there below the size from which malloc maps fresh pages
LOGIT_BYTES = (512 << 20, 28 << 20)


class _Arrived(Exception):
    """Raised inside a forward to leave it when the walk has gone as far as it should."""


class Decoder:
    """A loaded model as its layers and what surrounds them; the only place that wraps a layer's forward."""

    def __init__(self, model: PreTrainedModel, anatomy: Anatomy) -> None:
        self.model, self.anatomy = model, anatomy
        self.layers: list[nn.Module] = list(model.get_submodule(anatomy.layers_path).children())
        self._forms: list[Callable[[Tensor], Any]] | None = None

    @classmethod
    def load(cls, checkpoint: Checkpoint, *, dtype: torch.dtype, device: str = "cpu") -> Decoder:
        return cls(checkpoint.model(dtype=dtype, device=device), checkpoint.anatomy)

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
        observe: Observer | None = None,
        on_forward: Callable[[], None] | None = None,
        **inputs: Tensor,
    ) -> dict[Route, Tensor]:
        """The hidden states of every route after the last layer, or before layer `until`.

        ids: [batch, length] token ids; `inputs` go to the model beside them (attention_mask).
        start: (layer, hidden): begin at that layer, entered by `hidden`, instead of at the embedding.
        observe(layer, before, after) sees the unpruned stream, [batch, length, width], at each layer.
        Returns {route: [batch, length, width]}; routes that never parted share one tensor. Gradients flow as the caller
        has them enabled.
        """
        until = len(self.layers) if until is None else until
        if start and start[0] >= until:
            return dict.fromkeys(routes, start[1])
        if start or frozenset.intersection(
            *routes
        ):  # layers no route takes: their form must be known without running them
            self.forms()
        streams = _Streams(self, routes, start=start or (0, None), until=until)
        streams.observe, streams.on_forward = observe, on_forward
        with suppress(_Arrived), self._wrapped(dict.fromkeys(range(len(self.layers)), streams.visit)):
            self.model.base_model(input_ids=ids, use_cache=False, **inputs)
        return streams.arrived()

    def logits(self, ids: Tensor, hidden: Tensor) -> Tensor:
        """The model's logits [batch, length, vocabulary] when `hidden` [batch, length, width] leaves its last layer.

        Final norm, head, scaling and soft-capping are transformers' own: its forward runs with the layers passed over.
        """
        forms = self.forms()

        def leave(index: int, _forward: Callable[..., Any], _args: Any, _kwargs: Any) -> Any:
            return forms[index](hidden)

        with self._wrapped(dict.fromkeys(range(len(self.layers)), leave)):
            result: Tensor = self.model(input_ids=ids, use_cache=False).logits
        return result

    @torch.no_grad()
    def forms(self) -> list[Callable[[Tensor], Any]]:
        """How each layer returns its hidden states (bare, or first of a tuple), learnt from one forward of two tokens."""
        if self._forms is None:
            forms: list[Callable[[Tensor], Any]] = [_bare] * len(self.layers)

            def learn(index: int, forward: Callable[..., Any], args: Any, kwargs: Any) -> Any:
                output = forward(*args, **kwargs)
                forms[index] = _form(output)
                return output

            with self._wrapped(dict.fromkeys(range(len(self.layers)), learn)):
                self.model.base_model(
                    input_ids=torch.zeros(1, 2, dtype=torch.long, device=self.device), use_cache=False
                )
            self._forms = forms
        return self._forms

    @contextmanager
    def _wrapped(self, visitors: dict[int, Callable[..., Any]]) -> Iterator[None]:
        """Replace forward(...) of the numbered layers by visitor(index, forward, args, kwargs), and put it back after."""

        def wrap(index: int, visitor: Callable[..., Any]) -> Callable[..., Any]:
            forward = self.layers[index].forward
            return lambda *args, **kwargs: visitor(index, forward, args, kwargs)

        # An instance attribute shadows the class's method; nn.Module types assignment to `forward` as a module's.
        wrapped = {index: wrap(index, visitor) for index, visitor in visitors.items()}
        for index, forward in wrapped.items():
            vars(self.layers[index])["forward"] = forward
        try:
            yield
        finally:
            for index in wrapped:
                del vars(self.layers[index])["forward"]

    @torch.no_grad()
    def losses(self, ids: Tensor, hidden: Tensor) -> Tensor:
        """Next-token cross-entropy in nats of each predicted token, fp32: [batch, length - 1].

        hidden: [batch, length, width] as it leaves the last layer.
        """
        states, targets = hidden[:, :-1].flatten(0, 1), ids[:, 1:].flatten()
        parts = [self.token_losses(some, wanted) for some, wanted in self.chunks(states, targets)]
        return torch.cat(parts).view(ids.shape[0], -1)

    def token_losses(self, states: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy of each target [tokens] given the state [tokens, width] that predicts it, in fp32.

        Each token passes norm and head as a sequence of its own, so only tokens that count need be given.
        """
        logits = self.logits(torch.zeros_like(targets)[:, None], states[:, None])[:, 0]
        return nn.functional.cross_entropy(logits.float(), targets, reduction="none")

    def chunks(self, states: Tensor, targets: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
        """States and targets cut so that one chunk's fp32 logits take LOGIT_BYTES; the whole matrix never exists."""
        head = self.model.get_submodule(self.anatomy.head).weight
        rows = max(1, LOGIT_BYTES[states.device.type == "cpu"] // (4 * head.shape[0]))
        return zip(states.split(rows), targets.split(rows), strict=True)


class _Streams:
    """The hidden streams of one walk: what each group of routes that have not parted yet carries."""

    observe: Observer | None = None
    on_forward: Callable[[], None] | None = None

    def __init__(
        self, decoder: Decoder, routes: Sequence[Route], *, start: tuple[int, Tensor | None], until: int
    ) -> None:
        self.decoder, self.until = decoder, until
        self.first, self.entering = start
        self.groups: list[tuple[tuple[Route, ...], Tensor]] = []
        self.routes = tuple(dict.fromkeys(routes))

    def visit(self, layer: int, forward: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden, args, kwargs = _take_hidden(args, kwargs)
        if layer < self.first:
            return self.decoder.forms()[layer](hidden)
        if layer == self.first:
            self.groups = [(self.routes, hidden if self.entering is None else self.entering)]
        if layer == self.until:
            raise _Arrived
        form = self._advance(layer, lambda states: forward(states, *args, **kwargs))
        if layer + 1 == self.until:
            raise _Arrived
        return (form or self.decoder.forms()[layer])(self._main())

    def _advance(self, layer: int, apply: Callable[[Tensor], Any]) -> Callable[[Tensor], Any] | None:
        """Take every stream through the layer, or around it; returns the layer's form when any took it."""
        form, groups = None, []
        for routes, before in self.groups:
            skipping = tuple(route for route in routes if layer in route)
            taking = tuple(route for route in routes if layer not in route)
            if skipping:
                groups.append((skipping, before))
            if taking:
                output = apply(before)
                form, after = _form(output), _hidden_of(output)
                groups.append((taking, after))
                if self.on_forward:
                    self.on_forward()
                if self.observe and UNPRUNED in taking:
                    self.observe(layer, before, after)
        self.groups = groups
        return form

    def _main(self) -> Tensor:
        """What transformers' forward carries on: the unpruned stream when it is walked, else any."""
        return next((states for routes, states in self.groups if UNPRUNED in routes), self.groups[0][1])

    def arrived(self) -> dict[Route, Tensor]:
        return {route: states for routes, states in self.groups for route in routes}


def _take_hidden(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, tuple[Any, ...], dict[str, Any]]:
    if args:
        return args[0], args[1:], kwargs
    rest = dict(kwargs)
    return rest.pop("hidden_states"), (), rest


def _hidden_of(output: Any) -> Tensor:
    hidden: Tensor = output[0] if isinstance(output, tuple) else output
    return hidden


def _bare(hidden: Tensor) -> Tensor:
    return hidden


def _form(output: Any) -> Callable[[Tensor], Any]:
    if not isinstance(output, tuple):
        return _bare
    rest = output[1:]
    return lambda hidden: (hidden, *rest)


def layer_forwards(layers: int, routes: Sequence[Route]) -> int:
    """How many layer-forwards a walk of these routes costs for one batch.

    >>> layer_forwards(8, [UNPRUNED] + [frozenset({i}) for i in range(8)])
    36
    """
    return sum(
        len({route & frozenset(range(layer)) for route in routes if layer not in route}) for layer in range(layers)
    )


def arithmetic(name: str, checkpoint: Checkpoint, device: str) -> torch.dtype:
    """The dtype to compute in: a named one, or for "auto" bf16 where checkpoint and device both have it, else float32."""
    if name != "auto":
        chosen: torch.dtype = getattr(torch, name)
        return chosen
    stored = {tensor.dtype for tensor in checkpoint.tensors.values()}
    return torch.bfloat16 if stored & {"BF16", "F16"} and fast_bfloat16(device) else torch.float32


def fast_bfloat16(device: str) -> bool:
    """Whether the device multiplies bf16 matrices in hardware."""
    if device.startswith("cuda"):
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    if device.startswith("cpu"):
        capabilities = torch.cpu.get_capabilities() if hasattr(torch.cpu, "get_capabilities") else {}
        return bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") or capabilities.get("bf16"))
    return device.startswith("mps")


def pick_device(name: str = "auto") -> str:
    """`auto` is CUDA, then MPS, then the CPU."""
    if name != "auto":
        return name
    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"
