"""Where every plan comes from: choose() is told by a Choice what is wanted and gives the layers that go.

check_choice() only asks.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, NamedTuple

from shortstack.checkpoint import Sizes
from shortstack.data import Rows, Text, Tokens
from shortstack.data.sources import OWN
from shortstack.errors import InputError, PlanError
from shortstack.machine.device import AUTO, Compute
from shortstack.machine.formats import size
from shortstack.machine.options import check_options, option
from shortstack.machine.progress import Progress, in_notebooks
from shortstack.machine.typed import typed
from shortstack.planning.layer_sets import (
    FINALISTS,
    Removal,
    check_amount,
    check_removal,
    fewest,
    parse_drop,
    parse_goal,
    parse_layers,
    staying_ends,
)
from shortstack.planning.plans import Plan
from shortstack.planning.strategies import STRATEGIES, Strategy, layer_values
from shortstack.scoring import METRICS, Scores
from shortstack.scoring.metrics import Metric, metric_named, removal_order

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint, Model
    from shortstack.machine.memory import Requirements

Source = Tokens | Text | Rows  # see read_tokens()
GOALS = ("params", "memory")  # in the order of Sizes.of()
Fits = Callable[[Sequence[int]], bool]  # whether a model of these kept layers is small enough


@dataclass(frozen=True)
class Choice:
    """Which layers go.

    fits: in place of drop, how small the model must be: as few layers go as leave others that fit.
    """

    metric: str | None = option(None, help=f"How to choose: {', '.join(METRICS)}. Default ppl.")
    drop: str | int | None = option(None, help="How much to remove: 25% of the layers (rounded half up), or a count.")
    params: str | None = option(
        None, help="Remove the fewest layers that bring the model down to this many parameters: 6B, 350M."
    )
    memory: str | None = option(None, help="Remove the fewest layers that bring the weights down to this size: 4GB.")
    layers: str | Sequence[int] | None = option(None, help="Remove exactly these: 22-29,3 (from 0, ranges inclusive).")
    step: int | None = option(None, help="Remove this many layers at a time, rescoring after each removal.", minimum=1)
    strategy: str | None = option(
        None,
        help=f"How to pick layers: {', '.join(STRATEGIES)}. Default lowest.",
        choices=tuple(STRATEGIES),
    )
    finalists: int = option(
        FINALISTS,
        help="Candidate layer sets that repaired-blocks repairs and compares with the best single block; 0: none.",
        minimum=0,
    )
    keep_first: int = option(0, help="Never remove the first n layers.", minimum=0)
    keep_last: int = option(0, help="Never remove the last n layers.", minimum=0)
    fits: Fits | None = None

    def __post_init__(self) -> None:
        check_options(self)
        metric_named(self.name)

    @property
    def name(self) -> str:
        """The metric that counts where none is named."""
        return self.metric or "ppl"

    @property
    def by(self) -> Metric:
        return metric_named(self.name)

    @property
    def how(self) -> Strategy:
        """The strategy that is named, or that a step stands for."""
        return STRATEGIES[self.strategy or ("lowest" if self.step is None else "step")]

    @property
    def needs_text(self) -> bool:
        """Whether the choice depends on what the model computes on a text."""
        return self.layers is None and self.by.needs_text

    @property
    def measures(self) -> bool:
        """Whether shorter models are measured, for which scores of the whole model are not enough."""
        return self.layers is None and self.how.feed == "model"

    def check(self) -> None:
        """Say what is wrong before any model is opened.

        Raises:
            InputError: ways to choose that exclude each other.
            PlanError: nothing says how much goes, or what says it cannot be read.
        """
        said = {name for name, value in vars(self).items() if value is not None}
        step = () if self.strategy == "step" else ("step",)
        metric = () if self.how.by_metric else ("metric",)
        window = ("strategy",) if self.how.window else ()
        excluded: dict[str, Sequence[str]] = {
            "step": ("layers",),
            "layers": ("metric", "strategy"),
            "strategy": (*step, *metric),
            "params": ("memory", "drop", "layers", *window),
            "memory": ("drop", "layers", *window),
        }
        for name, others in excluded.items():
            beside = [other for other in others if {name, other} <= said]
            if beside:
                found, expected = f"{beside[0]} as well", f"{name} or {beside[0]}, not both"
                raise InputError(found, expected=expected, fix="leave one out", option=name)
        if self.finalists != FINALISTS and not self.how.finalists:
            name = next(strategy.name for strategy in STRATEGIES.values() if strategy.finalists)
            fix = f"choose by {name}, or leave it out"
            raise InputError(self.strategy or "none", expected=f"the strategy {name}", fix=fix, option="finalists")
        for name in said & {*GOALS}:
            parse_goal(name, getattr(self, name))
        if said.isdisjoint(("fits", *GOALS)):
            check_amount(self.drop, self.layers)

    def sized(self, sizes: Sizes) -> Choice:
        """Put `fits` in place of a number of parameters or bytes, which a model's sizes tell."""
        name = next((name for name in GOALS if getattr(self, name) is not None), None)
        if name is None:
            return self
        place, most = GOALS.index(name), parse_goal(name, getattr(self, name))
        layers = range(len(sizes.layer_bytes))
        may_go = staying_ends(len(layers), 1, self.keep_first, self.keep_last)
        stay = [layer for layer in layers if layer not in may_go]
        smallest = [sizes.of(kept)[place] for kept in ([stay] if stay else [[layer] for layer in layers])]
        whole, least = sizes.of(layers)[place], min(smallest)
        shown = size if name == "memory" else "{:,}".format
        if most >= whole:
            expected, fix = f"less than the model's {shown(whole)}", "ask for less, or leave it as it is: it fits"
            raise PlanError(shown(most), expected=expected, fix=fix, option=name)
        if most < least:
            expected, fix = f"at least {shown(least)}, which the largest cut leaves", "ask for at least that"
            raise PlanError(shown(most), expected=expected, fix=fix, option=name)
        return replace(self, params=None, memory=None, fits=lambda kept: sizes.of(kept)[place] <= most)

    def removal(self, layers: int, seed: int = 0) -> Removal:
        """Return how many of a model's layers go, and which may."""
        amount = parse_drop(self.drop or 0, layers)
        allowed = staying_ends(layers, amount, self.keep_first, self.keep_last)
        return Removal(amount, allowed, self.by, self.step, seed, self.finalists)

    def plan(self, source: Scores | int, seed: int = 0) -> Plan:
        """Return the plan that follows from scores, or from a number of layers by a metric that needs no scores."""
        layers = source if isinstance(source, int) else source.layers
        if self.layers is not None:
            return self._named(layers)
        metric, strategy = self.by, self.how
        if isinstance(source, Scores):
            metric = metric_named(self.metric or source.default_metric)
        if self.fits is not None:
            ends = staying_ends(layers, 1, self.keep_first, self.keep_last)
            order = [layer for layer in removal_order(layer_values(source, metric, seed)) if layer in ends]
            return Plan(layers, fewest(order, layers, self.fits), f"lowest {metric.name}")
        return strategy.function(source, replace(self.removal(layers, seed), metric=metric))

    def _named(self, count: int) -> Plan:
        named = parse_layers(self.layers) if isinstance(self.layers, str) else tuple(self.layers or ())
        check_removal(named, count, option="layers")
        may_go = range(self.keep_first, count - self.keep_last)
        if staying := sorted(layer for layer in named if layer not in may_go):
            expected = f"the first {self.keep_first} and last {self.keep_last} layers to stay"
            raise PlanError(f"layer {staying[0]}", expected=expected, fix="name other layers", option="layers")
        return Plan(count, tuple(sorted(named)), "layers")

    def like(self, layers: int) -> Plan:
        """Make a plan of the same size at once: what does not fit the model or the disk is said before it is scored."""
        if self.fits is not None:
            ends = range(self.keep_first, layers - self.keep_last)
            return Plan(layers, fewest(ends[::-1], layers, self.fits), "tail")
        tail = Choice("reverse", self.drop, keep_first=self.keep_first, keep_last=self.keep_last)
        return (self if self.layers is not None else tail).plan(layers)

    def allows(self, layers: int, removed: Set[int]) -> bool:
        """Say whether a cut keeps what must be kept, is one window where that was asked for, and leaves what fits."""
        inside = self.keep_first <= min(removed) and max(removed) < layers - self.keep_last
        window = not self.how.window or max(removed) - min(removed) < len(removed)
        small = self.fits is None or self.fits([layer for layer in range(layers) if layer not in removed])
        return inside and window and small


