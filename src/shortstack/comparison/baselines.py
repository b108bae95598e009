"""Ways to have a model in fewer bytes of weights: fewer layers, fewer neurons, fewer bits, and masks that save nothing yet.

A contender says what it is and makes its model when asked, or says why it cannot be had. Those with a size to choose are
as large as the budget allows.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from shortstack.checkpoint import Checkpoint
from shortstack.checkpoint.safetensors import BITS
from shortstack.comparison.channel_norms import input_norms
from shortstack.comparison.sparsity import mask, unmaskable
from shortstack.comparison.width import Mlp, Width, chosen_width, find_mlps, fitting_neurons, narrow
from shortstack.data import Tokens
from shortstack.decoder import Decoder
from shortstack.decoder.quantisation import INT8, SCHEMES, Held, Scheme, quantise
from shortstack.errors import ArchitectureError, InputError, PlanError, parameter
from shortstack.machine.device import Compute
from shortstack.machine.progress import Progress, silent
from shortstack.planning import Choice, Plan, choose
from shortstack.planning.layer_sets import show_layers
from shortstack.profiling.counts import fused_experts
from shortstack.pruning import prune
from shortstack.repairing import Repair, repair
from shortstack.scoring import Scores, score

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


QUALITY_ONLY = "quality only: a mask saves no memory here"
Kept = Sequence[int]
Heal = Callable[[Checkpoint, Path], Checkpoint]


class Made(NamedTuple):
    """A contender's model, and the bytes of its weights: of a checkpoint as it is stored, of quantised matrices as held."""

    decoder: Decoder
    bytes: int


@dataclass(frozen=True)
class Contender:
    """One row to be: what makes its model, or the reason why nothing does.

    removed: the layers that are gone. timed: whether its speed means anything.
    """

    name: str
    made: Callable[[], Made] | None = None
    reason: str = ""
    note: str = ""
    removed: tuple[int, ...] = ()
    timed: bool = True


@dataclass(frozen=True)
class Calibration:
    """What choices are made on: windows for metrics and activations, and for repair where that is wanted.

    search: the layers that go are searched for, instead of taken by `metric`. heal: heals a cut into a new folder.
    """

    tokens: Tokens
    repair: Tokens | None = None
    metric: str = "ppl"
    search: bool = False
    heal: Heal | None = None

    @property
    def choice(self) -> Choice:
        """How layers are chosen; how many is for each cut to say."""
        return Choice(search=True) if self.search else Choice(self.metric)


