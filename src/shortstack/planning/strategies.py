"""The catalogue of strategies: how the layers that go follow from scores, or from measuring shorter models.

A strategy is one function and one entry in STRATEGIES; its *feed* says what it is handed:

    scores   scores of the whole model, or its layer count   f(scores, removal)                              -> Plan
    model    the model, and tokens to measure it on          f(decoder, tokens, removal, progress=progress)  -> Plan

Naming a strategy imports no torch; what measures models is imported where it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from shortstack.errors import PlanError
from shortstack.planning.layer_sets import Removal, lowest, lowest_window
from shortstack.planning.plans import Plan
from shortstack.scoring import Scores
from shortstack.scoring.metrics import Metric

if TYPE_CHECKING:
    from shortstack.data import Tokens
    from shortstack.decoder import Decoder


@dataclass(frozen=True)
class Strategy:
    """A way to choose layers: see the module's table for what each feed hands to `function`.

    by_metric: whether it goes by a metric that can be named; others have a measure of their own.
    check: of one that measures, refuses what `function` would; its decoder is None where the model has no outline.
    window: whether one window of layers goes. finalists: whether it repairs some cuts whole before it takes one.
    """

    name: str
    feed: Literal["scores", "model"]
    function: Callable[..., Plan]
    summary: str
    paper: str
    by_metric: bool = True
    check: Callable[[Decoder | None, Tokens, Removal], None] = lambda _decoder, _tokens, _removal: None
    window: bool = False
    finalists: bool = False


def lowest_scores(scores: Scores | int, removal: Removal) -> Plan:
    """Remove the layers with the lowest scores."""
    values, allowed = layer_values(scores, removal.metric, removal.seed), removal.allowed
    count = scores if isinstance(scores, int) else scores.layers
    tail = removal.metric.name == "reverse" and allowed.stop == count
    removed = lowest(values, allowed, removal.amount)
    return Plan(count, removed, "tail" if tail else f"lowest {removal.metric.name}")


def lowest_block(scores: Scores | int, removal: Removal) -> Plan:
    """Remove one contiguous window: the lowest by its own score where there is one, else by its layers' summed scores."""
    name, amount, allowed = removal.metric.name, removal.amount, removal.allowed
    if isinstance(scores, Scores) and name in scores.blocks and amount == scores.window:
        removed = lowest_window(scores.blocks[name], allowed, amount)
        return Plan(scores.layers, removed, f"block {name}, measured")
    values = layer_values(scores, removal.metric, removal.seed)
    sums = [sum(values[first : first + amount]) for first in range(len(values) - amount + 1)]
    return Plan(len(values), lowest_window(sums, allowed, amount), f"block {name}")


def layer_values(scores: Scores | int, metric: Metric, seed: int) -> Sequence[float]:
    """Return the metric's score of each layer."""
    if isinstance(scores, Scores):
        scores.order(metric.name)  # raises for a metric that was not scored
        return scores.scores[metric.name]
    if metric.needs_scores:
        raise PlanError(
            f"{metric.name} without scores",
            expected="scores for this metric",
            fix=f"score again with {metric.name} first",
            option="metric",
        )
    values: Sequence[float] = metric.function(scores, seed)
    return values


def _measured(name: str) -> Callable[..., Any]:
    """Return a function of measured.py, which imports torch, imported when it is called."""

    def call(*given: Any, **options: Any) -> Any:
        from shortstack.planning import measured

        return getattr(measured, name)(*given, **options)

    return call


STRATEGIES: Mapping[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Strategy("lowest", "scores", lowest_scores, "the layers with the lowest scores", "arXiv 2411.15558, section 3"),
        Strategy("block", "scores", lowest_block, "one contiguous window", "arXiv 2403.17887", window=True),
        Strategy(
            "step",
            "model",
            _measured("stepwise"),
            "a few at a time, scored again in between",
            "arXiv 2402.09025",
            check=_measured("check_stepwise"),
        ),
        Strategy(
            "search",
            "model",
            _measured("search"),
            "the set whose removal changes the output least",
            "arXiv 2410.14649",
            by_metric=False,
            check=_measured("check_search"),
        ),
        Strategy(
            "repaired-blocks",
            "model",
            _measured("repaired_blocks"),
            "blocks and single layers, by what they change once repaired",
            "fit after arXiv 2505.02819",
            by_metric=False,
            check=_measured("check_blocks"),
            finalists=True,
        ),
    )
}
