"""Ways to have a model in fewer bytes of weights: fewer layers, fewer neurons, fewer bits, and masks that save nothing yet.

A way is one function in BASELINES. What it yields says what it is and makes its model when asked, or says why it cannot be
had. Those with a size to choose are as large as the budget allows.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from shortstack.checkpoint import Checkpoint, Model
from shortstack.comparison.within_layers import (
    chosen_neurons,
    find_mlps,
    fitting_neurons,
    input_norms,
    mask,
    narrow,
    size_field,
    unmaskable,
)
from shortstack.data import Tokens
from shortstack.decoder import Decoder
from shortstack.decoder.quantisation import INT8, SCHEMES, Scheme, quantise, saved_bytes, uncovered
from shortstack.errors import ArchitectureError, InputError, PlanError
from shortstack.machine.device import Compute
from shortstack.machine.formats import BYTES, count_in, show_layers, size
from shortstack.machine.progress import Progress
from shortstack.planning import Choice, Plan, choose
from shortstack.pruning import prune
from shortstack.scoring import Scores, score

KeptLayers = Sequence[int]
# A baseline's model, and the bytes of its weights: of a checkpoint as it is stored, of quantised matrices as held.
Built = tuple[Decoder, int]


@dataclass(frozen=True)
class Baseline:
    """One row of a comparison: what makes its model, or the reason why nothing does.

    removed: the layers that are gone. timed: whether its speed means anything.
    """

    name: str
    make: Callable[[], Built] | None = None
    reason: str = ""
    note: str = ""
    removed: tuple[int, ...] = ()
    timed: bool = True


@dataclass(frozen=True)
class Calibration:
    """The data on which baselines make choices: windows for metrics and activations, and for repair where it is wanted.

    healed: a model that is healed already, for a row of its own.
    """

    tokens: Tokens
    repair: Tokens | None = None
    metric: str = "ppl"
    healed: Model | None = None

    @functools.cached_property
    def healed_checkpoint(self) -> Checkpoint | None:
        """The checkpoint that is healed already, opened; None if there is none."""
        return None if self.healed is None else Checkpoint.of(self.healed)

    @property
    def choice(self) -> Choice:
        """How layers are chosen; how many is for each cut to say."""
        return Choice(self.metric)


@dataclass(frozen=True)
class BaselineContext:
    """A checkpoint, how many bytes its weights may take, and what baselines share: the loaded model, scores, norms.

    base: the checkpoint's model, which is never changed. folder: for their checkpoints. stream: as in Compute.
    """

    checkpoint: Checkpoint
    budget: int
    calibration: Calibration
    base: Decoder
    folder: Path
    stream: bool | None
    progress: Progress

    @property
    def compute(self) -> Compute:
        return Compute(self.calibration.tokens.seed, str(self.base.device), self.base.dtype, self.stream)

    @property
    def changes(self) -> str | None:
        """Why loaded weights cannot be changed; None where they can."""
        return "its weights are read layer by layer" if self.base.weights else None

    @functools.cached_property
    def source(self) -> Tokens | Scores:
        """The basis on which layers are chosen: scores, which every cut shares, where the metric needs them."""
        tokens, choice = self.calibration.tokens, self.calibration.choice
        if not choice.by.needs_scores:
            return tokens
        return score(self.checkpoint, tokens, metrics=[choice.name], compute=self.compute, progress=self.progress)

    @functools.cached_property
    def norms(self) -> dict[str, Tensor]:
        """input_norms() of the unpruned model."""
        return input_norms(self.base, self.calibration.tokens.ids, progress=self.progress)

    @functools.cached_property
    def int8_savings(self) -> list[int]:
        """Stored bytes that int8 saves in each layer."""
        return [saved_bytes(self.checkpoint, [layer]) for layer in quantise(self.load(self.checkpoint), INT8)]

    def load(self, checkpoint: Checkpoint) -> Decoder:
        """Return the model of a checkpoint in memory, computing as the unpruned one does."""
        return Decoder.load(checkpoint, dtype=getattr(torch, self.compute.dtype), device=self.compute.device)

    def made(self, checkpoint: Checkpoint, scheme: Scheme | None = None) -> Built:
        """Return a checkpoint as a baseline's model: as it is, or quantised."""
        if scheme is None:
            return Decoder.open(checkpoint, self.compute), checkpoint.weight_bytes
        decoder = self.load(checkpoint)
        return decoder, checkpoint.weight_bytes - saved_bytes(checkpoint, quantise(decoder, scheme))

    def unquantisable(self, scheme: Scheme) -> str | None:
        """Return why a scheme cannot be had for this checkpoint on this machine; None where it can."""
        return self.changes or uncovered(self.base) or scheme.missing(self.compute.device)

    def plan(self, size: Callable[[KeptLayers], int]) -> Plan | None:
        """Find the exact cut nearest to the fewest chosen layers without which size(kept) fits; None where none does."""
        choice = replace(self.calibration.choice, fits=lambda kept: size(kept) <= self.budget)
        try:
            chosen = choose(self.checkpoint, choice, self.source, compute=self.compute, progress=self.progress)
        except (ArchitectureError, PlanError):  # nothing fits that can be expressed
            return None
        return chosen.plan

    def repaired(self, plan: Plan, place: Path) -> tuple[Checkpoint | None, str]:
        """Cut and repair, if that is wanted and helps; otherwise return None and the reason for the table."""
        tokens = self.calibration.repair
        if not tokens:
            return None, ""
        try:
            made = prune(self.checkpoint, plan, place, repair=tokens, compute=self.compute, progress=self.progress)
        except ArchitectureError as error:  # a correction has no place in such layers
            return None, f"no repair: {error}"
        return (made, "") if made.record["repair"]["kept"] else (None, "no repair lowers the held-out loss")


