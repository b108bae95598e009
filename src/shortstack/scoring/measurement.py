"""One walk over all layers, and one back where a metric wants gradients: what each metric is handed adds up here."""

from __future__ import annotations

import functools
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor

from shortstack.checkpoint import Checkpoint
from shortstack.decoder import Decoder
from shortstack.decoder.batching import batched
from shortstack.decoder.decoder import UNPRUNED, Front, Group, Route, layer_forwards
from shortstack.decoder.layer_io import State
from shortstack.decoder.losses import divergences, next_token_losses
from shortstack.machine.numbers import in_float64
from shortstack.machine.progress import Progress, silent
from shortstack.scoring.gradients import WeightGradient, loss_gradient, walk_back
from shortstack.scoring.metrics import Metric
from shortstack.scoring.resumption import Keeper

CHANGING = ("turn", "done", "going_back", "entering", "leaving", "weights")  # of a Run while it walks, beside its means
BACKWARD = 3  # layer-forwards that a layer's part of the walk back takes: it once more, and twice as much for gradients


@dataclass(frozen=True)
class Wanted:
    """What a run measures: metrics of each layer, of each block of `window` layers, and the loss and KL of whole sets.

    without: layers that the model is taken to lack already. singles: whether each remaining layer is scored.
    """

    metrics: Sequence[Metric]
    window: int | None = None
    without: Route = UNPRUNED
    singles: bool = True
    sets: Sequence[Route] = ()

    def feeds(self, *names: str) -> bool:
        """Whether a metric is fed by one of these."""
        return any(metric.feed in names for metric in self.metrics)


class Mean:
    """A mean over tokens of numbers, or of vectors, added up in fp64 so that the batching does not show."""

    def __init__(self) -> None:
        self.total: Tensor = torch.zeros((), dtype=torch.float64)
        self.count = 0

    def add(self, values: Tensor) -> None:
        """values: [tokens, ...]."""
        self.total = self.total + in_float64(values).sum(0).cpu()
        self.count += len(values)

    @property
    def value(self) -> Any:
        return (self.total / self.count).tolist()


