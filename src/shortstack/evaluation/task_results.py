"""Task results and their cache on disk, under everything they depend on, so that no other model's result is taken."""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from shortstack.errors import DataError
from shortstack.evaluation.paired import Outcomes
from shortstack.evaluation.suites import SHARES
from shortstack.machine.cache import cache_directory, mark_used
from shortstack.machine.files import save_json
from shortstack.machine.tables import Cell


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
    digest: str = ""

    @property
    def cell(self) -> Cell:
        return Cell(self.value, "score", self.stderr)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

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
        return Outcomes(self.documents, weighted(self.documents, self.outcomes, macro=self.macro))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> TaskResult:
        """Read the result of to_dict() from JSON; null is NaN."""

        def number(value: float | None) -> float:
            return math.nan if value is None else value

        numbers = {name: number(data[name]) for name in ("value", "stderr")}
        outcomes = tuple(map(number, data["outcomes"]))
        return cls(**{**data, **numbers, "documents": tuple(data["documents"]), "outcomes": outcomes})


def weighted(documents: Sequence[str], outcomes: Sequence[float], *, macro: bool) -> tuple[float, ...]:
    """Weigh each outcome by its task, so that their plain mean is the average that the value is.

    documents: of a group each is called TASK/DOCUMENT.

    >>> weighted(["a/1", "b/1", "b/2", "b/3"], [1.0, 1.0, 0.0, 0.0], macro=True)  # (1 + 1/3) / 2 = 2/3
    (2.0, 0.6666666666666666, 0.0, 0.0)
    """
    if not macro:
        return tuple(outcomes)
    tasks = [document.partition("/")[0] for document in documents]
    sizes = Counter(tasks)
    return tuple(
        outcome * (len(tasks) / len(sizes) / sizes[task]) for task, outcome in zip(tasks, outcomes, strict=True)
    )


def kept(key: str) -> TaskResult | None:
    """Read the result under that digest, if there is one."""
    path = _path(key)
    if not path.exists():
        return None
    mark_used(path)
    try:
        return TaskResult.from_dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(str(error)[:80], expected="a result of a task", fix="delete that file", where=path) from error


def keep(result: TaskResult) -> None:
    """Keep a result under its digest."""
    save_json(_path(result.digest), result.to_dict())


def _path(key: str) -> Path:
    return cache_directory("evaluations") / f"{key}.json"
