"""Task results: a value on documents, and what a model got on each."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from shortstack.evaluation.paired import Outcomes
from shortstack.evaluation.suites import SHARES
from shortstack.machine.tables import Cell

if TYPE_CHECKING:
    from shortstack.decoder.likelihoods import Accuracy


@dataclass(frozen=True)
class TaskResult:
    """A task's value on some documents, and what the model got on each of them.

    value, stderr: of `metric`, as the harness aggregates and estimates them; stderr is NaN where it has none.
    documents, outcomes: digests of the documents and the metric on each, in the order they were asked; of a perplexity
    minus the nats per unit (word or document), so that more is better as with shares.
    macro: whether the value is the mean of a group's tasks, each counted the same, and not of all documents.
    also: the other metrics. parts: of a group, the value of each of its tasks. chance: what guessing gets, where known.
    version: the harness's, of the task. shots: examples in the prompt. bos: whether texts start with BOS.
    """

    metric: str
    value: float
    stderr: float
    n: int
    version: str
    shots: int
    bos: bool
    dtype: str
    chance: float | None
    higher_is_better: bool
    documents: tuple[str, ...] = field(repr=False)
    outcomes: tuple[float, ...] = field(repr=False)
    also: Mapping[str, float] = field(default_factory=dict)
    parts: Mapping[str, float] = field(default_factory=dict)
    macro: bool = False

    @property
    def cell(self) -> Cell:
        return Cell(self.value, "score", self.stderr)

    @property
    def is_share(self) -> bool:
        """Whether the metric is a share of documents."""
        return self.metric in SHARES

    @property
    def by_document(self) -> bool:
        """Whether the metric is a number on each document; mcc, for one, is of all together."""
        return all(map(math.isfinite, self.outcomes))

    @property
    def paired(self) -> Outcomes:
        """For a paired comparison with another model: the outcomes that the value is the mean of."""
        return Outcomes(self.documents, self.outcomes, self.macro)


def mean_result(results: Sequence[Accuracy | TaskResult]) -> tuple[float, float]:
    """Average the values of several probes or tasks; return the mean with its standard error."""
    error = math.sqrt(sum(result.stderr**2 for result in results)) / len(results)
    return sum(result.value for result in results) / len(results), error
