"""The measurements of the unpruned model and of each cut: the same for both, as far as there is time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TypeVar

from shortstack.checkpoint import Checkpoint
from shortstack.evaluation import EvalConfig, EvalResult, evaluate
from shortstack.machine.clock import Clock
from shortstack.machine.device import Compute
from shortstack.machine.progress import Progress
from shortstack.shrinking import reference
from shortstack.shrinking.clock import Amounts
from shortstack.shrinking.options import ShrinkOptions
from shortstack.shrinking.result import Measured

Result = TypeVar("Result")


@dataclass(frozen=True)
class Measurement:
    """What is asked of a model, and until when; the unpruned model begins nothing late, a cut also gives up what it began.

    writing: when it is too late to begin what the model writes. base: what the unpruned model was asked, if this is another;
    the cut is asked no more than that, as only what both answer says what is kept. parts: how many tasks a group is of.
    """

    checkpoint: Checkpoint
    name: str
    options: ShrinkOptions
    amounts: Amounts
    compute: Compute
    progress: Progress
    until: Clock
    writing: Clock
    base: Measured | None = None
    parts: Mapping[str, int] = field(default_factory=dict)
    left_out: list[str] = field(default_factory=list)

    def measured(self) -> Measured:
        """Measure texts, probes and tasks one by one; then ask the prompts."""
        began = time.monotonic()
        self.progress(f"measuring the {self.name} model", 0, 1)
        evaluation = self._texts_and_probes()
        for task in self.tasks:
            answered = self._in_time(partial(self._asked, task), f"{', '.join(task.tasks)} of the {self.name} model")
            if answered:
                evaluation = replace(evaluation, tasks={**evaluation.tasks, **answered.tasks})
        prompts = partial(reference.answers, self.checkpoint, compute=self.compute, progress=self._ending)
        said = self._in_time(prompts, f"answers of the {self.name} model") or ()
        return Measured(evaluation, said, tuple(self.left_out), time.monotonic() - began)

    @property
    def tasks(self) -> list[EvalConfig]:
        """The tasks, one by one."""
        known = [(task, name) for task in self.options.evaluation_tasks() for name in task.tasks]
        tasks = [replace(task, tasks=(name,), limit=self._limit(name)) for task, name in known]
        return [task for task in tasks if not self.base or self.base.evaluation.tasks.keys() >= {*task.tasks}]

    def _limit(self, name: str) -> int | float:
        """Return how many documents are asked; a group has as many in all its tasks, unless a number for each was typed."""
        documents = self.amounts.documents
        if documents == self.options.limit or isinstance(documents, float):
            return documents
        return max(1, documents // self.parts.get(name, 1))

    def _texts_and_probes(self) -> EvalResult:
        """Measure perplexity and probes; with little time left the one first, then the other."""
        items, short = self._items(), bool(self.base and self.until.left < self.base.seconds)
        config = self.options.evaluation(self.amounts.judged, items)
        if not (short and items):
            return evaluate(self.checkpoint, config, compute=self.compute, progress=self.progress)
        texts = replace(config, probes=False, probe_items=EvalConfig.probe_items)
        evaluation = evaluate(self.checkpoint, texts, compute=self.compute, progress=self.progress)
        probes = partial(self._asked, replace(config, perplexity=()))
        probed = self._in_time(probes, f"probes of the {self.name} model")
        return replace(evaluation, probes=probed.probes) if probed else evaluation

    def _items(self) -> int:
        """Return how many items of each probe are asked; 0 for no probes."""
        if self.amounts.probe_items and self.writing.over:
            self.left_out.append(f"probes of the {self.name} model")
            return 0
        return 0 if self.base and not self.base.evaluation.probes else self.amounts.probe_items

    def _asked(self, config: EvalConfig) -> EvalResult:
        return evaluate(self.checkpoint, config, compute=self.compute, progress=self._ending)

    def _ending(self, stage: str, done: int, total: int, /, *, note: str = "") -> None:
        """Tell the progress of work that a cut gives up when the time is over."""
        if self.base and self.until.over:
            raise TimeOver
        self.progress(stage, done, total, note=note)

    def _in_time(self, work: Callable[[], Result], what: str) -> Result | None:
        """Do work; where the time is over before its end return None, and note what is left out."""
        if not self.until.over:
            with suppress(TimeOver):
                return work()
        self.left_out.append(what)
        return None


class TimeOver(Exception):
    """Raised in the middle of work that is given up."""
