"""Which cuts of a model are exact, and the nearest one that is when the wanted one is not."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Set
from typing import Any

from shortstack.architecture.anatomy import shortened
from shortstack.architecture.config_fields import EXTRA_HEADS
from shortstack.architecture.selfcheck import check_cut
from shortstack.checkpoint import Checkpoint
from shortstack.errors import ArchitectureError, CheckpointError
from shortstack.machine.formats import show_layers
from shortstack.machine.progress import Progress, silent
from shortstack.planning.plans import Plan

TRIES = 40  # each builds a model on the meta device


def _config(checkpoint: Checkpoint, plan: Plan) -> dict[str, Any]:
    config = shortened(
        checkpoint.config, checkpoint.blueprint, checkpoint.anatomy, plan.kept, checkpoint.layer_names.path
    )
    if not checkpoint.trust_remote_code:
        config.pop("auto_map", None)  # the code it names is not copied; the architecture is transformers' own
    return config


def _checked(checkpoint: Checkpoint, plan: Plan, config: dict[str, Any]) -> dict[str, Any]:
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
    """Find the exact cut nearest to a plan: itself, with a layer exchanged, or the nearest window; None when none is exact.

    Nearest: the fewest layers exchanged, then the shortest way from each to the one that goes in its place. allowed: what
    a set of layers to remove must satisfy. Sets that the config's fields rule out cost nothing; of the others the nearest
    TRIES of each kind are built.
    """
    for plans in _near(plan, allowed):
        expressible = ((cut, config) for cut in plans if (config := _expressed(checkpoint, cut)))
        for tries, (cut, config) in enumerate(itertools.islice(expressible, TRIES), start=1):
            try:
                _checked(checkpoint, cut, config)
            except ArchitectureError:
                progress("looking for an exact cut", tries, TRIES)
            else:
                return cut
    return None


def nearest(
    plan: Plan, exact: Callable[[Plan], bool], *, allowed: Callable[[Set[int]], bool] = lambda _removed: True
) -> Plan | None:
    """Return the nearest cut that a rule finds exact, as aligned() orders them; None when none is."""
    return next((cut for plans in _near(plan, allowed) for cut in plans if exact(cut)), None)


def _near(plan: Plan, allowed: Callable[[Set[int]], bool]) -> Iterator[Iterator[Plan]]:
    """Yield cuts with at most one layer exchanged, then windows; of either the nearest first."""
    for candidates in _exchanged(plan), _windows(plan):
        cuts = sorted(candidates, key=functools.partial(_distance, plan))
        yield (_moved(plan, cut) for cut in cuts if allowed(cut))


def _moved(plan: Plan, cut: frozenset[int]) -> Plan:
    if cut == set(plan.removed):
        return plan
    return Plan(plan.layers, tuple(sorted(cut)), f"{plan.strategy}, moved to where the cut is exact")


def _expressed(checkpoint: Checkpoint, plan: Plan) -> dict[str, Any] | None:
    """Return the cut's config, or None where fields alone rule it out."""
    try:
        return _config(checkpoint, plan)
    except ArchitectureError:
        return None


def _exchanged(plan: Plan) -> set[frozenset[int]]:
    wanted = frozenset(plan.removed)
    others = (layer for layer in range(plan.layers) if layer not in wanted)
    return {wanted, *(wanted - {layer} | {other} for other in others for layer in wanted)}


def _windows(plan: Plan) -> set[frozenset[int]]:
    amount = len(plan.removed)
    sizes = range(max(1, amount - 4), min(plan.layers - 1, amount + 4) + 1)
    return {frozenset(range(start, start + size)) for size in sizes for start in range(plan.layers - size + 1)}


def _distance(plan: Plan, cut: frozenset[int]) -> tuple[int, int, int, tuple[int, ...]]:
    wanted = frozenset(plan.removed)
    way = sum(abs(a - b) for a, b in zip(sorted(cut - wanted), sorted(wanted - cut), strict=False))
    return abs(len(cut) - len(wanted)), len(cut ^ wanted), way, tuple(sorted(cut))


def pruned_config(checkpoint: Checkpoint, plan: Plan) -> dict[str, Any]:
    """Return the config of the pruned model, checked against the original's kept layers.

    A cut that is not exact is refused, with the nearest that is.
    """
    from shortstack.checkpoint.weights import check_fit  # imports torch: the bytes of a cut move meanwhile

    plan.check_depth(checkpoint.anatomy.layers, where=checkpoint.source)
    _check_layers(checkpoint)
    check_fit(checkpoint)
    try:
        return _checked(checkpoint, plan, _config(checkpoint, plan))
    except ArchitectureError as error:
        nearest_cut = aligned(checkpoint, plan)
        if nearest_cut is None:
            raise
        layers = show_layers(nearest_cut.removed).replace(" ", "")
        raise ArchitectureError(f"{error.message}; the nearest exact cut: layers {layers}") from error


def _check_layers(checkpoint: Checkpoint) -> None:
    """Refuse layers past the last that the config does not name as extra heads."""
    layers = checkpoint.anatomy.layers
    extra = max((layer or 0 for layer in map(checkpoint.layer_names.layer_of, checkpoint.tensors)), default=0)
    text = checkpoint.config.get(checkpoint.anatomy.text_key or "", checkpoint.config)
    if extra >= layers and not any(text.get(name) for name in EXTRA_HEADS):
        raise CheckpointError(
            f"tensors of layer {extra}",
            expected=f"layers 0 to {layers - 1}, by config.json",
            fix="find the config that belongs to these weights",
            where=checkpoint.directory,
        )