def unpruned(context: BaselineContext) -> Iterator[Baseline]:
    yield Baseline("unpruned", lambda: (context.base, context.checkpoint.weight_bytes))


def pruned(context: BaselineContext) -> Iterator[Baseline]:
    """Yield the model with fewer layers, as they are and, where that is wanted, repaired."""
    yield from _cut(context, "pruned", lambda kept: context.checkpoint.sizes.of(kept)[1])


def healed(context: BaselineContext) -> Iterator[Baseline]:
    checkpoint = context.calibration.healed_checkpoint
    if checkpoint:
        yield Baseline("healed", lambda: context.made(checkpoint), note=f"{checkpoint.source}, as it is")


def quantised(context: BaselineContext) -> Iterator[Baseline]:
    for scheme in SCHEMES.values():
        if missing := context.unquantisable(scheme):
            yield Baseline(scheme.name, reason=missing)
        else:
            make = functools.partial(context.made, context.checkpoint, scheme)
            yield Baseline(scheme.name, make, note=scheme.library)


def pruned_in_int8(context: BaselineContext) -> Iterator[Baseline]:
    name, sizes = "pruned + int8", context.checkpoint.sizes

    def size(kept: KeptLayers) -> int:
        return sizes.of(kept)[1] - sum(context.int8_savings[layer] for layer in kept)

    if missing := context.unquantisable(INT8):
        yield Baseline(name, reason=missing)
        return
    try:
        _ = context.int8_savings
    except ArchitectureError as error:  # the row of int8 says so, too
        yield Baseline(name, reason=f"{error.expected}, found {error.found}")
        return
    if size(range(context.checkpoint.anatomy.layers)) <= context.budget:
        yield Baseline(name, reason="int8 alone fits the budget")
    else:
        yield from _cut(context, name, size, INT8)


def _cut(
    context: BaselineContext, name: str, size: Callable[[KeptLayers], int], scheme: Scheme | None = None
) -> Iterator[Baseline]:
    plan = context.plan(size)
    if plan is None:
        yield Baseline(name, reason="no exact cut fits the budget")
        return

    def make() -> Built:
        return context.made(prune(context.checkpoint, plan, context.folder / f"{name}-cut"), scheme)

    row = Baseline(name, make, "", f"without {len(plan.removed)} layers: {show_layers(plan.removed)}", plan.removed)
    yield row
    repaired, reason = context.repaired(plan, context.folder / f"{name}-repaired")
    if repaired:
        yield replace(row, name=f"{name}, repaired", make=functools.partial(context.made, repaired, scheme))
    elif reason:
        yield Baseline(f"{name}, repaired", reason=reason)


def narrowed(context: BaselineContext) -> Iterator[Baseline]:
    """Yield the model with fewer neurons in each MLP: those that give least go."""
    name, checkpoint = "narrowed by activation", context.checkpoint
    try:
        mlps = find_mlps(context.base)
        keep = fitting_neurons(checkpoint, mlps, context.budget)
        if not keep:
            yield Baseline(name, reason="does not fit the budget without MLPs either")
            return
        kept = chosen_neurons(checkpoint, mlps, keep, context.norms)
        field = size_field(checkpoint, mlps, keep)
    except ArchitectureError as error:  # an MLP of another form: the reason is for the table
        yield Baseline(name, reason=f"{error.expected}, found {error.found}")
        return
    note = f"{keep:,} of {mlps[0].neurons:,} neurons in each MLP"
    out = context.folder / "narrowed"
    yield Baseline(name, lambda: context.made(narrow(checkpoint, mlps, kept, field, out)), note=note)


def sparse(context: BaselineContext) -> Iterator[Baseline]:
    """Yield the model with two of four weights zero: those that matter least by Wanda."""

    def make() -> Built:
        decoder = context.load(context.checkpoint)
        mask(decoder, context.norms)
        return decoder, context.checkpoint.weight_bytes

    if reason := context.changes or uncovered(context.base) or unmaskable(context.base):
        yield Baseline("2:4 by Wanda", reason=reason)
    else:
        yield Baseline("2:4 by Wanda", make, note="quality only: a mask saves no memory here", timed=False)


BASELINES: tuple[Callable[[BaselineContext], Iterator[Baseline]], ...] = (
    unpruned,
    pruned,
    healed,
    quantised,
    pruned_in_int8,
    narrowed,
    sparse,
)


def parse_memory(memory: str, whole: int, *, least: int = 0) -> int:
    """Read a budget of bytes: a share of `whole`, or a size.

    least: what embedding, head and norms take, which every baseline keeps.

    >>> parse_memory("50%", 1000), parse_memory("0.4KB", 1000)
    (500, 400)
    """
    digits = memory.strip().removesuffix("%")
    is_share = memory.strip().endswith("%") and digits.replace(".", "", 1).isdecimal()
    budget = int(whole * float(digits) / 100) if is_share else count_in(BYTES, memory) or 0
    if not 0 < budget < whole:
        raise InputError(
            repr(memory),
            expected=f"a share of the unpruned weights between 0% and 100%, or a size below their {size(whole)}",
            fix="write it like 50% or 4GB",
            option="memory",
        )
    if budget <= least:
        raise InputError(
            memory,
            expected=f"more than the {least / whole:.0%} of the bytes that are not in layers and stay in every baseline",
            fix=f"allow more, such as {min(99, 100 * least // whole + 10)}%",
            option="memory",
        )
    return budget
