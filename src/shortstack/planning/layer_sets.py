"""Sets of layers: read from words such as 25% or 22-24,3, checked, chosen by values, and shown. Free of torch."""

from __future__ import annotations

import heapq
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction

from shortstack.errors import PlanError
from shortstack.machine.formats import BYTES, PARAMETERS, count_in
from shortstack.scoring.metrics import Metric

FINALISTS = 5  # sets that are repaired whole, beside the best single block
LARGEST = 4  # layers of a block that is one of several
Block = tuple[int, int]  # its first layer, and how many layers it has


@dataclass(frozen=True)
class Removal:
    """How many layers go, which may, and by which metric. step: so many at a time; seed: of everything random.

    finalists: sets that are repaired whole before one is taken.
    """

    amount: int
    allowed: range
    metric: Metric
    step: int | None = None
    seed: int = 0
    finalists: int = FINALISTS


def block_sizes(amount: int) -> frozenset[int]:
    """List the sizes of the blocks that a set of layers is made of: up to LARGEST layers, or all in one block.

    >>> sorted(block_sizes(2)), sorted(block_sizes(8))
    ([1, 2], [1, 2, 3, 4, 8])
    """
    return frozenset({*range(1, min(amount, LARGEST) + 1), amount})


def cheapest_sets(costs: Mapping[Block, float], amount: int, most: int) -> list[tuple[float, tuple[int, ...]]]:
    """Find the `most` sets of `amount` layers whose blocks cost least together, cheapest first, each with its cost.

    costs: of each block (first layer, size) that may go. Between two blocks of a set a layer stays.

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


def staying_ends(layers: int, amount: int, keep_first: int, keep_last: int) -> range:
    """Return the layers that may go when the first and last so many stay."""
    allowed = range(keep_first, layers - keep_last)
    if amount > len(allowed):
        raise PlanError(
            amount,
            expected=f"at most {len(allowed)} layers, with the first {keep_first} and last {keep_last} kept",
            fix="drop fewer or keep fewer",
            option="drop",
        )
    return allowed


def check_amount(drop: str | int | None, layers: str | Sequence[int] | None) -> None:
    """Say what is wrong with a choice that no model is needed to see."""
    if layers is not None:
        if drop is not None:
            raise PlanError("drop as well", expected="layers or drop, not both", fix="leave one out", option="layers")
        if isinstance(layers, int):
            expected, fix = "a list of layers, or text such as 22-29,3", f"give [{layers}]"
            raise PlanError(layers, expected=expected, fix=fix, option="layers")
        if isinstance(layers, str):
            parse_layers(layers)
    elif drop is None:
        raise PlanError(
            "neither drop nor layers", expected="how much to remove", fix="give drop, such as 25%", where="plan"
        )
    else:
        _read_drop(drop)


def parse_drop(drop: str | int, layers: int) -> int:
    """Count how many of `layers` layers a --drop value removes: "25%" rounds half up, "8" is a count.

    >>> [parse_drop("25%", n) for n in (32, 30, 26)]
    [8, 8, 7]
    """
    share = _read_drop(drop)
    amount = share if isinstance(share, int) else int(share * layers + Fraction(1, 2))
    if not 0 < amount < layers:
        raise PlanError(
            f"{drop} ({amount} layer{'s' * (amount != 1)})",
            expected=f"between 1 and {layers - 1} of the model's {layers} layers",
            fix="name a smaller count, or 25%",
            option="drop",
        )
    return amount


def check_pace(step: int, amount: int) -> None:
    """Refuse to remove more layers at a time than go in all."""
    if not 0 < step <= amount:
        raise PlanError(step, expected=f"1 to {amount} layers at a time", fix="take 1, or leave it out", option="step")


def _read_drop(drop: str | int) -> int | Fraction:
    """Read a --drop value: a count, or a share of the layers."""
    text = str(drop).strip()
    if re.fullmatch(r"\d{1,5}(\.\d{1,9})?%", text) and 0 < Fraction(text[:-1]) < 100:
        return Fraction(text[:-1]) / 100
    if re.fullmatch(r"\d{1,5}", text) and int(text):
        return int(text)
    raise PlanError(
        repr(text),
        expected="a count of at least 1, or a percentage between 0% and 100%",
        fix="give a count such as 8, or a share such as 25%",
        option="drop",
    )


UNITS = {"params": PARAMETERS, "memory": BYTES}
EXAMPLES = {"params": "6B", "memory": "4GB"}


def parse_goal(name: str, text: str) -> int:
    """Read how many parameters, or bytes of weights, a model may have at most.

    >>> parse_goal("params", "6.5B"), parse_goal("memory", "4GB")
    (6500000000, 4000000000)
    """
    amount = count_in(UNITS[name], text)
    if not amount:
        share = "; a share of the layers is named by drop" if text.strip().endswith("%") else ""
        bare = name == "memory" and count_in({"": 1}, text) is not None
        raise PlanError(
            f"{text} without a unit" if bare else repr(text),
            expected=f"a number and one of {', '.join(filter(None, UNITS[name]))}",
            fix=f"write {text}MB or {text}GB" if bare else f"write it like {EXAMPLES[name]}{share}",
            option=name,
        )
    return amount


def fewest(order: Sequence[int], layers: int, fits: Callable[[Sequence[int]], bool]) -> tuple[int, ...]:
    """Find the fewest layers, taken in `order`, without which the others fit.

    >>> fewest([2, 0, 1], 3, lambda kept: len(kept) <= 2)
    (2,)
    """
    for count in range(1, min(len(order), layers - 1) + 1):
        if fits([layer for layer in range(layers) if layer not in order[:count]]):
            return tuple(sorted(order[:count]))
    raise PlanError("none", expected="a cut that fits this size", fix="allow more", where="plan")


def parse_layers(text: str) -> tuple[int, ...]:
    """Read layers named one by one or in inclusive ranges.

    >>> parse_layers("22-24,3")
    (22, 23, 24, 3)
    """
    layers: list[int] = []
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,5})(?:\s*-\s*(\d{1,5}))?\s*", part)  # a range is spelled out: keep it small
        if not match or (match[2] and int(match[2]) < int(match[1])):
            raise PlanError(
                repr(text),
                expected="numbers and inclusive ranges like 22-29,3",
                fix="write single layers and ranges, with commas between",
                option="layers",
            )
        layers.extend(range(int(match[1]), int(match[2] or match[1]) + 1))
    return tuple(layers)


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


def check_removal(removed: Sequence[int], layers: int, *, option: str = "", where: object = "") -> None:
    """Raise PlanError unless these are distinct layers of the model, at least one and not all."""

    def refuse(expected: str, actual: str) -> None:
        raise PlanError(
            actual,
            expected=expected,
            fix=f"name between 1 and {layers - 1} distinct layers from 0 to {layers - 1}",
            option=option,
            where=where,
        )

    strange = [layer for layer in removed if type(layer) is not int]
    if strange:
        refuse("whole numbers", repr(strange[0]))
    outside = [layer for layer in removed if not 0 <= layer < layers]
    if outside:
        refuse(f"layers from 0 to {layers - 1}", f"layer {outside[0]}")
    twice = [layer for index, layer in enumerate(removed) if layer in removed[:index]]
    if twice:
        refuse("each layer once", f"layer {twice[0]} twice")
    if len(removed) == layers:
        refuse("at least one layer to stay", f"all {layers} removed")
    if not removed:
        refuse("at least one layer to remove", "none")