class Chosen(NamedTuple):
    """The plan; the one that was wanted, which the architecture may not be able to express; and scores that were made."""

    plan: Plan
    wanted: Plan
    scores: Scores | None = None


Cut = Plan | Chosen | str | Sequence[int] | Set[int]  # what functions take for layers that go: see plan_of()


@typed
def plan_of(cut: Cut, layers: int) -> Plan:
    """Make the plan for a model of so many layers, however it is given: made, chosen, or the numbers of the layers that go.

    >>> plan_of([3, 5], 8).removed, plan_of("22-24", 32).removed
    ((3, 5), (22, 23, 24))
    """
    plan = cut.plan if isinstance(cut, Chosen) else cut
    if not isinstance(plan, Plan):
        return Choice(layers=plan if isinstance(plan, str) else [*plan]).plan(layers)
    plan.check_depth(layers, where="plan")
    return plan


@typed
def choose(
    model: Model | Scores | int,
    choice: Choice,
    source: Source | Scores | None = None,
    *,
    compute: Compute = AUTO,
    progress: Progress = in_notebooks,
) -> Chosen:
    """Choose the layers to remove from a model, and move the cut to the nearest that its architecture can express.

    model: scores of one, or its number of layers where nothing else decides, will do: then no model is opened, and nothing
    is moved. source: what the metric looks at, mix by default: windows, a text, sources by name or rows in memory; or scores
    of this model. Layers that are named are never moved.

    >>> choose(32, Choice("reverse", drop="25%")).plan.removed
    (24, 25, 26, 27, 28, 29, 30, 31)
    >>> choose(8, Choice(layers="2-3,6")).plan.kept
    (0, 1, 4, 5, 7)

    Raises:
        PlanError: nothing, everything, or something that does not exist would be removed.
        ArchitectureError: no cut near the wanted one can be expressed exactly.
        InputError, DataError: as score(); a metric that no shorter model changes; too few samples to hold some out;
            a choice that measures models, without one.
    """
    if isinstance(model, Scores | int):
        plan = _unopened(model, choice, compute.seed)
        return Chosen(plan, plan, model if isinstance(model, Scores) else None)

    from shortstack.checkpoint import Checkpoint
    from shortstack.planning.exactness import aligned, pruned_config

    checkpoint = Checkpoint.of(model)
    choice = sized_choice(checkpoint, choice)
    layers, scores = checkpoint.anatomy.layers, None
    if choice.measures:
        wanted = _measured(checkpoint, choice, _tokens(checkpoint, source, compute, progress), compute, progress)
    elif choice.layers is not None or not choice.by.needs_scores:
        wanted = choice.plan(layers, compute.seed)
    else:
        if isinstance(source, Scores):
            scores = source
        else:
            from shortstack.scoring import score  # imports torch

            tokens = _tokens(checkpoint, source, compute, progress) if choice.by.needs_text else None
            window = choice.removal(layers).amount if choice.how.window and choice.by.windows else None
            how: dict[str, Any] = {"compute": compute, "progress": progress}
            scores = score(checkpoint, tokens, metrics=[choice.name], window=window, **how)
        wanted = choice.plan(scores, compute.seed)
        wanted.check_depth(layers, where="the scores")
    if choice.layers is None:
        allowed = functools.partial(choice.allows, layers)
        if exact := aligned(checkpoint, wanted, allowed=allowed, progress=progress):
            return Chosen(exact, wanted, scores)
    pruned_config(checkpoint, wanted)  # says why the cut is not exact
    return Chosen(wanted, wanted, scores)


