"""Sets of layers: parsed, checked, and picked by values. Free of torch."""

from __future__ import annotations

import heapq
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from shortstack.errors import PlanError
from shortstack.machine.formats import amount_of, show_share
from shortstack.scoring.metrics import Metric

LARGEST = 4  # layers of a block that is one of several
Block = tuple[int, int]  # its first layer, and how many layers it has


@dataclass(frozen=True)
class Removal:
    """How many layers to remove, and of which. step: layers per round; candidates: sets to repair before one is taken."""

    amount: int
    allowed: range
    metric: Metric
    step: int = 1
    seed: int = 0
    candidates: int = 0


def block_sizes(amount: int) -> frozenset[int]:
    """List the sizes of the blocks that a set of layers consists of: up to LARGEST layers, or all in one block.

    >>> sorted(block_sizes(2)), sorted(block_sizes(8))
    ([1, 2], [1, 2, 3, 4, 8])
    """
    return frozenset({*range(1, min(amount, LARGEST) + 1), amount})


def cheapest_sets(costs: Mapping[Block, float], amount: int, most: int) -> list[tuple[float, tuple[int, ...]]]:
    """Find the `most` sets of `amount` layers whose blocks cost least together, cheapest first, each with its cost.

    costs: of each block (first layer, size) that may be removed. Between two blocks of a set a layer stays.

    >>> cheapest_sets({(0, 1): 0.1, (1, 1): 0.4, (2, 1): 0.3, (0, 2): 0.7}, amount=2, most=2)
    [(0.4, (0, 2)), (0.7, (0, 1))]
    """
    end = max(first + size for first, size in costs)
    # From the end to the front: the cheapest sets of so many layers that begin at a layer or behind it. Either the layer
    # stays, or it begins a block, behind which one stays.
    cheapest: dict[Block, list[tuple[float, tuple[int, ...]]]] = {(place, 0): [(0.0, ())] for place in range(end + 2)}
    for first in reversed(range(end)):
        for left in range(1, amount + 1):
            sets = list(cheapest.get((first + 1, left), ()))
            for size in range(1, left + 1):
                if (first, size) in costs:
                    block, behind = tuple(range(first, first + size)), cheapest.get((first + size + 1, left - size), ())
                    sets += [(costs[first, size] + cost, (*block, *layers)) for cost, layers in behind]
            cheapest[first, left] = heapq.nsmallest(most, sets)
    return cheapest[0, amount]


def unlike(sets: Iterable[tuple[int, ...]], most: int) -> list[tuple[int, ...]]:
    """Take the first `most` of sets of layers, without those that differ in one layer alone from one before them.

    >>> unlike([(1, 2), (1, 3), (4, 5), (6, 7)], most=2)
    [(1, 2), (4, 5)]
    """
    chosen: list[tuple[int, ...]] = []
    for layers in sets:
        if len(chosen) < most and all(len({*layers} - {*other}) >= min(2, len(layers)) for other in chosen):
            chosen.append(layers)
    return chosen


def parse_drop(drop: str | float, layers: int) -> int:
    """Count the layers that `drop` removes: a share is rounded half up.

    >>> [parse_drop("25%", n) for n in (32, 30, 26)], parse_drop(8, 30)
    ([8, 8, 7], 8)
    """
    amount = amount_of(drop) or 0 if isinstance(drop, str) else drop
    if isinstance(amount, float):
        amount = int(Fraction(amount).limit_denominator(10**12) * layers + Fraction(1, 2))
    if not 0 < amount < layers:
        message = f"{show_drop(drop)} of the model's {layers} layers cannot be removed"
        raise PlanError(f"{message}; give 1 to {layers - 1}, or a share such as 25%", option="drop")
    return amount


def show_drop(drop: str | float) -> str:
    """Write a count, or a share as a percentage."""
    return show_share(drop) if isinstance(drop, float) else str(drop)


def parse_layers(text: str) -> tuple[int, ...]:
    """Parse layers named one by one or in inclusive ranges.

    >>> parse_layers("22-24,3")
    (22, 23, 24, 3)
    """
    layers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,5})(?:\s*-\s*(\d{1,5}))?\s*", part)  # a range is spelled out: keep it small
        if not match or (match[2] and int(match[2]) < int(match[1])):
            message = f"{text!r} names no layers; write numbers and inclusive ranges such as 22-29,3"
            raise PlanError(message, option="layers")
        layers.extend(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(layers)


def check_pace(step: int, amount: int) -> None:
    """Refuse more layers per round than are removed in all."""
    if not 0 < step <= amount:
        raise PlanError(f"{step} layers at a time are not 1 to {amount}, which are removed in all", option="step")


def lowest(values: Sequence[float], allowed: Sequence[int], amount: int) -> tuple[int, ...]:
    """Take the `amount` allowed layers with the lowest values, ties to the lower index.

    >>> lowest([3.0, 1.0, 2.0, 1.0], range(4), 2)
    (1, 3)
    """
    return tuple(sorted(sorted(allowed, key=lambda layer: (values[layer], layer))[:amount]))


def lowest_window(values: Sequence[float], allowed: range, amount: int) -> tuple[int, ...]:
    """Find the window of `amount` allowed layers with the lowest value, of one value for each place a window may start.

    >>> lowest_window([3.0, 1.0, 2.0], range(4), 2)
    (1, 2)
    """
    starts = allowed[: len(allowed) - amount + 1]
    start = min(starts, key=lambda first: (values[first], first))
    return tuple(range(start, start + amount))


def check_removal(removed: Sequence[int], layers: int) -> None:
    """Refuse all but distinct layers of the model, at least one and not all."""
    wrong = [layer for layer in removed if type(layer) is not int or not 0 <= layer < layers]
    if wrong:
        raise PlanError(f"the model has no layer {wrong[0]!r}; name layers from 0 to {layers - 1}", option="layers")
    if not 0 < len({*removed}) == len(removed) < layers:
        raise PlanError(f"{len(removed)} layers are named; name 1 to {layers - 1} distinct ones", option="layers")
