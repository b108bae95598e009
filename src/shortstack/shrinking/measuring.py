"""The measurements of the unpruned model and of each cut: the same for both, as far as there is time."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from shortstack.checkpoint import Checkpoint
from shortstack.evaluation import Evaluation, EvaluationText, GenerationChecks, Tasks, evaluate
from shortstack.machine.clock import Clock
from shortstack.machine.device import Compute
from shortstack.machine.progress import Progress
from shortstack.shrinking import reference
from shortstack.shrinking.clock import Amounts
from shortstack.shrinking.options import ShrinkOptions
from shortstack.shrinking.result import Measured

Result = TypeVar("Result")
NO_TEXT, NO_WRITING = EvaluationText("none"), GenerationChecks(collapse_check=False)


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
        """Measure texts, probes, what the model writes freely, and tasks one by one; then ask the prompts."""
        began = time.monotonic()
        self.progress(f"measuring the {self.name} model", 0, 1)
        evaluation = self._texts_and_writing()
        for task in self.tasks:
            asked = partial(self._asked, tasks=task)
            answered = self._in_time(asked, f"{', '.join(task.names)} of the {self.name} model")
            if answered:
                evaluation = replace(evaluation, tasks={**evaluation.tasks, **answered.tasks})
        prompts = partial(reference.answers, self.checkpoint, compute=self.compute, progress=self._ending)
        said = self._in_time(prompts, f"answers of the {self.name} model") or ()
        return Measured(evaluation, said, tuple(self.left_out), time.monotonic() - began)

    @property
    def tasks(self) -> list[Tasks]:
        """The tasks, one by one."""
        options = self.options
        asking: dict[str, Any] = {"data_dir": options.data_dir, "seed": self.compute.seed}
        names = [name for task in options.evaluation_tasks() for name in task.names]
        tasks = [Tasks(name, limit=self._limit(name), **asking) for name in names]
        return [task for task in tasks if not self.base or self.base.evaluation.tasks.keys() >= {*task.names}]

    def _limit(self, name: str) -> int | float:
        """Return how many documents are asked; a group has as many in all its tasks, unless a number for each was typed."""
        documents = self.amounts.documents
        if documents == self.options.limit or isinstance(documents, float):
            return documents
        return max(1, documents // self.parts.get(name, 1))

    def _texts_and_writing(self) -> Evaluation:
        """Measure perplexity and what the model writes; with little time left first the one, then the probes alone."""
        writing, short = self._writing(), bool(self.base and self.until.left < self.base.seconds)
        hurried = short and writing is not NO_WRITING
        text, generation = self.options.evaluation_text(self.amounts.judged), NO_WRITING if hurried else writing
        how: dict[str, Any] = {"compute": self.compute, "progress": self.progress}
        evaluation = evaluate(self.checkpoint, text=text, generation=generation, **how)
        if not hurried:
            return evaluation
        self.left_out.append(f"what the {self.name} model writes freely")
        if writing.probes:
            asked = partial(self._asked, generation=replace(writing, collapse_check=False))
            probed = self._in_time(asked, f"probes of the {self.name} model")
            evaluation = replace(evaluation, probes=probed.probes) if probed else evaluation
        return evaluation

    def _writing(self) -> GenerationChecks:
        if self.writing.over:
            self.left_out.append(f"what the {self.name} model writes")
            return NO_WRITING
        if self.base and not self.base.evaluation.collapse:
            return NO_WRITING
        return self.options.generation(self.amounts.probe_items)

    def _asked(self, generation: GenerationChecks = NO_WRITING, tasks: Tasks | None = None) -> Evaluation:
        how: dict[str, Any] = {"compute": self.compute, "progress": self._ending}
        return evaluate(self.checkpoint, text=NO_TEXT, generation=generation, tasks=tasks, **how)

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
