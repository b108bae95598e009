"""Results of evaluate() made by hand: what was measured is known."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from shortstack.decoder.likelihoods import Accuracy
from shortstack.evaluation import Evaluation
from shortstack.evaluation.degeneration import Collapse, Fluency
from shortstack.evaluation.perplexity import Perplexity
from shortstack.evaluation.probes import Probed
from shortstack.evaluation.task_results import TaskResult

ITEMS = 50
FLUENT = Fluency(repetition=0.1, distinct_1=0.4, distinct_2=0.7, entropy=4.0, length=64.0)
LOOPING = Fluency(repetition=0.95, distinct_1=0.01, distinct_2=0.02, entropy=0.5, length=64.0)


def text(loss: float, *, stderr: float = 0.03) -> Perplexity:
    return Perplexity(math.exp(min(loss, 700)), 100, loss, stderr, {"source": "a"}, "float32")


def probed(right: int) -> Probed:
    """A probe of ITEMS items, of which so many are right."""
    correct = [number < right for number in range(ITEMS)]
    return Probed(Accuracy.of(correct), 0.0, tuple(map(str, range(ITEMS))))


def task(value: float, metric: str) -> TaskResult:
    return TaskResult(metric, value, 0.02, 100, "1", 0, False, "float32", None, True, (), ())


def evaluation(
    texts: Mapping[str, Perplexity],
    right: Sequence[int] = (),
    tasks: Mapping[str, TaskResult] | None = None,
    *,
    fluency: Fluency = FLUENT,
) -> Evaluation:
    """right: of ITEMS items of each probe."""
    probes = {str(place): probed(each) for place, each in enumerate(right)}
    return Evaluation("model", texts, probes, Collapse(fluency, '"the the"'), tasks or {})
