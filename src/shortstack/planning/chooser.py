"""Where every plan comes from: choose() is told what is wanted and gives the layers that go."""

from __future__ import annotations

import functools
from collections.abc import Sequence, Set
from dataclasses import replace
from typing import TYPE_CHECKING, NamedTuple

from shortstack.data import Rows
from shortstack.data.tokens import CalibrationText, Tokens
from shortstack.errors import InputError, PlanError
from shortstack.machine.device import AUTO, Compute
from shortstack.machine.progress import Progress, in_notebooks
from shortstack.machine.typed import typed
from shortstack.planning.choice import Choice
from shortstack.planning.layer_sets import fewest, parse_drop
from shortstack.planning.plans import Plan
from shortstack.scoring.scores import Scores

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint, Model

Source = Tokens | CalibrationText | Rows  # what is looked at: see tokens_of()


class Chosen(NamedTuple):
    """The plan; the one that was wanted, which the architecture may not be able to express; and scores that were made."""

    plan: Plan
    wanted: Plan
    scores: Scores | None = None


Cut = Plan | Chosen | str | Sequence[int] | Set[int]  # what functions take for layers that go: see plan_of()


@typed
def plan_of(cut: Cut, layers: int) -> Plan:
    """The plan for a model of so many layers, however it is given: made, chosen, or the numbers of the layers that go.

    >>> plan_of([3, 5], 8).removed, plan_of("22-24", 32).removed
    ((3, 5), (22, 23, 24))
    """
    if isinstance(cut, Plan):
        return cut
    if isinstance(cut, Chosen):
        return cut.plan
    return Choice(layers=cut if isinstance(cut, str) else [*cut]).plan(layers)


@typed
def choose(
    checkpoint: Model,
    choice: Choice,
    source: Source | Scores | None = None,
    *,
    compute: Compute = AUTO,
    progress: Progress = in_notebooks,
) -> Chosen:
    """Choose the layers to remove from a checkpoint, and move the cut to the nearest that its architecture can express.

    source: what the metric looks at, mix by default: windows, a text, sources by name or rows in memory; or scores of this
    model. Layers that are named are never moved.

    Raises:
        PlanError: nothing, everything, or something that does not exist would be removed.
        ArchitectureError: no cut near the wanted one can be expressed exactly.
        InputError, DataError: as score(); a metric that no shorter model changes; too few samples to hold some out.
    """
    from shortstack.checkpoint import Checkpoint
    from shortstack.planning.exactness import aligned, pruned_config

    checkpoint = Checkpoint.of(checkpoint)
    choice = sized_choice(checkpoint, choice)
    layers, scores = checkpoint.anatomy.layers, None
    if choice.measures:
        wanted = _measured(checkpoint, choice, _tokens(checkpoint, source, compute, progress), compute, progress)
    elif choice.layers is not None or not choice.by.needs_scores:
        wanted = choice.plan(layers, compute.seed)
    else:
        scores = source if isinstance(source, Scores) else _scored(checkpoint, choice, source, compute, progress)
        wanted = choice.plan(scores, compute.seed)
    found = (
        None
        if choice.layers is not None
        else aligned(checkpoint, wanted, allowed=functools.partial(choice.allows, layers), progress=progress)
    )
    if found is None:
        pruned_config(checkpoint, wanted)  # says why the cut is not exact
    return Chosen(found or wanted, wanted, scores)


def sized_choice(checkpoint: Checkpoint, choice: Choice) -> Choice:
    """The choice for a model, of which it is clear that so much can go."""
    choice.check()
    choice = choice.sized(checkpoint.sizes)
    if choice.fits is None:
        choice.like(checkpoint.anatomy.layers)
    return choice


def _tokens(checkpoint: Checkpoint, source: Source | Scores | None, compute: Compute, progress: Progress) -> Tokens:
    from shortstack.decoder import tokens_of

    if isinstance(source, Scores):
        raise InputError(
            str(source.model.get("source", "scores")),
            expected="a model, to measure shorter forms of it",
            found="scores of the whole model",
            fix="name the model instead of the scores",
        )
    return tokens_of(checkpoint, source, compute=compute, progress=progress)


def _scored(
    checkpoint: Checkpoint,
    choice: Choice,
    source: Source | None,
    compute: Compute,
    progress: Progress,
) -> Scores:
    """Scores by the metric of the choice: of windows where it scores nothing else."""
    from shortstack.scoring import score

    tokens = _tokens(checkpoint, source, compute, progress) if choice.by.needs_text else None
    window = scored_window(choice, checkpoint.anatomy.layers)
    return score(checkpoint, tokens, metrics=[choice.name], window=window, compute=compute, progress=progress)


def scored_window(choice: Choice, layers: int) -> int | None:
    """The size of the blocks that are scored; None: single layers are."""
    return None if choice.by.singles else parse_drop(choice.drop or 0, layers)


def _measured(checkpoint: Checkpoint, choice: Choice, tokens: Tokens, compute: Compute, progress: Progress) -> Plan:
    """By measuring shorter models: of as few layers as may fit, and of more only where it takes small ones."""
    from shortstack.decoder import Decoder

    layers, decoder = checkpoint.anatomy.layers, Decoder.open(checkpoint, compute)

    def found(choice: Choice) -> Plan:
        return choice.how.function(decoder, tokens, choice.removal(layers, compute.seed), progress)

    if choice.fits is None:
        return found(choice)
    heavy_first = sorted(range(layers), key=lambda layer: checkpoint.sizes.layer_bytes[layer], reverse=True)
    for amount in range(len(fewest(heavy_first, layers, choice.fits)), layers):
        plan = found(replace(choice, drop=amount, fits=None))
        if choice.fits(plan.kept):
            return plan
    raise PlanError("plan", expected="a cut that leaves what fits", found="none", fix="allow more bytes")
