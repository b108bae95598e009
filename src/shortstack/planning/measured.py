"""Strategies that measure pruned models: step by step, or block by block after repair."""

from __future__ import annotations

import torch

from shortstack.checkpoint import Checkpoint
from shortstack.data import Tokens
from shortstack.data.tokens import HELD_OUT, check_enough
from shortstack.decoder import Decoder
from shortstack.decoder.decoder import UNPRUNED
from shortstack.decoder.memory import estimate_memory
from shortstack.errors import PlanError
from shortstack.machine.device import Compute
from shortstack.machine.formats import show_layers
from shortstack.machine.memory import Memory
from shortstack.machine.numbers import checked
from shortstack.machine.progress import Progress, silent, under
from shortstack.planning.layer_sets import Removal, block_sizes, cheapest_sets, lowest, unlike
from shortstack.planning.plans import Plan
from shortstack.planning.search import search as search
from shortstack.planning.selection import Selection
from shortstack.repairing.cut_families import repaired_windows, windows_memory
from shortstack.repairing.repairer import RepairWalk, repair_memory
from shortstack.scoring.measurement import Measurement, MeasurementSpec

CHEAPEST = 500  # sets, among which candidates that are not alike are looked for


def stepwise(decoder: Decoder, tokens: Tokens, removal: Removal, *, progress: Progress = silent) -> Plan:
    """Remove the `step` lowest layers, score the pruned model again, and so on until `amount` are removed.

    With ppl and a step of 1 it is the greedy removal of SLEB (arXiv 2402.09025); other steps are the schedules of Lu et al.,
    4.3, without the training between.
    """
    metric, amount, step = removal.metric, removal.amount, removal.step
    if not metric.needs_text:
        message = f"with {metric.name} every round has the same order; remove step, or take a metric that reads text"
        raise PlanError(message, option="step")
    steps, removed = -(-amount // step), UNPRUNED
    for number in range(1, steps + 1):
        spec, stage = MeasurementSpec([metric], without=removed), f"step {number} of {steps}"
        run = Measurement(decoder, tokens, spec, progress=progress, stage=stage).go()
        values = [checked(value, f"{metric.name}, layer {n}") for n, value in enumerate(run.scores()[metric.name])]
        rest = [layer for layer in removal.allowed if layer not in removed]
        removed |= frozenset(lowest(values, rest, min(step, amount - len(removed))))
    return Plan(len(decoder.layers), tuple(sorted(removed)), f"{metric.name}, {step} at a time")


@torch.no_grad()
def repaired_blocks(decoder: Decoder, tokens: Tokens, removal: Removal, *, progress: Progress = silent) -> Plan:
    """Select one block of layers, or several blocks and single ones, whose removal changes least once others are refitted.

    Measured is the KL divergence to the base model on held-out samples. Every block is measured with the last matrix before
    it refitted; several are taken to cost their sum. The best block and the cheapest sets, no two alike but for one layer,
    are then repaired whole; the one with the lowest divergence is the plan. Without candidates to repair it is the lower of
    the best block's and of the cheapest sum. The block may be one layer apart from a set.
    """
    check_enough(tokens, f"ask for more samples, such as 32, or {HELD_OUT} at the least")
    candidates = _candidates(decoder, tokens, removal, progress)
    if removal.candidates:
        for number, layers in enumerate(candidates, start=1):
            repairing = under(progress, f"candidate {number} of {len(candidates)}: ")
            candidates[layers] = RepairWalk(decoder, frozenset(layers), tokens, repairing).walk().divergence()
    best = min(candidates, key=candidates.__getitem__)
    shown = {show_layers(layers): divergence for layers, divergence in candidates.items()}
    measure = f"{'' if removal.candidates else 'Estimated '}KL divergence to the base model after repair"
    measure = f"{measure} (held-out, nats per token)"
    return Plan(len(decoder.layers), best, "blocks, repaired", candidates=shown, measure=measure)


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
    return {
        layers: sets.get(layers, costs[start, amount]) for layers in (block, *unlike(sets, max(1, removal.candidates)))
    }


def selection_memory(
    checkpoint: Checkpoint, selection: Selection, amount: int, tokens: int, compute: Compute
) -> Memory:
    """Estimate what select() takes to remove `amount` layers on so many tokens; loads no weights."""
    if not selection.needs_text:
        return Memory()
    if selection.how.repairs:
        needed = windows_memory(checkpoint, tokens, block_sizes(amount), compute)
        return max(needed, repair_memory(checkpoint, tokens, compute)) if selection.candidates else needed
    layers, feed = checkpoint.anatomy.layers, selection.by.feed
    streams = 1 if selection.how.feed == "scores" and feed == "hidden" else layers + 1
    return estimate_memory(checkpoint, compute, tokens=tokens, streams=streams, in_turns=feed != "gradient")