def _unopened(source: Scores | int, choice: Choice, seed: int) -> Plan:
    choice.check()
    if choice.measures:
        raise _no_model(source)
    if choice.params or choice.memory:
        known = source.model if isinstance(source, Scores) else {}
        choice = choice.sized(Sizes.from_dict(known, where=known.get("source", "the model")))
    return choice.plan(source, seed)


def _no_model(source: Scores | int) -> InputError:
    found, where = "its number of layers", "the model"
    if isinstance(source, Scores):
        found, where = "scores of the whole model", source.model.get("source", "scores")
    expected, fix = "a model: this strategy measures pruned versions of it", "name the model instead"
    return InputError(found, expected=expected, fix=fix, where=where)


def sized_choice(checkpoint: Checkpoint, choice: Choice) -> Choice:
    """Return the choice for a model, of which it is clear that so much can go."""
    choice.check()
    choice = choice.sized(checkpoint.sizes)
    if choice.fits is None:
        choice.like(checkpoint.anatomy.layers)
    return choice


def _tokens(checkpoint: Checkpoint, source: Source | Scores | None, compute: Compute, progress: Progress) -> Tokens:
    from shortstack.decoder import read_tokens

    if isinstance(source, Scores):
        expected, fix = "text, or nothing: this strategy measures pruned versions of the model", "leave the scores out"
        raise InputError("scores", expected=expected, fix=fix, where="source")
    return read_tokens(checkpoint, source, compute=compute, progress=progress)


