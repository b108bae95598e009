"""Layers chosen for a draft: right so often, and at so little cost, that the original writes fastest with it."""

from __future__ import annotations

from dataclasses import dataclass, replace

from shortstack.data import Tokens
from shortstack.data.splits import HELD_OUT, check_enough, split
from shortstack.decoder import Decoder
from shortstack.decoder.decoder import SkippedLayers
from shortstack.errors import parameter
from shortstack.machine.progress import Progress, silent
from shortstack.planning.layer_sets import Removal
from shortstack.planning.measured import removals
from shortstack.planning.plans import DRAFT, Plan
from shortstack.scoring import METRICS
from shortstack.scoring.measurement import Run, Wanted

TV = METRICS["tv"]
MOST_TOKENS = 8  # that a draft proposes at a time
STEPS = 12  # that all layers would go in
CERTAIN = 1 - 1e-9  # where every proposed token is taken


@dataclass(frozen=True)
class Expected:
    """What a draft is expected to bring. speedup: times as fast as the original alone, with so many tokens at a time."""

    speedup: float
    tokens: int


def expected(accepted: float, cost: float) -> Expected:
    """The best number of tokens at a time, and what it brings (Leviathan et al., arXiv 2211.17192, theorem 3.8).

    accepted: the chance that a proposed token is taken, below 1. cost: of a token of the draft, in tokens of the original. A
    pass over several tokens is taken to cost what one does.

    >>> expected(accepted=0.8, cost=0.1)
    Expected(speedup=2.46964, tokens=6)
    """
    found = (
        Expected((1 - accepted ** (tokens + 1)) / ((1 - accepted) * (tokens * cost + 1)), tokens)
        for tokens in range(1, MOST_TOKENS + 1)
    )
    return max(found, key=lambda each: each.speedup)


def draft(decoder: Decoder, tokens: Tokens, removal: Removal, *, progress: Progress = silent) -> Plan:
    """The layers without which the model is to bring most as the draft of the whole one.

    The layers go without which what is left is right most often, a twelfth of all at a time, as in stepwise(). Every fourth
    sample is held out and judges each such cut of `removal.least` layers at least: a token that it draws is taken with the
    chance 1 - total variation distance (arXiv 2211.17192, lemma 3.3), and costs the weights of layers and head.
    Plan.compared tells the speed-up that is expected of each number of layers.

    Raises:
        DataError: fewer than four samples, so that none could be held out.
    """
    check_enough(tokens, f"add {parameter('samples', 32)}, or {HELD_OUT} at the least")
    fitting, held_out = split(tokens)
    least = removal.least or removal.amount
    by_tv = replace(removal, metric=TV, step=min(pace(len(decoder.layers)), removal.amount))
    cuts = [cut for cut in removals(decoder, fitting, by_tv, progress=progress) if len(cut) >= least]
    wanted = Wanted([TV], singles=False, sets=cuts)
    judged = Run(decoder, held_out, wanted, progress=progress, stage="held out").go()
    found = {cut: expected(taken(judged, cut), cost(decoder, cut)) for cut in cuts}
    best = max(found, key=lambda cut: found[cut].speedup)
    ahead = found[best].tokens
    plan = Plan(len(decoder.layers), tuple(sorted(best)), f"{DRAFT}, {ahead} token{'s' * (ahead != 1)} at a time")
    return replace(plan, compared={f"{len(cut)} layers": each.speedup for cut, each in found.items()})


def pace(layers: int) -> int:
    """How many layers go at a time.

    >>> pace(8), pace(30), pace(80)
    (1, 2, 6)
    """
    return max(1, layers // STEPS)


def taken(judged: Run, cut: SkippedLayers) -> float:
    """The chance that a token which the model draws without these layers is taken."""
    return min(CERTAIN, 1 - judged.distance(cut, TV.feed))


def cost(decoder: Decoder, removed: SkippedLayers) -> float:
    """Of a token of the shorter model, in tokens of the whole one: by all weights of layers, all experts, and head."""
    each = [sum(weight.numel() for weight in layer.parameters()) for layer in decoder.layers]
    left = sum(weights for layer, weights in enumerate(each) if layer not in removed)
    return (left + decoder.embedding.numel()) / (sum(each) + decoder.embedding.numel())