class Run:
    """A walk that measures. go() walks; the results are read after it."""

    def __init__(
        self, decoder: Decoder, ids: Tensor, wanted: Wanted, *, progress: Progress = silent, stage: str = "scoring"
    ) -> None:
        """ids: token ids [samples, length]."""
        self.decoder, self.wanted, self.progress, self.stage = decoder, wanted, progress, stage
        self.layers, window = len(decoder.layers), wanted.window or 0
        self.staying = [layer for layer in range(self.layers) if layer not in wanted.without]
        self.places = range(self.layers - window + 1 if window else 0)
        self.ids = ids.to(decoder.device)
        self.batches = batched(ids, decoder.device)
        self.predicted = ids.shape[0] * (ids.shape[1] - 1)
        self.needs_kl, self.needs_loss = wanted.feeds("kl"), wanted.feeds("loss", "kl")
        self.needs_gradient = wanted.feeds("gradient")
        self.singles = [wanted.without | {layer} for layer in self.staying if self.needs_loss and wanted.singles]
        self.blocks = [frozenset(range(place, place + window)) for place in self.places if self.needs_loss]
        reference = [UNPRUNED] if self.needs_kl else []
        self.routes: list[Route] = list(
            dict.fromkeys([wanted.without, *reference, *self.singles, *self.blocks, *wanted.sets])
        )
        self.losses = {route: Mean() for route in self.routes}
        self.divergences = {route: Mean() for route in self.routes}
        hidden = [metric for metric in wanted.metrics if metric.feed == "hidden"]
        self.hidden = {metric: [Mean() for _ in range(self.layers)] for metric in hidden}
        self.spans = {metric: [Mean() for _ in self.places] for metric in hidden if metric.windows and window}
        self.entering: list[list[Tensor]] = [[] for _ in range(self.layers)]  # [layer][batch]
        self.leaving: list[Tensor] = []
        self.weights = {metric.name: [0.0] * self.layers for metric in wanted.metrics if metric.feed == "gradient"}
        self.trail: list[list[list[Group]]] | None = None  # [layer][batch]: the groups that enter each layer
        self.begun: list[Front] = []  # where the walk begins, if not before the first layer
        self.turn = self.done = 0
        self.going_back = list(self.staying)
        self.keeper: Keeper | None = None
        self.started, self.seconds_before = time.perf_counter(), 0.0

    @functools.cached_property
    def total(self) -> int:
        """Layer-forwards of the whole run; a head counts as many as it has parameters for."""
        back = self.needs_gradient * (BACKWARD * len(self.staying) + BACKWARD * self.head)
        heads = self.head * (len(self.routes) * self.needs_loss + self.needs_kl)
        return self.forwards(self.layers) + len(self.batches) * (back + heads)

    def forwards(self, layers: int) -> int:
        """Layer-forwards of the walk through the first so many layers."""
        filling = {layer for layer, form in enumerate(self.decoder.forms()) if form.fills}
        return len(self.batches) * layer_forwards(layers, self.routes, filling=filling)

    @functools.cached_property
    def head(self) -> int:
        """How many layers' worth of arithmetic the head is."""
        head = self.decoder.model.get_submodule(self.decoder.anatomy.head).weight.numel()
        return max(1, round(int(head) / sum(weight.numel() for weight in self.decoder.layers[0].parameters())))

    def tick(self, forwards: int = 1) -> None:
        """Say how far the walk is."""
        self.done += forwards
        self.progress(self.stage, self.done, self.total)

    def go(self) -> Run:
        """Walk, turn by turn, and back; from where a run like this one was killed, if its state was kept."""
        if self.keeper and (state := self.keeper.kept(self.decoder.device)):
            self._restore(state)
        for turn in self.turns[self.turn :]:
            self._forward(turn)
        if self.needs_gradient:
            self._back()
        if self.keeper:
            self.keeper.forget()
        return self

    def kept_by(self, checkpoint: Checkpoint) -> Run:
        """The run, its state kept on disk from time to time; not where layers carry on more than hidden states."""
        if self.decoder.bare:
            self.keeper = Keeper.of(
                checkpoint,
                dtype=self.decoder.dtype,
                device=self.decoder.device.type,
                ids=[self.ids.tolist(), [len(batch) for batch in self.batches], len(self.turns[0])],
                state=CHANGING,
                metrics=[metric.name for metric in self.wanted.metrics],
                wanted=[self.wanted.window, self.wanted.singles, [sorted(route) for route in self.routes]],
            )
        return self

    @functools.cached_property
    def turns(self) -> Sequence[Sequence[Tensor]]:
        """The batches, as many at a time as there is room for their streams."""
        return self.decoder.turns(self.batches, tokens=self.batches[0].numel(), streams=len(self.routes))

    @property
    def stream_bytes(self) -> int:
        """Bytes of one batch's hidden states."""
        return self.decoder.stream_bytes(self.batches[0].numel())

    @torch.no_grad()
    def _forward(self, batches: Sequence[Tensor]) -> None:
        fronts, self.begun = self.begun or [self.decoder.enter(ids, self.routes) for ids in batches], []
        self._mark(fronts)
        layers = range(fronts[0].layer, self.layers)
        for layer in self.decoder.through(fronts, layers, observe=self._observe, on_forward=self.tick):
            window = self.wanted.window
            if window and not self.needs_gradient and layer + 1 >= window:
                self.entering[layer + 1 - window] = []  # no block that starts there is still open
            self._mark(fronts)
            self._keep(fronts)
        if not self.needs_gradient:
            self.entering = [[] for _ in range(self.layers)]
        for front in fronts:
            self._head(front)
        self.turn += 1
        self._keep([])

    def _mark(self, fronts: Sequence[Front]) -> None:
        if self.trail is not None:
            self.trail.append([front.groups for front in fronts])

    def _back(self) -> None:
        back = walk_back(
            self.decoder,
            self.batches,
            self.entering,
            self.leaving,
            layers=self.going_back,
            on_step=lambda: self.tick(BACKWARD),
        )
        for layer, gradients in back:
            self._weigh(layer, gradients)
            del gradients  # before those of the next layer are made
            self.entering[layer] = []
            self.going_back = [earlier for earlier in self.going_back if earlier < layer]
            self._keep([])

    def _keep(self, fronts: Sequence[Front]) -> None:
        if self.keeper:
            self.keeper.keep(lambda: self._state(fronts))

    def _state(self, fronts: Sequence[Front]) -> dict[str, Any]:
        """All that changes while it walks; fronts: those of the turn that is not finished."""
        number = {route: place for place, route in enumerate(self.routes)}
        return {
            "fronts": [
                [front.layer, [([number[route] for route in routes], state.hidden) for routes, state in front.groups]]
                for front in fronts
            ],
            "means": [(mean.total, mean.count) for mean in self._means()],
            "seconds": self.seconds,
            **{name: getattr(self, name) for name in CHANGING},
        }

    def _restore(self, state: dict[str, Any]) -> None:
        for name in CHANGING:
            setattr(self, name, state[name])
        for mean, (total, count) in zip(self._means(), state["means"], strict=True):
            mean.total, mean.count = total.cpu(), count
        self.seconds_before, self.stage = state["seconds"], f"{self.stage} (continued)"
        batches = self.turns[self.turn] if state["fronts"] else []
        for ids, (layer, groups) in zip(batches, state["fronts"], strict=True):
            found = [(tuple(self.routes[place] for place in places), State(hidden, {})) for places, hidden in groups]
            self.begun.append(Front(ids, found, layer))

    def _means(self) -> Iterator[Mean]:
        by_layer = chain.from_iterable(chain(self.hidden.values(), self.spans.values()))
        return chain(self.losses.values(), self.divergences.values(), by_layer)

    @property
    def seconds(self) -> float:
        """Since the run was made, and what it took before it was killed."""
        return self.seconds_before + time.perf_counter() - self.started

    def _observe(self, layer: int, before: Tensor, after: Tensor) -> None:
        for metric, means in self.hidden.items():
            means[layer].add(_counted(metric, metric.function(before, after)))
        if self.needs_gradient or self.spans:
            self.entering[layer].append(before)
        first = layer + 1 - (self.wanted.window or 0)
        if self.spans and first >= 0:
            start = self.entering[first][len(self.entering[layer]) - 1]
            for metric, spans in self.spans.items():
                spans[first].add(_counted(metric, metric.function(start, after)))

    def _head(self, front: Front) -> None:
        arrived = front.arrived
        if self.needs_gradient:
            found = loss_gradient(self.decoder, front.ids, arrived[self.wanted.without], of=self.predicted)
            self.leaving.append(found)
            self.tick(BACKWARD * self.head)
        if self.needs_kl:
            others = [arrived[route] for route in self.routes]
            for losses, kls in divergences(self.decoder, front.ids, arrived[UNPRUNED], others):
                for route, loss, kl in zip(self.routes, losses, kls, strict=True):
                    self.losses[route].add(loss)
                    self.divergences[route].add(kl)
            self.tick(self.head * (len(self.routes) + 1))
        elif self.needs_loss:
            for route in self.routes:
                self.losses[route].add(next_token_losses(self.decoder, front.ids, arrived[route]).flatten())
                self.tick(self.head)

    def _weigh(self, layer: int, gradients: Sequence[WeightGradient]) -> None:
        for metric in self.wanted.metrics:
            if metric.feed == "gradient":
                self.weights[metric.name][layer] = metric.finish(
                    sum(
                        metric.function(found.weight, found.gradient)
                        for found in gradients
                        if metric.sees(found.name, found.weight.dim())
                    )
                )

    @property
    def base_loss(self) -> float | None:
        """The loss without any more layers gone, where a metric needed it."""
        return float(self.losses[self.wanted.without].value) if self.needs_loss else None

    def scores(self) -> dict[str, Sequence[float]]:
        """What each walked metric found, a number for each layer; infinity for one that has gone."""
        found: dict[str, Sequence[float]]
        found = {name: self._placed([values[layer] for layer in self.staying]) for name, values in self.weights.items()}
        for metric, means in self.hidden.items():
            values = [metric.finish(means[layer].value) for layer in self.staying]
            found[metric.name] = self._placed(values if metric.last_scored else [*values[:-1], float("inf")])
        return found | {name: self._placed(values) for name, values in self._measured(self.singles).items()}

    def windows(self) -> dict[str, Sequence[float]]:
        """What the metrics that can found of each block."""
        if not self.wanted.window:
            return {}
        found = {metric.name: [metric.finish(mean.value) for mean in means] for metric, means in self.spans.items()}
        return found | self._measured(self.blocks)

    def _placed(self, values: Sequence[float]) -> list[float]:
        place = dict(zip(self.staying, values, strict=True))
        return [place.get(layer, float("inf")) for layer in range(self.layers)]

    def _measured(self, routes: Sequence[Route]) -> dict[str, Sequence[float]]:
        feeds = {"loss": self.losses, "kl": self.divergences}
        return {
            metric.name: [metric.finish(metric.function(feeds[metric.feed][route].value)) for route in routes]
            for metric in self.wanted.metrics
            if metric.feed in feeds and routes
        }


