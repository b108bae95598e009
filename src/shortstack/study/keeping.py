"""How much a shortened model keeps of the unpruned one, and how many layers to try next for a share that was asked for.

>>> next_amount({4: 0.97}, 0.9, most=20), next_amount({4: 0.97, 13: 0.8}, 0.9, most=20)
(13, 7)
>>> next_amount({4: 0.97, 5: 0.8}, 0.9, most=20)  # found
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from shortstack.evaluation.suites import SHARES

TRIALS = 3  # how many cuts are tried for a share that is to be kept
RECOVERED = 0.5  # of what single layers cost together, repair and healing bring back about so much: a first guess only


@dataclass(frozen=True)
class Share:
    """A share of what the unpruned model has, with its standard error."""

    value: float
    stderr: float

    def __str__(self) -> str:
        return f"{self.value:.1%} ± {self.stderr:.1%}"


def kept(base: Mapping[str, Any], last: Mapping[str, Any]) -> dict[str, Share]:
    """What is kept by each measure, from the evaluations of the unpruned model and of the shortened one as data.

    Of a text it is the likelihood of a token, exp(loss of the one - loss of the other), the geometric mean; of the probes
    and of the tasks the mean accuracy. Both models' errors count as if the samples were others, which makes them too wide.
    """
    shares = {
        f"likelihood of {text}": _likelihood(base["perplexity"][text], found)
        for text, found in last["perplexity"].items()
    }
    for name, one, other in (
        ("probes of writing", base["probes"], last["probes"]),
        ("tasks", shares_of(base["tasks"]), shares_of(last["tasks"])),
    ):
        before, after = Share(*mean(one)), Share(*mean(other))
        if before.value:
            shares[name] = ratio(before, after)
    return shares


def ratio(before: Share, after: Share) -> Share:
    """Which share of the one the other is; their errors count as independent.

    >>> str(ratio(Share(0.5, 0.0), Share(0.4, 0.05)))
    '80.0% ± 10.0%'
    """
    value = after.value / before.value
    if not after.value:
        return Share(0.0, after.stderr / before.value)
    return Share(value, value * math.hypot(before.stderr / before.value, after.stderr / after.value))


def least(shares: Mapping[str, Share]) -> tuple[str, Share]:
    """The measure of which least is kept."""
    return min(shares.items(), key=lambda each: each[1].value)


def _likelihood(base: Mapping[str, Any], last: Mapping[str, Any]) -> Share:
    if last["loss"] is None:  # beyond all numbers
        return Share(0.0, 0.0)
    share = math.exp(base["loss"] - last["loss"])
    errors = [each["loss_stderr"] for each in (base, last)]  # none of a single window
    known = [error for error in errors if error is not None and not math.isnan(error)]
    return Share(share, share * math.hypot(*known))


def shares_of(tasks: Mapping[str, Any]) -> dict[str, Any]:
    """The tasks whose metric is a share of documents."""
    return {name: task for name, task in tasks.items() if task["metric"] in SHARES}


def mean(results: Mapping[str, Mapping[str, float]]) -> tuple[float, float]:
    """The mean accuracy and its standard error; nothing where there are none."""
    values: Sequence[Mapping[str, float]] = list(results.values())
    if not values:
        return 0.0, 0.0
    error = math.sqrt(sum(each["stderr"] ** 2 for each in values)) / len(values)
    return sum(each["value"] for each in values) / len(values), error


def first_amount(costs: Sequence[float], keep: float) -> int:
    """How many layers to try first, from what the removal of each alone costs in nats per token.

    >>> first_amount([0.1, 0.02, 0.03, 0.5], 0.95)
    2
    """
    room, amount = -math.log(keep) / (1 - RECOVERED), 0
    for cost in sorted(max(0.0, cost) for cost in costs):
        room -= cost
        if room < 0:
            break
        amount += 1
    return max(1, min(amount, len(costs) - 1))


def next_amount(tried: Mapping[int, float], keep: float, *, most: int) -> int | None:
    """How many layers to try next, from the least share that each amount kept; None where the largest is found.

    What lies between amounts is taken to be on a line; without a layer gone all is kept.
    """
    enough = {0: 1.0} | {amount: share for amount, share in tried.items() if share >= keep}
    lacking = {amount: share for amount, share in tried.items() if share < keep}
    low, high = max(enough), min(lacking, default=most + 1)
    if high - low <= 1:
        return None
    (x0, y0), (x1, y1) = (
        ((low, enough[low]), (high, lacking[high])) if lacking else ((0, 1.0), (low, min(enough[low], 1 - 1e-6)))
    )
    crossing = x0 + (y0 - keep) * (x1 - x0) / (y0 - y1)
    return min(max(int(crossing + 1e-6), low + 1), high - 1)


def largest(tried: Mapping[int, float], keep: float) -> int | None:
    """The largest amount that kept enough; None where none did."""
    return max((amount for amount, share in tried.items() if share >= keep), default=None)
