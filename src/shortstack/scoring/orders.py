"""Orders of layers: what goes first, and how far two orders agree."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence


def removal_order(values: Sequence[float]) -> tuple[int, ...]:
    """Places from the lowest value to the highest; ties go to the lower place.

    >>> removal_order([3.0, 1.0, 2.0, 1.0])
    (1, 3, 2, 0)
    """
    return tuple(sorted(range(len(values)), key=lambda place: (values[place], place)))


def agreement(scores: Mapping[str, Sequence[float]]) -> dict[str, dict[str, float]]:
    """Kendall's tau-b between the scores of every pair of metrics.

    >>> agreement({"bi": (1.0, 2.0, 3.0), "reverse": (2.0, 1.0, 0.0)})["bi"]
    {'bi': 1.0, 'reverse': -1.0}
    """
    return {one: {other: kendall_tau(a, b) for other, b in scores.items()} for one, a in scores.items()}


def kendall_tau(a: Sequence[float], b: Sequence[float]) -> float:
    """Kendall's tau-b: pairs of layers in the same order less those in the opposite one, over the pairs that are not tied.

    sum(s t) / sqrt(sum(s^2) sum(t^2)), s and t the sign of each pair's difference in a and in b: 1 for the same order,
    -1 for the reverse. NaN where all of a or all of b are equal, which is no order.

    >>> kendall_tau([1, 2, 3, float("inf")], [10, 20, 40, 30])
    0.6666666666666666
    """
    first, second = _signs(a), _signs(b)
    untied = sum(map(abs, first)) * sum(map(abs, second))
    return sum(s * t for s, t in zip(first, second, strict=True)) / math.sqrt(untied) if untied else math.nan


def _signs(values: Sequence[float]) -> list[int]:
    """The sign of every pair's difference, by comparing: infinities have no difference."""
    return [(x > y) - (x < y) for x, y in itertools.combinations(values, 2)]