def _measured(checkpoint: Checkpoint, choice: Choice, tokens: Tokens, compute: Compute, progress: Progress) -> Plan:
    """Plan by measuring shorter models: of as few layers as may fit, and of more only where it takes small ones."""
    from shortstack.decoder import Decoder

    layers, decoder = checkpoint.anatomy.layers, Decoder.open(checkpoint, compute)

    def measured_plan(choice: Choice) -> Plan:
        return choice.how.function(decoder, tokens, choice.removal(layers, compute.seed), progress=progress)

    if choice.fits is None:
        return measured_plan(choice)
    heavy_first = sorted(range(layers), key=lambda layer: checkpoint.sizes.layer_bytes[layer], reverse=True)
    for amount in range(len(fewest(heavy_first, layers, choice.fits)), layers):
        plan = measured_plan(replace(choice, drop=amount, fits=None))
        if choice.fits(plan.kept):
            return plan
    raise PlanError("none", expected="a cut that fits this size", fix="allow more bytes", where="plan")


def check_choice(checkpoint: Checkpoint, choice: Choice, text: Text, compute: Compute) -> tuple[Plan, Requirements]:
    """Return a plan as large as choose() would give, or that one where nothing is computed, and the memory choosing takes.

    What choose() refuses is refused. What the model would write itself to be calibrated on is not written.
    """
    from shortstack.decoder import Decoder
    from shortstack.decoder.requirements import requirements
    from shortstack.machine.memory import Requirements
    from shortstack.scoring.measurement import check_differentiable

    sized, layers = sized_choice(checkpoint, choice), checkpoint.anatomy.layers
    if not sized.measures and not sized.needs_text:
        return choose(checkpoint, choice, compute=compute).plan, Requirements()
    like = sized.like(layers)
    tokens = text.replacing({OWN: "recall"}).tokens(checkpoint.tokenizer(), compute.seed)
    decoder = Decoder.outline(checkpoint, compute)
    if decoder:
        decoder.check_direct()
    if sized.measures:
        sized.how.check(decoder, tokens, replace(sized, drop=len(like.removed), fits=None).removal(layers))
    elif decoder and sized.by.feed == "gradient":
        check_differentiable(decoder)
    streams = layers + 1 if sized.measures or sized.by.feed != "hidden" else 1  # of each cut that is compared
    return like, requirements(checkpoint, compute, tokens=tokens.ids.numel(), streams=streams, in_turns=True)
