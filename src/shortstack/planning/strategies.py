"""The catalogue of strategies: how layers are picked from scores, or by measuring pruned models.

A strategy is one function and one entry in STRATEGIES; its *feed* says what it gets:

    scores   scores of the base model               f(scores, removal)                              -> Plan
    model    the base model, and tokens to run on   f(decoder, tokens, removal, progress=progress)  -> Plan

Naming a strategy imports no torch; what measures models is imported when it is called.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, Literal

from shortstack.planning.layer_sets import Removal, lowest, lowest_window
from shortstack.planning.plans import Plan
from shortstack.scoring import Scores


@dataclass(frozen=True)
class Strategy:
    """A way to pick layers: the module's table says what each feed passes to `function`.

    by_metric: whether a metric can be named; others have a measure of their own. window: whether one window of layers is
    removed. repairs: whether candidates are repaired and compared.
    """

    name: str
    feed: Literal["scores", "model"]
    function: Callable[..., Plan]
    summary: str
    paper: str
    by_metric: bool = True
    window: bool = False
    repairs: bool = False


def lowest_scores(scores: Scores, removal: Removal) -> Plan:
    """Remove the layers with the lowest scores."""
    removed = lowest(layer_values(scores, removal), removal.allowed, removal.amount)
    tail = removal.metric.name == "reverse" and removal.allowed.stop == scores.layers
    return Plan(scores.layers, removed, "tail" if tail else f"lowest {removal.metric.name}")


def lowest_block(scores: Scores, removal: Removal) -> Plan:
    """Remove one contiguous window: the lowest by its own score where there is one, else by its layers' summed scores."""
    name, amount, allowed = removal.metric.name, removal.amount, removal.allowed
    if name in scores.blocks and amount == scores.window:
        return Plan(scores.layers, lowest_window(scores.blocks[name], allowed, amount), f"block {name}, measured")
    values = layer_values(scores, removal)
    sums = [sum(values[first : first + amount]) for first in range(len(values) - amount + 1)]
    return Plan(scores.layers, lowest_window(sums, allowed, amount), f"block {name}")


def layer_values(scores: Scores, removal: Removal) -> Sequence[float]:
    """Return the metric's score of each layer."""
    metric = removal.metric
    if metric.needs_scores:
        scores.order(metric.name)  # raises for a metric that was not scored
        return scores.scores[metric.name]
    values: Sequence[float] = metric.function(scores.layers, removal.seed)
    return values


def _measured(name: str) -> Callable[..., Plan]:
    """Return a function of measured.py, which imports torch, imported when it is called."""

    def call(*args: Any, **options: Any) -> Plan:
        plan: Plan = getattr(import_module("shortstack.planning.measured"), name)(*args, **options)
        return plan

    return call


BLOCKS = "blocks and single layers, by what they change once repaired"
LEAST = "the set whose removal changes the output least"
STRATEGIES: Mapping[str, Strategy] = {
    strategy.name: strategy
    for strategy in (
        Strategy("lowest", "scores", lowest_scores, "the layers with the lowest scores", "arXiv 2411.15558, section 3"),
        Strategy("block", "scores", lowest_block, "one contiguous window", "arXiv 2403.17887", window=True),
        Strategy(
            "step", "model", _measured("stepwise"), "a few at a time, scored again in between", "arXiv 2402.09025"
        ),
        Strategy("search", "model", _measured("search"), LEAST, "arXiv 2410.14649", by_metric=False),
        Strategy(
            "repaired-blocks",
            "model",
            _measured("repaired_blocks"),
            BLOCKS,
            "fit after arXiv 2505.02819",
            by_metric=False,
            repairs=True,
        ),
    )
}
