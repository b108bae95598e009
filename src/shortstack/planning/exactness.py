"""Which cuts of a model are exact, and the nearest one that is when the selected one is not."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Set
from dataclasses import replace
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
Allowed = Callable[[Set[int]], bool]  # what a set of layers to remove must satisfy
Exact = Callable[[Plan], bool]


def nearest_exact(
    checkpoint: Checkpoint,
    plan: Plan,
    is_exact: Exact | None = None,
    *,
    allowed: Allowed = lambda _removed: True,
    progress: Progress = silent,
) -> Plan | None:
    """Find the exact cut nearest to a plan, as nearest() orders them; None when none is.

    is_exact: by the rules of another form of the model, in place of building each cut.
    """
    tries = itertools.count(1)

    def is_built(cut: Plan) -> bool:
        exact = _raises_nothing(lambda: _checked(checkpoint, cut, _config(checkpoint, cut)))
        if not exact:
            progress("looking for an exact cut", min(next(tries), TRIES), TRIES)
        return exact

    if is_exact:
        return nearest(plan, is_exact, allowed=allowed)
    return nearest(plan, lambda cut: _raises_nothing(lambda: _config(checkpoint, cut)), is_built, allowed=allowed)


def nearest(
    plan: Plan,
    possible: Exact,
    is_exact: Exact = lambda _plan: True,
    *,
    allowed: Allowed = lambda _removed: True,
) -> Plan | None:
    """Find the nearest cut that is exact: the plan itself, one with a layer exchanged, or else a window.

    Nearest: the fewest layers exchanged, then the shortest way from each to the one in its place. possible: rules cuts out
    at no cost, as fields of the config do; is_exact: asked of the nearest TRIES of each kind.
    """
    wanted = frozenset(plan.removed)
    for cuts in _exchanged(plan), _windows(plan):
        near = (_moved(plan, cut) for cut in sorted(cuts, key=lambda cut: _distance(wanted, cut)) if allowed(cut))
        found = next(filter(is_exact, itertools.islice(filter(possible, near), TRIES)), None)
        if found:
            return found
    return None


def pruned_config(checkpoint: Checkpoint, plan: Plan) -> dict[str, Any]:
    """Return the config of the pruned model, checked against the base model's kept layers.

    A cut that is not exact is refused, with the nearest that is.
    """
    from shortstack.checkpoint.weights import check_fit  # imports torch: the bytes of a cut move meanwhile

    plan.check_depth(checkpoint.anatomy.layers)
    _check_layers(checkpoint)
    check_fit(checkpoint)
    try:
        return _checked(checkpoint, plan, _config(checkpoint, plan))
    except ArchitectureError as error:
        found = nearest_exact(checkpoint, plan)
        if found is None:
            raise
        layers = show_layers(found.removed).replace(" ", "")
        raise ArchitectureError(f"{error}; the nearest exact cut: layers {layers}") from error


def _raises_nothing(build: Callable[[], object]) -> bool:
    try:
        build()
    except ArchitectureError:
        return False
    return True


def _config(checkpoint: Checkpoint, plan: Plan) -> dict[str, Any]:
    config = shortened(
        checkpoint.config, checkpoint.blueprint, checkpoint.anatomy, plan.kept, checkpoint.layer_names.path
    )
    if not checkpoint.trust_remote_code:
        config.pop("auto_map", None)  # the code it names is not copied; the architecture is transformers' own
    return config


def _checked(checkpoint: Checkpoint, plan: Plan, config: dict[str, Any]) -> dict[str, Any]:
    trust, directory = checkpoint.trust_remote_code, checkpoint.directory
    check_cut(config, checkpoint.blueprint, checkpoint.anatomy, plan.kept, directory, trust_remote_code=trust)
    return config


def _moved(plan: Plan, cut: frozenset[int]) -> Plan:
    if cut == {*plan.removed}:
        return plan
    # What was measured was not this cut.
    return replace(plan, removed=tuple(sorted(cut)), wanted=plan.removed, candidates=None, measure="")


def _exchanged(plan: Plan) -> set[frozenset[int]]:
    wanted, kept = frozenset(plan.removed), plan.kept
    return {wanted, *(wanted - {layer} | {other} for other in kept for layer in wanted)}


def _windows(plan: Plan) -> Iterator[frozenset[int]]:
    amount = len(plan.removed)
    for size in range(max(1, amount - 4), min(plan.layers - 1, amount + 4) + 1):
        yield from (frozenset(range(start, start + size)) for start in range(plan.layers - size + 1))


def _distance(wanted: frozenset[int], cut: frozenset[int]) -> tuple[int, int, int, tuple[int, ...]]:
    way = sum(abs(a - b) for a, b in zip(sorted(cut - wanted), sorted(wanted - cut), strict=False))
    return abs(len(cut) - len(wanted)), len(cut ^ wanted), way, tuple(sorted(cut))


def _check_layers(checkpoint: Checkpoint) -> None:
    """Refuse layers past the last that the config does not name as extra heads."""
    layers = checkpoint.anatomy.layers
    extra = max((layer or 0 for layer in map(checkpoint.layer_names.layer_of, checkpoint.tensors)), default=0)
    text = checkpoint.config.get(checkpoint.anatomy.text_key or "", checkpoint.config)
    if extra >= layers and not any(text.get(name) for name in EXTRA_HEADS):
        message = f"{checkpoint.directory} has tensors of layer {extra}, and its config.json {layers} layers"
        raise CheckpointError(f"{message}; find the config that belongs to these weights")
