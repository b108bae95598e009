"""Where plans come from: select_layers() selects the layers to remove from a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence, Set
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from shortstack.checkpoint.sizes import Sizes
from shortstack.data import Rows, Text, Tokens
from shortstack.errors import ArchitectureError, PlanError
from shortstack.machine.device import AUTO, Compute
from shortstack.machine.formats import show_layers
from shortstack.machine.progress import Progress, silent
from shortstack.planning.layer_sets import Removal, parse_layers
from shortstack.planning.plans import Plan
from shortstack.planning.selection import Selection, removal_of
from shortstack.planning.strategies import Strategy
from shortstack.scoring import Scores

if TYPE_CHECKING:
    from shortstack.checkpoint import Checkpoint, Model

Source = Tokens | Text | Rows  # see read_tokens()
Cut = Plan | str | Sequence[int] | Set[int]  # what functions take for layers to remove: see plan_of()


def select_layers(
    model: Model | Scores,
    text: Source | None = None,
    *,
    scores: Scores | None = None,
    layers: str | int | Sequence[int] | None = None,
    compute: Compute = AUTO,
    progress: Progress = silent,
    **options: Any,
) -> Plan:
    """Select the layers to remove from a model; a cut that cannot be exact is moved to the nearest that is.

    model: or its Scores alone, by which no cut is moved. text: what the metric looks at, by default `mix`. scores: of this
    model, to be used as they are. layers: exactly these, [3, 5] or "3-5". options: of Selection: metric, strategy, drop,
    target_params, target_size, step, keep_first, keep_last, candidates.

    >>> select_layers("demo", metric="reverse", drop="25%").removed  # doctest: +SKIP
    (22, 23, 24, 25, 26, 27, 28, 29)

    Raises:
        PlanError: options that exclude each other; nothing, everything, or a layer that does not exist would be removed;
            the scores are of another model.
        ArchitectureError: no cut near the selected one can be exact.
        InputError, DataError: as score(); too few samples to hold some out.
    """
    from shortstack.checkpoint import Checkpoint

    if layers is not None and not isinstance(layers, str):
        layers = ",".join(map(str, [layers] if isinstance(layers, int) else layers))
    selection = Selection(layers=layers, **options)
    if isinstance(model, Scores):
        return plan_from_scores(model, selection, seed=compute.seed)
    return select(Checkpoint.of(model), selection, text, scores=scores, compute=compute, progress=progress)


def select(
    checkpoint: Checkpoint,
    selection: Selection,
    text: Source | None = None,
    *,
    scores: Scores | None = None,
    sizes: Sizes | None = None,
    is_exact: Callable[[Plan], bool] | None = None,
    compute: Compute = AUTO,
    progress: Progress = silent,
) -> Plan:
    """Select as select_layers() does. sizes, is_exact: of another form of the model, such as the .gguf file to be cut."""
    from shortstack.planning.exactness import nearest_exact, pruned_config

    sizes, layers = sizes or checkpoint.sizes, checkpoint.anatomy.layers
    if scores:
        scores.check_model(checkpoint)
    if selection.layers is not None:
        plan = plan_of(selection.layers, layers)
        pruned_config(checkpoint, plan)
        return plan.sized(sizes)
    metric = scores.metric_of(selection.metric) if scores else selection.by
    removal = removal_of(selection, metric, layers, sizes, compute.seed)
    plan = _planned(checkpoint, selection.how, removal, text, scores, compute=compute, progress=progress)

    def allowed(removed: Set[int]) -> bool:
        window = not selection.how.window or max(removed) - min(removed) < len(removed)
        small = selection.drop is not None or len(removed) >= removal.amount  # what a target size takes
        return window and small and removed <= {*removal.allowed}

    found = nearest_exact(checkpoint, plan, is_exact, allowed=allowed, progress=progress)
    if found is None:
        pruned_config(checkpoint, plan)  # says why it is not exact
        raise ArchitectureError(
            f"no cut near layers {show_layers(plan.removed)} is exact; name layers of whole periods"
        )
    return found.sized(sizes)


def _planned(
    checkpoint: Checkpoint, strategy: Strategy, removal: Removal, text: Source | None, scores: Scores | None, **how: Any
) -> Plan:
    """Plan by measuring pruned models, or by scores, which are made if there are none. how: compute and progress."""
    metric = removal.metric
    if strategy.feed == "model":
        from shortstack.decoder import Decoder, read_tokens

        tokens = read_tokens(checkpoint, text, **how)
        plan = strategy.function(Decoder.open(checkpoint, how["compute"]), tokens, removal, progress=how["progress"])
    elif not metric.needs_scores:
        return strategy.function(Scores(checkpoint.anatomy.layers, {}), removal)
    else:
        if scores is None:
            from shortstack.scoring import score  # imports torch

            window = removal.amount if strategy.window and metric.windows else None
            scores = score(checkpoint, text, metrics=[metric.name], window=window, **how)
        plan = replace(strategy.function(scores, removal), scores=scores)
    return replace(plan, model_digest=checkpoint.weights_digest)


def plan_from_scores(scores: Scores, selection: Selection, *, seed: int = 0) -> Plan:
    """Plan from the scores of a model that is not opened: nothing says whether the cut is exact."""
    if selection.layers is not None:
        plan = plan_of(selection.layers, scores.layers)
    elif selection.how.feed == "model":
        message = f"{selection.how.name} measures pruned models; name the model instead of its scores"
        raise PlanError(message, option="strategy")
    else:
        metric = scores.metric_of(selection.metric)
        removal = removal_of(selection, metric, scores.layers, scores.sizes, seed)
        plan = replace(
            selection.how.function(scores, removal), scores=scores, model_digest=scores.model.get("digest", "")
        )
    return plan.sized(scores.sizes) if scores.sizes else plan


def plan_of(cut: Cut, layers: int) -> Plan:
    """Return the plan for a model of so many layers: a plan, or the layers to remove.

    >>> plan_of([3, 5], 8).removed, plan_of("22-24", 32).removed
    ((3, 5), (22, 23, 24))
    """
    if isinstance(cut, Plan):
        cut.check_depth(layers)
        return cut
    named = parse_layers(cut) if isinstance(cut, str) else tuple(cut)
    return Plan(layers, tuple(sorted(named)), "layers")
