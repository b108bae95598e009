"""Which cuts of a model are exact, and the nearest one that is when the wanted one is not."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator, Set
from typing import Any

from shortstack.anatomy import shortened
from shortstack.checkpoint import Checkpoint
from shortstack.errors import ArchitectureError
from shortstack.planning import Plan, show_layers
from shortstack.progress import Progress, silent
from shortstack.selfcheck import check_cut

TRIES = 64  # each builds a model on the meta device


def cut_config(checkpoint: Checkpoint, plan: Plan) -> dict[str, Any]:
    """The config of the pruned model, checked against the original's kept layers.

    Raises:
        ArchitectureError: the cut cannot be expressed exactly.
    """
    config = shortened(checkpoint.config, checkpoint.blueprint, checkpoint.anatomy, plan.kept, checkpoint.layers_path)
    if not checkpoint.trust_remote_code:
        config.pop("auto_map", None)  # the code it names is not copied; the architecture is transformers' own
    check_cut(
        config,
        checkpoint.blueprint,
        checkpoint.anatomy,
        plan.kept,
        checkpoint.directory,
        trust_remote_code=checkpoint.trust_remote_code,
    )
    return config


def aligned(
    checkpoint: Checkpoint,
    plan: Plan,
    *,
    allowed: Callable[[Set[int]], bool] = lambda _removed: True,
    progress: Progress = silent,
) -> Plan | None:
    """The exact cut nearest to a plan: itself, or of the TRIES nearest the first that is exact; None when none of them is.

    Nearest: the fewest layers exchanged, then the shortest way from each to the one that goes in its place. allowed: what
    a set of layers to remove must satisfy.
    """
    for number, removed in enumerate(_nearest(plan, allowed)):
        moved = removed != plan.removed
        found = Plan(plan.layers, removed, f"{plan.strategy}, moved to where the cut is exact") if moved else plan
        try:
            cut_config(checkpoint, found)
        except ArchitectureError:
            progress("looking for an exact cut", number + 1, TRIES)
        else:
            if moved:
                progress("looking for an exact cut", TRIES, TRIES)
            return found
    return None


def _nearest(plan: Plan, allowed: Callable[[Set[int]], bool]) -> Iterator[tuple[int, ...]]:
    """Cuts from the nearest to the farthest: the plan with layers exchanged, and windows of as many or about as many."""
    wanted = set(plan.removed)
    windows = (
        set(range(start, start + amount))
        for amount in range(max(1, len(wanted) - 4), min(plan.layers - 1, len(wanted) + 4) + 1)
        for start in range(plan.layers - amount + 1)
    )
    exchanged = (
        (wanted - {layer}) | {other} for layer in wanted for other in range(plan.layers) if other not in wanted
    )
    candidates = {frozenset(cut) for cut in (*windows, *exchanged, wanted) if allowed(cut)}

    def distance(cut: frozenset[int]) -> tuple[int, int, int, tuple[int, ...]]:
        way = sum(abs(a - b) for a, b in zip(sorted(cut - wanted), sorted(wanted - cut), strict=False))
        return abs(len(cut) - len(wanted)), len(cut ^ wanted), way, tuple(sorted(cut))

    return (tuple(sorted(cut)) for cut in heapq.nsmallest(TRIES, candidates, key=distance))


def instead(checkpoint: Checkpoint, plan: Plan, error: ArchitectureError) -> ArchitectureError:
    """The same refusal, with the nearest exact cut as the way out."""
    found = aligned(checkpoint, plan)
    if found is None:
        return error
    layers = show_layers(found.removed).replace(" ", "")
    return ArchitectureError(
        error.where,
        expected=error.expected,
        found=error.found,
        fix=f"{error.fix}; the nearest exact cut: --layers {layers}",
    )