class Contest:
    """A checkpoint, how many bytes its weights may take, and what contenders share: the loaded model, scores, norms."""

    def __init__(
        self,
        checkpoint: Checkpoint,
        budget: int,
        calibration: Calibration,
        *,
        base: Decoder,
        folder: Path,
        progress: Progress = silent,
    ) -> None:
        """base: the checkpoint's model, which is never changed. folder: for checkpoints of contenders."""
        self.checkpoint, self.budget, self.calibration = checkpoint, budget, calibration
        self.base, self.folder, self.progress = base, folder, progress
        self.dtype, self.device = base.dtype, str(base.device)
        self.compute = Compute(dtype=self.dtype, device=self.device)

    def contenders(self, healed: Checkpoint | None = None) -> Iterator[Contender]:
        """All of them, the unpruned model first."""
        yield Contender("unpruned", lambda: Made(self.base, self.checkpoint.weight_bytes))
        yield from self._pruned("pruned", lambda kept: self.checkpoint.sizes.of(kept)[1])
        if healed:
            yield Contender("healed", lambda: self._opened(healed), note=f"{healed.source}, as it is")
        for scheme in SCHEMES.values():
            yield self._quantised(scheme)
        yield from self._pruned_in_int8()
        yield from self._narrowed()
        yield self._masked("2:4 by magnitude", lambda: None)
        yield self._masked("2:4 by Wanda", lambda: self.norms)

    @functools.cached_property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The checkpoint's own, which writes and reads for every contender."""
        return self.checkpoint.tokenizer()

    @functools.cached_property
    def source(self) -> Tokens | Scores:
        """What layers are chosen on: tokens for a search, else scores, which every cut shares."""
        tokens, choice = self.calibration.tokens, self.calibration.choice
        if choice.measures or not choice.by.needs_scores:
            return tokens
        compute = replace(self.compute, seed=tokens.seed)
        return score(self.checkpoint, tokens, metrics=[choice.name], compute=compute, progress=self.progress)

    @functools.cached_property
    def norms(self) -> dict[str, Tensor]:
        """input_norms() of the unpruned model."""
        return input_norms(self.base, self.calibration.tokens.ids, progress=self.progress)

    @functools.cached_property
    def int8_savings(self) -> list[int]:
        """Stored bytes that int8 saves in each layer."""
        return [self._saved(held) for held in quantise(self._loaded(self.checkpoint), INT8)]

    def _saved(self, held: Held) -> int:
        """Stored bytes that quantised matrices save; all are stored in the dtype that most bytes are in."""
        sizes: Counter[str] = Counter()
        for tensor in self.checkpoint.tensors.values():
            sizes[tensor.dtype] += tensor.size
        return held.weights * BITS[sizes.most_common(1)[0][0]] // 8 - held.bytes

    def _loaded(self, checkpoint: Checkpoint) -> Decoder:
        return Decoder.load(checkpoint, dtype=getattr(torch, self.dtype), device=self.device)

    def _opened(self, checkpoint: Checkpoint) -> Made:
        return Made(self._loaded(checkpoint), checkpoint.weight_bytes)

    def _in_bits(self, checkpoint: Checkpoint, scheme: Scheme) -> Made:
        decoder = self._loaded(checkpoint)
        saved = sum(map(self._saved, quantise(decoder, scheme)))
        return Made(decoder, checkpoint.weight_bytes - saved)

    def _missing(self, scheme: Scheme) -> str | None:
        return uncovered(self.base) or scheme.missing(self.device)

    def _quantised(self, scheme: Scheme) -> Contender:
        missing = self._missing(scheme)
        if missing:
            return Contender(scheme.name, reason=missing)
        return Contender(scheme.name, lambda: self._in_bits(self.checkpoint, scheme), note=scheme.library)

    def _pruned(self, name: str, size: Callable[[Kept], int], scheme: Scheme | None = None) -> Iterator[Contender]:
        """The layers that go so that size(kept) fits: as they are and, where that is wanted, repaired and healed."""
        plan = self._plan(size)
        if plan is None:
            yield Contender(name, reason="no exact cut fits the budget")
            return
        note = f"without {len(plan.removed)} layers: {show_layers(plan.removed)}"

        def made(repaired: Repair | None = None, heal: Heal | None = None) -> Made:
            place = self.folder / f"{name}-{'repaired' if repaired else 'cut'}".replace(" ", "-")
            if heal:
                unhealed = prune(self.checkpoint, plan, place.with_name(f"{place.name}-to-heal"), repair=repaired)
                pruned = heal(unhealed, place.with_name(f"{place.name}-healed"))
            else:
                pruned = prune(self.checkpoint, plan, place, repair=repaired)
            return self._in_bits(pruned, scheme) if scheme else self._opened(pruned)

        yield Contender(name, made, note=note, removed=plan.removed)
        found, reason = self._repair(plan)
        if found:
            yield Contender(f"{name}, repaired", functools.partial(made, found), note=note, removed=plan.removed)
        elif reason:
            yield Contender(f"{name}, repaired", reason=reason)
        if self.calibration.heal and not scheme:
            healing = functools.partial(made, found, self.calibration.heal)
            yield Contender(f"{name}, healed", healing, note=note, removed=plan.removed)

    def _repair(self, plan: Plan) -> tuple[Repair | None, str]:
        """What refitting the kept layers gives, where that is wanted and helps; else the reason, which is for the table."""
        if not self.calibration.repair:
            return None, ""
        try:
            found = repair(
                self.checkpoint,
                frozenset(plan.removed),
                self.calibration.repair,
                compute=self.compute,
                progress=self.progress,
            )
        except ArchitectureError as error:  # a correction has no place in such layers
            return None, f"repair expects {error.expected}, found {error.found}"
        return (found, "") if found.kept else (None, "no repair lowers the held-out loss")

    def _plan(self, size: Callable[[Kept], int]) -> Plan | None:
        """The exact cut nearest to the fewest chosen layers without which the others fit the budget."""
        choice = replace(self.calibration.choice, fits=lambda kept: size(kept) <= self.budget)
        compute = replace(self.compute, seed=self.calibration.tokens.seed)
        try:
            chosen = choose(self.checkpoint, choice, self.source, compute=compute, progress=self.progress)
        except (ArchitectureError, PlanError):  # nothing fits that can be expressed
            return None
        return chosen.plan

    def _pruned_in_int8(self) -> Iterator[Contender]:
        name, missing = "pruned + int8", self._missing(INT8)
        if missing:
            yield Contender(name, reason=missing)
            return

        def size(kept: Kept) -> int:
            return self.checkpoint.sizes.of(kept)[1] - sum(self.int8_savings[layer] for layer in kept)

        if size(range(self.checkpoint.anatomy.layers)) <= self.budget:
            yield Contender(name, reason="int8 alone fits the budget")
        else:
            yield from self._pruned(name, size, INT8)

    def _narrowed(self) -> Iterator[Contender]:
        names = {"narrowed by magnitude": False, "narrowed by activation": True}
        try:
            mlps = find_mlps(self.base)
            keep = fitting_neurons(self.checkpoint, mlps, self.budget)
            widths = {name: self._width(mlps, keep, active) for name, active in names.items() if keep}
        except ArchitectureError as error:  # an MLP of another form: the reason is for the table
            yield from (Contender(name, reason=f"{error.expected}, found {error.found}") for name in names)
            return
        for name in names:
            if keep:
                note = f"{keep:,} of {mlps[0].neurons:,} neurons in each MLP"
                yield Contender(name, functools.partial(self._narrow, mlps, widths[name]), note=note)
            else:
                yield Contender(name, reason="does not fit the budget without MLPs either")

    def _width(self, mlps: Sequence[Mlp], keep: int, active: bool) -> Width:
        return chosen_width(self.checkpoint, self.base, mlps, keep, norms=self.norms if active else None)

    def _narrow(self, mlps: Sequence[Mlp], width: Width) -> Made:
        return self._opened(narrow(self.checkpoint, mlps, width, self.folder / f"narrowed-{width.weighed_by}"))

    def _masked(self, name: str, norms: Callable[[], dict[str, Tensor] | None]) -> Contender:
        def made() -> Made:
            decoder = self._loaded(self.checkpoint)
            mask(decoder, norms())
            return Made(decoder, self.checkpoint.weight_bytes)

        odd = uncovered(self.base) or unmaskable(self.base)
        return Contender(name, reason=odd) if odd else Contender(name, made, note=QUALITY_ONLY, timed=False)


