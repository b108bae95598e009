"""Closed-form repair of a cut: matrices of kept layers refitted so that the hidden states follow those of the whole model.

The whole model and the shortened one go through the same walk. Where they part, the last matrix before the cut is refitted
by ridge regression to give what leaves the removed layers (after ReplaceMe, arXiv 2505.02819); behind the cut every outlet
is, to give what the whole model has at the same place. No parameter is added, and nothing is trained.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch
from torch import Tensor

from shortstack.checkpoint import Checkpoint
from shortstack.errors import ArchitectureError, DataError
from shortstack.loading import changed_tensors
from shortstack.losses import divergences, next_token_losses
from shortstack.metrics import checked, in_float64
from shortstack.outlets import OUTPUT, Outlet, changed_by, find_outlets, listening
from shortstack.progress import Progress, silent
from shortstack.shards import StoredTensor
from shortstack.tokens import Tokens
from shortstack.walk import BATCH_TOKENS, Decoder, Route, State

RIDGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0)  # of the mean square of the inputs
HELD_OUT = 4  # one sample in so many chooses the ridge and judges the repair


@dataclass(frozen=True)
class Fit:
    """One matrix refitted. layer: in the unpruned model. error: held-out squared error after over before, both weighted."""

    layer: int
    weight: str
    ridge: float
    error: float


@dataclass(frozen=True)
class Repair:
    """What refitting did to the held-out loss, nats per token; tensors: the changed ones, by the source's names.

    kept: whether the repair lowered the loss; if not, there are no tensors, and the fits are what was tried.
    """

    fits: tuple[Fit, ...]
    loss_unpruned: float
    loss_before: float
    loss_after: float
    kept: bool
    tensors: Mapping[str, StoredTensor]
    tokens: Mapping[str, Any]
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        found = asdict(replace(self, tensors={}))
        found.pop("tensors")
        return found


@torch.no_grad()
def repair(
    checkpoint: Checkpoint,
    removed: Route,
    tokens: Tokens,
    *,
    dtype: str = "auto",
    device: str = "auto",
    stream: bool | None = None,
    progress: Progress = silent,
) -> Repair:
    """Refit kept layers of the checkpoint for a cut of the layers `removed`; writes nothing.

    One sample in four is held out: it chooses each ridge, and says whether the loss fell. If it did not, nothing is kept.

    Raises:
        ArchitectureError: layers hand on more than hidden states, or have no matrix that a correction folds into.
        DataError: fewer than four samples.
    """
    started = time.perf_counter()
    if len(tokens.ids) < HELD_OUT:
        raise DataError(
            tokens.source,
            expected=f"at least {HELD_OUT} samples, since one in {HELD_OUT} is held out",
            found=str(len(tokens.ids)),
            fix="add --repair-samples 256",
        )
    decoder = Decoder.open(checkpoint, dtype=dtype, device=device, stream=stream)
    decoder.check_bare("leave --repair out")
    follower = _Follower(decoder, removed, tokens.ids, progress).walk()
    unpruned, before, after = follower.losses()
    kept = after < before
    changes = follower.changes if kept else {}
    return Repair(
        tuple(follower.fits),
        unpruned,
        before,
        after if kept else before,
        kept,
        changed_tensors(checkpoint, changes),
        tokens.record(),
        round(time.perf_counter() - started, 3),
    )


def divided(ids: Tensor) -> tuple[Tensor, Tensor]:
    """Samples to fit on, and every fourth, held out."""
    back = torch.arange(len(ids)) % HELD_OUT == HELD_OUT - 1
    return ids[~back], ids[back]


def _batches(ids: Tensor, decoder: Decoder) -> list[Tensor]:
    size = max(1, BATCH_TOKENS // ids.shape[1])
    return list(ids.to(decoder.device).split(size))


class _Moments:
    """Sums over tokens for regressing residuals [tokens, width] on inputs [tokens, d], each token with a weight; fp64."""

    def __init__(self) -> None:
        self.inputs = self.both = self.residuals = torch.zeros((), dtype=torch.float64)

    def add(self, inputs: Tensor, residuals: Tensor, weights: Tensor) -> None:
        x, r = inputs.flatten(0, -2).float(), residuals.flatten(0, -2)
        scaled = x * weights[:, None]
        self.inputs = self.inputs + in_float64(scaled.T @ x)
        self.both = self.both + in_float64(r.T @ scaled)
        self.residuals = self.residuals + in_float64((r.square().sum(-1) * weights).sum())

    def solved(self, ridge: float) -> Tensor:
        """argmin of sum w |r - W x|^2 + ridge mean(w x^2) |W|^2, [width, d]."""
        size = len(self.inputs)
        penalty = ridge * self.inputs.trace() / size * torch.eye(size, dtype=torch.float64, device=self.inputs.device)
        return torch.cholesky_solve(self.both.T, torch.linalg.cholesky(self.inputs + penalty)).T

    def error(self, weight: Tensor) -> float:
        """sum w |r - W x|^2 over sum w |r|^2."""
        if not self.residuals:
            return 1.0
        explained = 2 * (weight * self.both).sum() - (weight @ self.inputs * weight).sum()
        return float(1 - explained / self.residuals)


class _Follower:
    """The whole model's streams, and the shortened one's, which is refitted to follow; the last batches are held out."""

    def __init__(self, decoder: Decoder, removed: Route, ids: Tensor, progress: Progress) -> None:
        """ids: [samples, length]."""
        self.decoder, self.removed, self.progress = decoder, removed, progress
        self.layers = len(decoder.layers)
        fitting, self.judging = (_batches(part, decoder) for part in divided(ids))
        self.batches, self.fitting = [*fitting, *self.judging], len(fitting)
        self.whole = [decoder.enter(some).groups[0][1].hidden for some in self.batches]
        self.short, self.plain = list(self.whole), self.whole[self.fitting :]
        self.parted = False
        self.open: tuple[int, Outlet, list[Tensor]] | None = None  # the last matrix before a cut, and what enters it
        self.changes: dict[str, Tensor] = {}
        self.fits: list[Fit] = []

    def walk(self) -> _Follower:
        for layer in range(self.layers):
            with self.decoder.resident(layer):
                self._pass(layer)
            if self.open and layer + 1 not in self.removed:
                self._close()
            self.progress("repairing", layer + 1, self.layers)
        return self

    def losses(self) -> tuple[float, float, float]:
        """Held-out loss of the whole model, of the shortened one, and of that repaired."""
        streams = self.whole[self.fitting :], self.plain, self.short[self.fitting :]
        whole, plain, short = (
            torch.cat(
                [next_token_losses(self.decoder, *each).flatten() for each in zip(self.judging, some, strict=True)]
            )
            for some in streams
        )
        found = [checked(float(in_float64(each).mean()), "held-out loss") for each in (whole, plain, short)]
        return found[0], found[1], found[2]

    def _pass(self, layer: int) -> None:
        cut_follows = layer + 1 in self.removed
        if layer in self.removed:
            self.parted = True
            self.whole = self._step(layer, self.whole, self.batches)
        elif not self.parted and not cut_follows:
            self.whole = self._step(layer, self.whole, self.batches)
            self.short, self.plain = list(self.whole), self.whole[self.fitting :]
        else:
            self._refit(layer, cut_follows)

    def _refit(self, layer: int, cut_follows: bool) -> None:
        """A kept layer's outlets, one after the other; the one that gives its output waits where a cut follows."""
        module = self.decoder.layers[layer]
        outlets = find_outlets(self.decoder, layer)
        if cut_follows:
            _at_output(self.decoder, layer, outlets)
        places = [outlet.place for outlet in outlets if outlet.place != OUTPUT]
        with listening(module, places) as targets:
            after = self._step(layer, self.whole, self.batches)
        targets[OUTPUT] = after
        self.plain = self._step(layer, self.plain, self.judging) if self.parted else after[self.fitting :]
        with ExitStack() as changed:
            for outlet in outlets if self.parted else [outlet for outlet in outlets if outlet.place == OUTPUT]:
                with listening(module, [outlet.name, *places]) as entered:
                    found = self._step(layer, self.short, self.batches)
                if outlet.place == OUTPUT and cut_follows:
                    self.open = (layer, outlet, entered[outlet.name])
                    continue
                here = found if outlet.place == OUTPUT else entered[outlet.place]
                change = self._fitted(layer, outlet, entered[outlet.name], here, targets[outlet.place])
                if change is not None:
                    changed.enter_context(changed_by(outlet.weight(module), outlet.laid(change)))
            self.short = self._step(layer, self.short, self.batches)
        self.whole = after

    def _close(self) -> None:
        """Behind a cut: refit the last matrix before it to give what the removed layers gave."""
        assert self.open  # noqa: S101  the caller has looked
        layer, outlet, entered = self.open
        self.open = None
        change = self._fitted(layer, outlet, entered, self.short, self.whole)
        pairs = zip(self.short, entered, strict=True)
        self.short = [_corrected(hidden, inputs, change) for hidden, inputs in pairs]

    def _fitted(
        self, layer: int, outlet: Outlet, entered: Sequence[Tensor], here: Sequence[Tensor], there: Sequence[Tensor]
    ) -> Tensor | None:
        """The change that _best finds, kept under the weight's name."""
        name = f"{self.decoder.anatomy.layer(layer)}.{outlet.name}.weight"
        ridge, error, change = _best(entered, here, there, self.fitting, name)
        if change is None:
            return None
        self.changes[name] = outlet.laid(change).cpu()
        self.fits.append(Fit(layer, outlet.name, ridge, error))
        return change

    def _step(self, layer: int, streams: Sequence[Tensor], batches: Sequence[Tensor]) -> list[Tensor]:
        return _stepped(self.decoder, layer, streams, batches)


