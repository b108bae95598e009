"""Sets of layers chosen by measuring models without them: step by step, or by searching."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch

from shortstack.data import Tokens
from shortstack.data.tokens import HELD_OUT, check_enough, split
from shortstack.decoder import Decoder
from shortstack.decoder.decoder import UNPRUNED, SkippedLayers
from shortstack.errors import PlanError
from shortstack.machine.formats import show_layers
from shortstack.machine.numbers import checked
from shortstack.machine.progress import Progress, silent, under
from shortstack.planning.layer_sets import (
    Removal,
    block_sizes,
    cheapest_sets,
    check_pace,
    lowest,
    lowest_window,
    unlike,
)
from shortstack.planning.plans import Plan
from shortstack.repairing.cut_families import repaired_windows
from shortstack.repairing.fold_points import check_refittable
from shortstack.repairing.repairer import RepairWalk
from shortstack.scoring import METRICS
from shortstack.scoring.measurement import Measurement, MeasurementSpec, check_differentiable

CHEAPEST = 500  # sets, among which finalists that are not alike are looked for
KL = METRICS["kl"]
REPAIRED = "KL divergence from the unpruned model after repair"
SUMMED = (
    "sum of its blocks' KL divergences from the unpruned model, each removed alone with the matrix before it refitted"
)


@dataclass(frozen=True)
class Budget:
    """How long a search goes on: generations of so many new sets, of which `survivors` breed the next.

    patience: generations without a better set after which it stops.
    """

    generations: int = 16
    offspring: int = 24
    survivors: int = 6
    patience: int = 4


def check_search(_decoder: Decoder | None, tokens: Tokens, _removal: Removal) -> None:
    """Refuse so few samples that none could be held out."""
    check_enough(tokens, f"ask for more samples, such as 32, or {HELD_OUT} at the least")


def check_blocks(decoder: Decoder | None, tokens: Tokens, removal: Removal) -> None:
    """Refuse a model, or samples, without repaired_blocks()."""
    check_search(decoder, tokens, removal)
    if decoder:
        check_refittable(decoder, "choose by a metric, or search")


def check_stepwise(decoder: Decoder | None, _tokens: Tokens, removal: Removal) -> None:
    """Refuse a number of layers at a time, or a metric, that stepwise() cannot go by."""
    check_pace(removal.step or 1, removal.amount)
    metric = removal.metric
    if not metric.needs_text:
        expected, fix = "a metric that the layers removed before can change", "leave it out: the order stays the same"
        raise PlanError(metric.name, expected=expected, fix=fix, option="step")
    if decoder and metric.feed == "gradient":
        check_differentiable(decoder)


def stepwise(decoder: Decoder, tokens: Tokens, removal: Removal, *, progress: Progress = silent) -> Plan:
    """Remove the `step` lowest layers, score the shorter model again, and so on until `amount` are gone.

    With ppl and a step of 1 it is the greedy removal of SLEB (arXiv 2402.09025); other steps are the schedules of Lu et al.,
    4.3, without the training between.
    """
    check_stepwise(None, tokens, removal)
    metric, amount, step = removal.metric.name, removal.amount, removal.step or 1
    steps, removed = -(-amount // step), UNPRUNED
    for number in range(1, steps + 1):
        spec, stage = MeasurementSpec([removal.metric], without=removed), f"step {number} of {steps}"
        run = Measurement(decoder, tokens, spec, progress=progress, stage=stage).go()
        values = [checked(value, f"{metric}, layer {layer}") for layer, value in enumerate(run.scores()[metric])]
        rest = [layer for layer in removal.allowed if layer not in removed]
        removed |= frozenset(lowest(values, rest, min(step, amount - len(removed))))
    return Plan(len(decoder.layers), tuple(sorted(removed)), f"{metric}, {step} at a time")


def search(
    decoder: Decoder, tokens: Tokens, removal: Removal, *, budget: Budget = Budget(), progress: Progress = silent
) -> Plan:
    """Search for the set of layers whose removal moves the model's output least: the lowest KL divergence.

    It begins with the lowest layers by ppl, kl and bi and with the best window, and exchanges layers of the best sets for
    others (after EvoPress, arXiv 2410.14649); each generation is one walk. Every fourth sample is held out: it judges the
    finalists, of which the tail is one. Plan.compared tells the held-out KL of the plan, of those sets, and of the tail.
    """
    check_search(decoder, tokens, removal)
    fitting, held_out = split(tokens)
    amount, allowed = removal.amount, removal.allowed
    named, likely = _beginnings(decoder, fitting, amount, allowed, progress)
    rng, known = random.Random(removal.seed), dict[SkippedLayers, float]()
    _measure(decoder, fitting, named.values(), known, progress, "beginning")
    quiet = 0
    for generation in range(1, budget.generations + 1):
        parents, lowest_before = _best(known, budget.survivors), min(known.values())
        new = _offspring(parents, likely, known, budget.offspring, rng)
        _measure(decoder, fitting, new, known, progress, f"generation {generation}")
        quiet = quiet + 1 if min(known.values()) >= lowest_before else 0
        if quiet == budget.patience or not new:
            break
    tail, judged = frozenset(allowed[-amount:]), dict[SkippedLayers, float]()
    finalists = [*_best(known, budget.survivors), *named.values(), tail]
    _measure(decoder, held_out, finalists, judged, progress, "held out")
    (best,) = _best({cut: judged[cut] for cut in finalists}, 1)
    compared = {"search": judged[best], **{name: judged[cut] for name, cut in named.items()}, "tail": judged[tail]}
    removed, measure = tuple(sorted(best)), "KL divergence from the unpruned model"
    return Plan(len(decoder.layers), removed, "search by kl", compared=compared, compared_by=measure)


def _beginnings(
    decoder: Decoder, tokens: Tokens, amount: int, allowed: range, progress: Progress
) -> tuple[dict[str, SkippedLayers], Sequence[int]]:
    """Return named sets to begin with, and the layers that are likely to be in a good one, most likely first."""
    metrics = [METRICS[name] for name in ("ppl", "kl", "bi")]
    run = Measurement(decoder, tokens, MeasurementSpec(metrics, amount), progress=progress, stage="scoring").go()
    scores = run.scores()
    named = {f"lowest {name}": frozenset(lowest(scores[name], allowed, amount)) for name in scores}
    named["block kl"] = frozenset(lowest_window(run.block_scores()["kl"], allowed, amount))
    ranked = sorted(allowed, key=lambda layer: (scores["kl"][layer], layer))
    return named, ranked[: max(3 * amount, amount + 4)]


def _offspring(
    parents: Sequence[SkippedLayers],
    likely: Sequence[int],
    known: Mapping[SkippedLayers, float],
    amount: int,
    rng: random.Random,
) -> list[SkippedLayers]:
    """Make new sets: exchange one layer of a parent for another that is likely, sometimes two."""
    children = dict[SkippedLayers, None]()
    for _ in range(20 * amount):  # the neighbourhood may hold no more
        parent = rng.choice(parents)
        others = [layer for layer in likely if layer not in parent]
        many = min(1 + (rng.random() < 0.3), len(others), len(parent))
        child = parent - {*rng.sample(sorted(parent), many)} | {*rng.sample(others, many)}
        if child not in known:
            children[child] = None
        if len(children) == amount:
            break
    return list(children)


def _measure(
    decoder: Decoder,
    tokens: Tokens,
    sets: Iterable[SkippedLayers],
    known: dict[SkippedLayers, float],
    progress: Progress,
    stage: str,
) -> None:
    """Add the KL divergence of each set to what is known, all from one walk."""
    spec = MeasurementSpec([KL], singles=False, sets=[*dict.fromkeys(sets)])
    run = Measurement(decoder, tokens, spec, progress=progress, stage=stage).go()
    for cut in spec.sets:
        known[cut] = checked(run.distance(cut), f"kl without layers {show_layers(sorted(cut))}")


@torch.no_grad()
def repaired_blocks(decoder: Decoder, tokens: Tokens, removal: Removal, *, progress: Progress = silent) -> Plan:
    """Choose one block of layers, or several blocks and single ones, whose removal changes least once others are refitted.

    Measured is the KL divergence from the unpruned model on held-out samples. Every block is measured with the last matrix
    before it refitted; several are taken to cost their sum. The best block and the cheapest sets, as many as there are to be
    finalists and no two alike but for one layer, are then repaired whole; the one with the lowest divergence is the plan.
    Plan.compared tells that of each. Without finalists it is the lower of the best block's and of the cheapest sum. The
    block may be one layer apart from a set.
    """
    check_blocks(decoder, tokens, removal)
    candidates = _candidates(decoder, tokens, removal, progress)
    measured = {}
    for number, (layers, divergence) in enumerate(candidates.items(), start=1):
        if removal.finalists:
            finalist_progress = under(progress, f"finalist {number} of {len(candidates)}: ")
            divergence = RepairWalk(decoder, frozenset(layers), tokens, finalist_progress).walk().divergence()
        measured[layers] = divergence
    best = min(measured, key=measured.__getitem__)
    compared = {show_layers(layers): divergence for layers, divergence in measured.items()}
    measure = REPAIRED if removal.finalists else SUMMED
    return Plan(len(decoder.layers), best, "blocks, repaired", compared=compared, compared_by=measure)


def _candidates(decoder: Decoder, tokens: Tokens, removal: Removal, progress: Progress) -> dict[tuple[int, ...], float]:
    """Find the best block and the cheapest sets: held-out divergence with the last matrix before each block refitted."""
    amount, allowed = removal.amount, removal.allowed
    costs = {
        (start, size): divergence
        for (start, size), divergence in repaired_windows(
            decoder, tokens, block_sizes(amount), progress=progress
        ).items()
        if start in allowed and start + size <= allowed.stop
    }
    start, _ = min((block for block in costs if block[1] == amount), key=costs.__getitem__)
    block = tuple(range(start, start + amount))
    sets = {layers: cost for cost, layers in cheapest_sets(costs, amount, CHEAPEST)}
    finalists = [block, *unlike(sets, max(1, removal.finalists))]
    return {layers: sets.get(layers, costs[start, amount]) for layers in finalists}


def _best(known: Mapping[SkippedLayers, float], amount: int) -> list[SkippedLayers]:
    return sorted(known, key=lambda cut: (known[cut], sorted(cut)))[:amount]