def uncovered(decoder: Decoder) -> str | None:
    """Why quantisation and masks of linear layers would leave out most of a decoder; None where they do not."""
    if fused_experts(decoder.model):
        return "matrices of several experts are one weight, which is not covered"
    if any(type(module).__name__ == "Conv1D" for layer in decoder.layers for module in layer.modules()):
        return "matrices are Conv1D modules, which are not covered"
    return None


def parse_memory(memory: str, whole: int, *, least: int = 0) -> int:
    """How many bytes a share of `whole` is. least: what embedding, head and norms take, which every contender keeps.

    >>> parse_memory("50%", 1000)
    500

    Raises:
        InputError: it is no share between 0 and 100 percent, or nothing can be so small.
    """
    digits = memory.strip().removesuffix("%")
    share = float(digits) if memory.strip().endswith("%") and digits.replace(".", "", 1).isdecimal() else 0.0
    if not 0 < share < 100:
        raise InputError(
            parameter("memory"),
            expected="a share of the unpruned weights' bytes, above 0% and below 100%",
            found=repr(memory),
            fix=f"write {parameter('memory', '50%')}",
        )
    budget = int(whole * share / 100)
    if budget <= least:
        raise InputError(
            parameter("memory"),
            expected=f"more than the {least / whole:.0%} of the bytes that "
            f"are not in layers and stay in every contender",
            found=memory,
            fix=f"write {parameter('memory', f'{min(99, 100 * least // whole + 10)}%')}",
        )
    return budget