def _stepped(decoder: Decoder, layer: int, streams: Sequence[Tensor], batches: Sequence[Tensor]) -> list[Tensor]:
    """The streams as they leave a layer whose weights are in memory."""
    return [
        decoder.step(ids, layer, [State(hidden, {})])[0].hidden for ids, hidden in zip(batches, streams, strict=True)
    ]


def _best(
    entered: Sequence[Tensor], here: Sequence[Tensor], there: Sequence[Tensor], fitting: int, where: str
) -> tuple[float, float, Tensor | None]:
    """Ridge, held-out error and the change [width, inputs] that brings `here` closest to `there`; no change if none helps.

    Batches from number `fitting` on are held out. A token counts by 1 / |there|: a few with massive activations would own
    the fit otherwise.
    """
    fitted, judged = _Moments(), _Moments()
    for number, (inputs, found, wanted) in enumerate(zip(entered, here, there, strict=True)):
        wanted = wanted.float()
        weights = 1 / wanted.flatten(0, -2).norm(dim=-1).clamp_min(torch.finfo(torch.float32).tiny)
        (fitted if number < fitting else judged).add(inputs, wanted - found.float(), weights)
    tried = {ridge: fitted.solved(ridge) for ridge in RIDGES}
    errors = {ridge: judged.error(change) for ridge, change in tried.items()}
    ridge = min(errors, key=errors.__getitem__)
    error = checked(errors[ridge], where)
    return ridge, error, tried[ridge].float().to(here[0].device) if error < 1 else None


