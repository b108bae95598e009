"""The share of quality that a shortened model keeps, and the number of layers to try next to keep a given share.

>>> next_amount({4: 0.97}, 0.9, most=20), next_amount({4: 0.97, 8: 0.8}, 0.9, most=20)
(8, 5)
>>> next_amount({4: 0.97, 5: 0.8}, 0.9, most=20)  # found
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from shortstack.evaluation import EvalResult, TaskResult, mean_result
from shortstack.evaluation.perplexity import Perplexity

TRIALS = 3  # cuts that are tried at most for a share that is to be kept
RECOVERED = 0.5  # of what single layers cost together, repair and healing bring back about so much: a first guess only
LEAP = 2  # times as many layers as are known to keep enough are tried next, at most


@dataclass(frozen=True)
class Share:
    """A share of something, with its standard error."""

    value: float
    stderr: float

    def __str__(self) -> str:
        return f"{self.value:.1%} ± {self.stderr:.1%}"


@dataclass(frozen=True)
class TriedCut:
    """A cut that was tried: how many layers went, and the measure of which it keeps least."""

    layers: int
    measure: str
    share: Share

    def __str__(self) -> str:
        return f"without {self.layers} layer{'s' * (self.layers > 1)} {self.share} of the {self.measure}"


def kept(base: EvalResult, last: EvalResult) -> dict[str, Share]:
    """Return the share kept by each measure that both models have.

    Of a text it is the likelihood of a token, exp(loss of the one - loss of the other), the geometric mean; of the probes
    and of the tasks the mean accuracy, 0 where the shortened model was not asked all of them. Both models' errors count as
    if the samples were others, which makes them too wide.
    """
    texts = base.perplexity.keys() & last.perplexity.keys()
    shares = {
        f"likelihood of {text}": _likelihood(base.perplexity[text], last.perplexity[text]) for text in sorted(texts)
    }
    tasks = share_tasks(base).keys()
    every = tasks <= last.tasks.keys()
    for name, before, after in (
        ("generation probes", probes_right(base), probes_right(last)),
        ("tasks", tasks_right(base, tasks), tasks_right(last, tasks) if every else None),
    ):
        if before and before.value:
            shares[name if after else f"{name}, for which no time was left"] = ratio(before, after or Share(0.0, 0.0))
    return shares


def ratio(before: Share, after: Share) -> Share:
    """Compute which share of the one the other is; their errors count as independent.

    >>> str(ratio(Share(0.5, 0.0), Share(0.4, 0.05)))
    '80.0% ± 10.0%'
    """
    value = after.value / before.value
    if not after.value:
        return Share(0.0, after.stderr / before.value)
    return Share(value, value * math.hypot(before.stderr / before.value, after.stderr / after.value))


def least(shares: Mapping[str, Share]) -> tuple[str, Share]:
    """Find the measure of which least is kept."""
    return min(shares.items(), key=lambda item: item[1].value)


def _likelihood(base: Perplexity, last: Perplexity) -> Share:
    share = math.exp(base.loss - last.loss)
    known = [text.loss_stderr for text in (base, last) if not math.isnan(text.loss_stderr)]  # none of a single window
    return Share(share, share * math.hypot(*known))


def probes_right(evaluation: EvalResult) -> Share | None:
    """Average the accuracy over the probes; None where there are none."""
    return _mean([probe for probe in evaluation.probes.values() if probe.is_share])


def share_tasks(evaluation: EvalResult) -> dict[str, TaskResult]:
    """Return the tasks whose metric is a share of documents."""
    return {name: task for name, task in evaluation.tasks.items() if task.is_share}


def tasks_right(evaluation: EvalResult, names: Collection[str]) -> Share | None:
    """Average those of the tasks whose metric is a share; None where there are none."""
    return _mean([task for name, task in share_tasks(evaluation).items() if name in names])


def _mean(results: Sequence[TaskResult]) -> Share | None:
    return Share(*mean_result(results)) if results else None


def first_amount(costs: Sequence[float], keep: float) -> int:
    """Guess how many layers to try first, from what the removal of each alone costs in nats per token.

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
    """Guess how many layers to try next, from the least share each amount kept; None where the largest is found.

    What lies between an amount that kept enough and one that did not is taken to be on a line; without a layer gone all is
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


def largest(tried: Mapping[int, float], keep: float) -> int | None:
    """Find the largest amount that kept enough; None where none did."""
    return max((amount for amount, share in tried.items() if share >= keep), default=None)