def _counted(metric: Metric, values: Tensor) -> Tensor:
    """The values [batch, length, ...] of the tokens that count, as [tokens, ...]."""
    return values[:, -1] if metric.last_token else values.flatten(0, 1)


def walk_on(run: Run, more: Route) -> Run:
    """The run of the model without further layers; it begins where they begin to matter, if `run` kept its trail.

    What enters the first of them, and any layer before, is what it was in `run`, for routes of other names.
    """
    wanted = Wanted(run.wanted.metrics, without=run.wanted.without | more)
    following = Run(run.decoder, run.ids, wanted, progress=run.progress, stage=run.stage)
    if run.trail is None or run.needs_gradient:
        return following
    first = min(more)
    renamed = [[_renamed(groups, more, following) for groups in each] for each in run.trail[: first + 1]]
    following.trail = renamed[:first]
    following.begun = [Front(ids, groups, first) for ids, groups in zip(run.batches, renamed[first], strict=True)]
    for metric, means in run.hidden.items():
        following.hidden[metric][:first] = means[:first]
    following.done = following.forwards(first)
    return following


def _renamed(groups: Sequence[Group], more: Route, run: Run) -> list[Group]:
    """The groups as those of the routes that also skip `more`, as far as the run has them; its first route comes first."""
    observed, found = run.routes[0], []
    for routes, state in groups:
        skipping = {route if run.needs_kl and route == UNPRUNED else route | more: None for route in routes}
        kept = sorted((route for route in skipping if route in run.losses), key=lambda route: route != observed)
        found += [(tuple(kept), state)] if kept else []
    return sorted(found, key=lambda group: group[0][0] != observed)