def _corrected(hidden: Tensor, inputs: Tensor, change: Tensor | None) -> Tensor:
    """Hidden states with a change of an outlet's weight, given what entered it."""
    if change is None:
        return hidden
    return (hidden.float() + (inputs.float() @ change.T).view(hidden.shape)).to(hidden.dtype)


@torch.no_grad()
def repaired_tails(
    decoder: Decoder, ids: Tensor, judging: Tensor, *, progress: Progress = silent
) -> list[tuple[float, float]]:
    """Loss on `judging` [samples, length] of the first 1, 2, ... layers, and KL from the whole model, in nats per token.

    Of each tail cut the last kept layer's outlet is refitted on three of four samples of `ids` [samples, length], and the
    fourth chooses the ridge; all from two walks.

    Raises:
        ArchitectureError: as repair().
    """
    decoder.check_bare("leave --repair out")
    parts = [_batches(part, decoder) for part in (*divided(ids), judging)]
    batches, layers = [batch for part in parts for batch in part], len(decoder.layers)
    known, judged = slice(len(parts[0]) + len(parts[1])), slice(len(parts[0]) + len(parts[1]), None)
    streams = [decoder.enter(some).groups[0][1].hidden for some in batches]
    whole, found = list(streams), []
    for layer in range(layers):
        with decoder.resident(layer):
            whole = _stepped(decoder, layer, whole, batches)
        progress("repairing", layer + 1, 2 * layers)
    for layer in range(layers):
        with decoder.resident(layer):
            outlet = _at_output(decoder, layer, find_outlets(decoder, layer))
            with listening(decoder.layers[layer], [outlet.name]) as entered:
                streams = _stepped(decoder, layer, streams, batches)
        inputs, where = entered[outlet.name], f"{layer + 1} layers, repaired"
        change = _best(inputs[known], streams[known], whole[known], len(parts[0]), where)[2]
        short = [_corrected(*each, change) for each in zip(streams[judged], inputs[judged], strict=True)]
        found.append(_judged(decoder, batches[judged], whole[judged], short, where))
        progress("repairing", layers + layer + 1, 2 * layers)
    return found


def _judged(
    decoder: Decoder, batches: Sequence[Tensor], whole: Sequence[Tensor], short: Sequence[Tensor], where: str
) -> tuple[float, float]:
    """Mean loss of the shorter model, and its KL divergence from the whole one."""
    sums = [
        pair
        for ids, there, hidden in zip(batches, whole, short, strict=True)
        for pair in divergences(decoder, ids, there, [hidden])
    ]
    losses, kls = (float(in_float64(torch.cat(each, dim=1)).mean()) for each in zip(*sums, strict=True))
    return checked(losses, where), kls


def _at_output(decoder: Decoder, layer: int, outlets: Sequence[Outlet]) -> Outlet:
    """The outlet that adds to the layer's output."""
    for outlet in outlets:
        if outlet.place == OUTPUT:
            return outlet
    raise ArchitectureError(
        f"{decoder.anatomy.architecture}, layer {layer}",
        expected="a matrix whose product is added to the layer's output, to fold a correction into",
        found="none, as where a norm or a router follows the last matrix",
        fix="leave --repair out",
    )
