"""Where every plan comes from: choose() is told what is wanted and gives the layers that go; check_choice() only asks."""

from __future__ import annotations

import functools
from collections.abc import Sequence, Set
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from shortstack.checkpoint import Sizes
from shortstack.data import Rows
from shortstack.data.tokens import CalibrationText, Tokens
from shortstack.errors import InputError, PlanError
from shortstack.machine.device import AUTO, Compute
from shortstack.machine.progress import Progress, in_notebooks
from shortstack.machine.typed import typed
from shortstack.planning.choice import Choice
from shortstack.planning.layer_sets import fewest
from shortstack.planning.plans import Plan
from shortstack.scoring.scores import Scores

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint, Model
    from shortstack.machine.memory import Requirements

Source = Tokens | CalibrationText | Rows  # what is looked at: see tokens_of()


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
            scores = score(checkpoint, tokens, metrics=[choice.name], compute=compute, progress=progress)
        wanted = choice.plan(scores, compute.seed)
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
    expected, fix = "a model, to measure shorter forms of it", "name the model instead"
    return InputError(found, expected=expected, fix=fix, where=where)


def sized_choice(checkpoint: Checkpoint, choice: Choice) -> Choice:
    """Return the choice for a model, of which it is clear that so much can go."""
    choice.check()
    choice = choice.sized(checkpoint.sizes)
    if choice.fits is None:
        choice.like(checkpoint.anatomy.layers)
    return choice


def _tokens(checkpoint: Checkpoint, source: Source | Scores | None, compute: Compute, progress: Progress) -> Tokens:
    from shortstack.decoder import tokens_of

    if isinstance(source, Scores):
        raise _no_model(source)
    return tokens_of(checkpoint, source, compute=compute, progress=progress)


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
    raise PlanError("none", expected="a cut that leaves what fits", fix="allow more bytes", where="plan")


def check_choice(
    checkpoint: Checkpoint, choice: Choice, text: CalibrationText, compute: Compute
) -> tuple[Plan, Requirements]:
    """Return a plan as large as choose() would give, or that one where nothing is computed, and the memory choosing takes.

    What choose() refuses is refused. What the model would write itself to be calibrated on is not written.
    """
    from shortstack.decoder import Decoder, calibration_tokens
    from shortstack.decoder.requirements import requirements
    from shortstack.machine.memory import Requirements
    from shortstack.scoring.measurement import check_differentiable

    sized, layers = sized_choice(checkpoint, choice), checkpoint.anatomy.layers
    if not sized.measures and not sized.needs_text:
        return choose(checkpoint, choice, compute=compute).plan, Requirements()
    like = sized.like(layers)
    tokens = calibration_tokens(checkpoint, text, compute=compute, dry_run=True)
    decoder = Decoder.outline(checkpoint, compute)
    if decoder:
        decoder.check_direct()
    if sized.measures:
        sized.how.check(decoder, tokens, replace(sized, drop=len(like.removed), fits=None).removal(layers))
    elif decoder and sized.by.feed == "gradient":
        check_differentiable(decoder)
    streams = layers + 1 if sized.measures or sized.by.feed != "hidden" else 1  # of each cut that is compared
    return like, requirements(checkpoint, compute, tokens=tokens.ids.numel(), streams=streams, in_turns=True)
