"""What a pruned model keeps of its base model by each measure, and how many layers to try next to keep a given share.

>>> next_amount({4: 0.97}, 0.9, most=20), next_amount({4: 0.97, 8: 0.8}, 0.9, most=20)
(8, 5)
>>> next_amount({4: 0.97, 5: 0.8}, 0.9, most=20)  # found
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from shortstack.evaluation import EvalResult
from shortstack.evaluation.paired import Estimate, mean, ratio
from shortstack.evaluation.perplexity import Perplexity

TRIALS = 3  # cuts that are tried at most for a share that is to be kept
RECOVERED = 0.5  # of what single layers cost together, repair and healing bring back about so much: a first guess only
LEAP = 2  # times as many layers as are known to keep enough are tried next, at most


@dataclass(frozen=True)
class TriedCut:
    """A cut that was tried: how many layers went, and the measure with the lowest retention."""

    layers: int
    measure: str
    kept: Estimate


def retention(base: EvalResult, pruned: EvalResult) -> dict[str, Estimate]:
    """Return the share kept by each measure that the base model has.

    Of a text it is the likelihood of a token, exp(base loss - pruned loss); of probes and of tasks the mean accuracy, 0
    where the pruned model was not measured on all of them. Errors count as independent, which makes them too wide.
    """
    shares = {
        f"likelihood of {text}": _likelihood(base.perplexity[text], last) for text, last in pruned.perplexity.items()
    }
    for name, before, after in (
        ("probes", base.probes_mean, pruned.probes_mean),
        ("tasks", tasks_right(base), tasks_right(pruned) if base.tasks.keys() == pruned.tasks.keys() else None),
    ):
        if before and before.value:
            shares[name] = ratio(before, after or Estimate(0.0, 0.0))
    return shares


def lowest(shares: Mapping[str, Estimate]) -> tuple[str, Estimate]:
    """Return the measure with the lowest retention."""
    return min(shares.items(), key=lambda item: item[1].value)


def tasks_right(result: EvalResult) -> Estimate | None:
    """Average the tasks whose metric is a share of documents; None without any."""
    shares = [task.estimate for task in result.tasks.values() if task.is_share]
    return mean(shares) if shares else None


def _likelihood(base: Perplexity, pruned: Perplexity) -> Estimate:
    share = math.exp(base.loss - pruned.loss)
    errors = [text.loss_stderr for text in (base, pruned) if text.loss_stderr is not None]  # None of a single window
    return Estimate(share, share * math.hypot(*errors))


def first_amount(costs: Sequence[float], keep: float) -> int:
    """Guess how many layers to try first, from the loss increase of removing each alone, in nats per token.

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
    """Guess how many layers to try next, from the lowest share that each amount kept; None where the largest is found.

    Between an amount that kept enough and one that did not the share is taken to be linear; without a layer removed all is
    kept. Where all kept enough it goes on to at most LEAP times as many.
    """
    enough = {0: 1.0} | {amount: share for amount, share in tried.items() if share >= keep}
    low = max(enough)
    lacking = {amount: share for amount, share in tried.items() if share < keep and amount > low}
    high = min(lacking, default=most + 1)
    if high - low <= 1:
        return None
    if not lacking:
        return min(max(LEAP * low, 1), most)
    crossing = low + (enough[low] - keep) * (high - low) / (enough[low] - lacking[high])
    return min(max(int(crossing + 1e-6), low + 1), high - 1)
