"""Tasks put to a checkpoint: each result is kept in the cache as soon as it is there."""

from __future__ import annotations

from dataclasses import fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

from shortstack.checkpoint import Checkpoint
from shortstack.decoder import Decoder
from shortstack.decoder.wrapping import arithmetic
from shortstack.evaluation.options import Tasks, load_harness
from shortstack.evaluation.task_results import TaskResult, keep, kept
from shortstack.machine.cache import content_key
from shortstack.machine.device import Compute, pick_device
from shortstack.machine.progress import Progress, silent

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from shortstack.evaluation.harness import LoadedTask


class TaskRun:
    """Tasks put to one checkpoint: the results that the cache has, and those that are computed, which it then has too.

    Results of tasks with Python of the user's own are not kept: nobody can say all that such code depends on.
    """

    def __init__(self, checkpoint: Checkpoint, tasks: Tasks, compute: Compute) -> None:
        """Read the documents, and what is kept."""
        self.tasks, self.loaded = tasks, tasks.load_for(checkpoint)
        has_code = tasks.include is not None and any(Path(tasks.include).rglob("*.py"))
        self._keys = {} if has_code else self._digests(checkpoint, compute)
        self._results = {name: result for name, key in self._keys.items() if (result := kept(key))}

    @property
    def missing(self) -> list[LoadedTask]:
        """Tasks that have no result yet."""
        return [loaded for loaded in self.loaded if loaded.name not in self._results]

    @property
    def writes(self) -> bool:
        """Whether a task that has no result yet asks the model to write."""
        return any(loaded.generates for loaded in self.missing)

    @property
    def results(self) -> dict[str, TaskResult]:
        """The results that there are, in the order the tasks were named."""
        return {loaded.name: self._results[loaded.name] for loaded in self.loaded if loaded.name in self._results}

    def answer(self, decoder: Decoder, tokenizer: PreTrainedTokenizerBase, progress: Progress) -> None:
        """Have a model answer what is missing."""
        for loaded in self.missing:
            result = answer_task(loaded, decoder, tokenizer, self.tasks, progress=progress)
            if key := self._keys.get(loaded.name):
                result = replace(result, digest=key)
                keep(result)
            self._results[loaded.name] = result

    def _digests(self, checkpoint: Checkpoint, compute: Compute) -> dict[str, str]:
        tasks, device = self.tasks, pick_device(compute.device)
        beside: dict[str, object] = {
            "model": checkpoint.identity,
            "dtype": str(arithmetic(compute.dtype, checkpoint, device)),
            "device": device.partition(":")[0],
            "options": [tasks.limit, tasks.batch, tasks.max_length, tasks.seed],
            "holds": [field.name for field in fields(TaskResult)],
        }
        return {loaded.name: content_key("task", task=loaded.digest(tasks.limit), **beside) for loaded in self.loaded}


def answer_task(
    loaded: LoadedTask,
    decoder: Decoder,
    tokenizer: PreTrainedTokenizerBase,
    tasks: Tasks,
    *,
    progress: Progress = silent,
) -> TaskResult:
    """Evaluate a model in memory on a task, without caching the result."""

    def staged(_: str, done: int, total: int, /, *, note: str = "") -> None:
        progress(f"answering {loaded.name}", done, total, note=note)

    harness = load_harness()
    model = harness.HarnessModel(decoder, tokenizer, batch=tasks.batch, max_length=tasks.max_length, progress=staged)
    result: TaskResult = harness.run(loaded, model, limit=tasks.limit, seed=tasks.seed)
    return result
