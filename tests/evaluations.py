"""Results of evaluate() made by hand: what was measured is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from shortstack.evaluation import EvalResult, TaskResult
from shortstack.evaluation.paired import share_stderr
from shortstack.evaluation.perplexity import Perplexity
from shortstack.evaluation.probes import REPETITION

ITEMS = 50


def text(loss: float, *, stderr: float | None = 0.03) -> Perplexity:
    return Perplexity(math.exp(min(loss, 700)), 100, loss, stderr, {"source": "a"}, "float32")


def probed(right: int) -> TaskResult:
    """A probe of ITEMS items, of which so many are right."""
    outcomes = tuple(float(number < right) for number in range(ITEMS))
    known = 0.0, True, tuple(map(str, range(ITEMS))), outcomes
    right = min(right, ITEMS)
    return TaskResult("acc", right / ITEMS, share_stderr(right, ITEMS), ITEMS, "1", 4, False, "float32", *known)


def repetition(share: float) -> TaskResult:
    """Eight texts, in each of which that share of the 4-grams is repeated."""
    known = None, False, tuple(map(str, range(8))), (-share,) * 8
    return TaskResult("repeated 4-grams", share, 0.0, 8, "1", 0, False, "float32", *known)


def task(value: float, metric: str) -> TaskResult:
    return TaskResult(metric, value, 0.02, 100, "1", 0, False, "float32", None, True, (), ())


def evaluation(
    texts: Mapping[str, Perplexity],
    right: Sequence[int] = (),
    tasks: Mapping[str, TaskResult] | None = None,
    *,
    repeated: float = 0.1,
) -> EvalResult:
    """right: of ITEMS items of each probe. repeated: share of the 4-grams in free writing."""
    probes = {str(place): probed(each) for place, each in enumerate(right)}
    return EvalResult("model", texts, tasks or {}, probes | {REPETITION: repetition(repeated)})
